// attn/kv_cache.h: keys and values kept from call to call: append, attend, edit; for decoding,
// streaming and cross-attention.
// SPDX-License-Identifier: MIT
//
//   attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(4096, 8, 64));   // tokens, key/value heads, d_k (and d_v)
//   cache.append(K, V);                                                          // the prompt's, then of each new token
//   attn::attention(attn::heads(Q, 32), cache, attn::into(Y));                   // rows of Q: the last of the sequence
//
// Positions: the cache knows them. Query rows are the last Lq positions of each sequence and see
// the keys up to their own; nobody names an offset, and naming one is refused. A mask of the call
// that speaks of causality itself (causal(), prefix_lm(), tree()) takes the place of that. Queries
// that are no part of the sequence say all_keys(): cross-attention, keys packed once and used by
// many calls. More rows than the sequence has tokens are refused, as are queries turned by rotary()
// on keys that are not.
//
// The same bits: a row's result is that of attention(Q, K, V, causal()) over the whole sequence,
// whether its tokens came at once, in chunks, or one by one, alone or in a batch. For narrow
// storage: that of any other cache of this storage.
#pragma once

#include <cstdint>
#include <memory>

#include "attention.h"
#include "call/append.h"
#include "kv_cache_options.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {
struct SharedCache;
}

/// Option of a call on a cache: every query sees every key, whatever its position; row i is at
/// position i + query_offset (0 unless named).
///
/// Requires   no ring; no mask that hides by position (a static_assert). One cached sequence serves
///            any number of query sequences
inline detail::AllKeys all_keys() { return {}; }

/// Option of append() and of calls on a cache: the sequences of the call are these of the cache,
/// list[b] for sequence b; others are left alone. A call may name one several times, append() may
/// not.
///
/// Requires   an entry for each sequence of the call; 0 ≤ list[b] < sequences
///            (std::invalid_argument otherwise)
/// Semantics  an lvalue container of integers is referred to; a temporary or a braced list is
///            copied
template <class List = std::initializer_list<Index>>
detail::CacheSequences cache_sequences(List&& list) {
  detail::CacheSequences option;
  option.list = detail::IndexList(std::forward<List>(list));
  return option;
}

/// Keys and values of sequences that grow, in the engine's own panels: attention packs nothing but
/// the newest of them.
///
/// \tparam Storage  float, double, any other real scalar that is trivially copyable; half and
///                  bfloat16 (computed in float); std::int8_t: a scale for the keys and one for the
///                  values of each token and head, computed in float
/// Shapes     of a token: keys H_kv × d_k, values H_kv × d_v; heads side by side as in heads(K,
///            H_kv), which may be left out
/// Semantics  a regular value: a copy has memory of its own, and what is assigned to leaves the
///            caller's memory, or stays as it was where memory runs out. Const calls (attention)
///            may share it among threads; append() and the other changes need it to themselves
/// Cost       memory is taken once, at construction: sequences · H_kv · capacity · (d_k + d_v)
///            numbers, rounded up to blocks of 256 tokens at most, and less than a panel of keys
///            more. Nothing allocates afterwards
/// Accuracy   int8: relative error of the output below 1 % on unit normal data. A token's scale
///            follows its largest number, so one loud channel costs all others: keys of mean 40 in
///            one channel and ±1 in the rest, usual in real models, cost 5 to 8 % of the output.
///            Store those in half or bfloat16, or take the mean off before (without rotary() a
///            vector added to all keys changes no weight) (tests/kv_cache_storage_test.cpp)
/// Reference  Shazeer 2019 (arXiv:1911.02150); Xiao et al. 2023 (arXiv:2309.17453) for ring and
///            pinned.
template <class Storage>
class KeyValueCache {
  static_assert((!Eigen::NumTraits<Storage>::IsInteger ||
                 std::is_same_v<Storage, std::int8_t>)&&!Eigen::NumTraits<Storage>::IsComplex &&
                    std::is_trivially_copyable_v<Storage>,
                "attn::KeyValueCache: stores a real scalar (float, double, half, bfloat16, ...) or "
                "std::int8_t, scaled token by token");

 public:
  using Scalar = Storage;
  using Compute = kernel::cache_compute_t<Storage>;

  /// Holds nothing, as what was moved from: to be assigned to. Its sizes are 0, all else is
  /// refused.
  KeyValueCache() = default;
  explicit KeyValueCache(const KeyValueCacheOptions& options) : store_(make(options)) {}
  /// Over the caller's memory of any alignment, bytes_needed(options) at least, which has to
  /// outlive the cache.
  KeyValueCache(const KeyValueCacheOptions& options, void* memory, std::size_t bytes)
      : store_(make(options, memory, bytes)) {}

  /// Bytes that a cache of these sizes takes: what the constructor above is to be given.
  static std::size_t bytes_needed(const KeyValueCacheOptions& options) {
    return std::size_t(lines(layout_of(options)) + 1) * sizeof(kernel::CacheLine);
  }

  /// Appends tokens to the sequences: all of them, each as many as the options say, or those that
  /// cache_sequences() names.
  ///
  /// Shapes     K [tokens, H_kv·d_k]  V [tokens, H_kv·d_v]: matrices, heads(), or strided views
  /// Options    sequences(), sequence_length(): how rows fall into sequences; cache_sequences();
  ///            rotary(): keys are turned at their positions in the sequence (or .positions()), and
  ///            then queries have to be as well
  /// Requires   those shapes; room(sequence) for the tokens; rotary() always or never in a sequence
  ///            (std::invalid_argument otherwise; the cache is then as it was)
  /// Cost       each number converted and written once, into the panels
  template <class Key, class Value, class... Options>
  void append(Key&& K, Value&& V, const Options&... options) {
    detail::append_given<Storage>(store_, std::forward<Key>(K), std::forward<Value>(V), options...);
  }

  /// Tokens of a sequence: the position of the next one.
  Index length(Index sequence = 0) const { return state("length", sequence).length; }
  /// Tokens that can be appended to it now. Of a ring always the same: as many as can be attended
  /// together.
  Index room(Index sequence = 0) const { return layout().room(state("room", sequence)); }

  /// Forgets what lies behind the first n tokens of every sequence, or of one: rejected candidates,
  /// a shared prompt's next turn.
  ///
  /// Requires   0 ≤ n ≤ length; of a ring: the window before token n still there
  ///            (std::invalid_argument otherwise; nothing is changed then)
  void truncate(Index n) {
    detail::check_holds(kName, layout());
    for (Index b = 0; b < sequences(); ++b) check_end(b, n);
    for (Index b = 0; b < sequences(); ++b) end_at(b, n);
  }
  void truncate(Index sequence, Index n) {
    check_end(sequence, n);
    end_at(sequence, n);
  }
  /// Empties every sequence, or one.
  void clear() { truncate(0); }
  void clear(Index sequence) { truncate(sequence, 0); }

  /// Makes sequence `to` what `from` is now: beam search, prompts that begin alike.
  ///
  /// Requires   sequences of the cache (std::invalid_argument otherwise)
  /// Cost       the tokens that `from` holds, copied
  void copy(Index from, Index to) {
    const kernel::CacheSequence& source = state("copy", from);
    kernel::CacheSequence& target = state("copy", to);
    if (from == to) return;
    const Memory held = memory();
    const kernel::CacheWriter<Storage> writer(held);
    for (Index head = 0; head < kv_heads(); ++head)
      writer.copy(layout().of_head(from, head), layout().of_head(to, head), source);
    target = source;
  }

  Index sequences() const { return layout().sequences; }
  Index capacity() const { return layout().capacity; }
  Index kv_heads() const { return layout().kv_heads; }
  Index key_dim() const { return layout().key_dim; }
  Index value_dim() const { return layout().value_dim; }
  /// The memory that the cache takes.
  std::size_t bytes() const { return std::size_t(store_.lines()) * sizeof(kernel::CacheLine); }

  /// What to reserve for calls of this many query rows a sequence:
  /// ScaledDotProductAttention::reserve(cache.shape(queries, heads)).
  AttentionShape shape(Index queries, Index heads) const {
    detail::check_holds(kName, layout());
    AttentionShape shape;
    shape.queries = queries;
    shape.keys = layout().blocks() * layout().rows;
    shape.key_dim = key_dim();
    shape.value_dim = value_dim();
    shape.heads = heads;
    shape.kv_heads = kv_heads();
    shape.sequences = sequences();
    shape.cached = true;
    return shape;
  }

 private:
  template <class>
  friend struct detail::GivenCache;
  friend struct detail::SharedCache;
  using Memory = kernel::CacheMemory<Storage>;
  static constexpr const char* kName = "attn::KeyValueCache";

  static kernel::CacheLayout layout_of(const KeyValueCacheOptions& options) {
    options.check(kName);
    const auto x = kernel::CacheLayout::of<Compute>(options);
    detail::check_product(kName, "in whole blocks, sequences x kv_heads x tokens x features",
                          x.sequences, x.kv_heads, detail::Count(x.blocks()) * x.rows + x.panel,
                          detail::Count(x.depth) + x.features + 3);
    return x;
  }
  explicit KeyValueCache(const kernel::CacheLayout& layout) : store_(layout, lines(layout)) {}
  static Index lines(const kernel::CacheLayout& layout) { return Memory::lines(layout); }
  static kernel::CacheStore make(const KeyValueCacheOptions& options) {
    const kernel::CacheLayout layout = layout_of(options);
    return {layout, lines(layout)};
  }
  static kernel::CacheStore make(const KeyValueCacheOptions& options, void* memory,
                                 std::size_t bytes) {
    const kernel::CacheLayout layout = layout_of(options);
    const Index needed = lines(layout);
    const std::size_t size = std::size_t(needed) * sizeof(kernel::CacheLine);
    if (std::align(alignof(kernel::CacheLine), size, memory, bytes) == nullptr) {
      detail::fail(detail::text(kName, ": the memory given is too small, needs ",
                                Index(bytes_needed(options)), " bytes"));
    }
    return {layout, static_cast<kernel::CacheLine*>(memory), needed};
  }

  const kernel::CacheLayout& layout() const { return store_.layout(); }
  Memory memory() const { return Memory(layout(), store_.memory()); }
  kernel::CacheSequence& state(const char* function, Index sequence) const {
    detail::check_holds(kName, layout());
    if (sequence < 0 || sequence >= sequences()) {
      detail::fail(detail::text(kName, "::", function, ": sequence ", sequence, ", the cache has ",
                                sequences()));
    }
    return memory().sequence(sequence);
  }

  void check_end(Index sequence, Index n) const {
    const kernel::CacheSequence& s = state("truncate", sequence);
    if (n < 0 || n > s.length) {
      detail::fail(detail::text(kName, "::truncate: to ", n, " tokens, sequence ", sequence,
                                " holds ", s.length));
    }
    if (!layout().can_end_at(s, n)) {
      detail::fail(detail::text(kName, "::truncate: to ", n,
                                " tokens, of which the ring's window "
                                "needs those from ",
                                layout().window_begin(n), "; it has lost those before ",
                                layout().first_held(s)));
    }
  }
  void end_at(Index sequence, Index n) {
    const Memory held = memory();
    kernel::CacheSequence& s = held.sequence(sequence);
    const kernel::CacheWriter<Storage> writer(held);
    for (Index head = 0; head < kv_heads(); ++head)
      writer.truncate(layout().of_head(sequence, head), n, s.length);
    s = layout().ended_at(s, n);
  }

  kernel::CacheStore store_;
};

namespace detail {

/// One share of a cache that lies in several, part n of each sequence with share n mod `shares`:
/// it counts all tokens and keeps its own. Attention on it is over the keys that it keeps.
struct SharedCache {
  /// Keys of a part: `chunk` rounded up to whole blocks, as split_keys(chunk) does.
  template <class Storage>
  static Index part(const KeyValueCacheOptions& options, Index chunk) {
    return kernel::round_up(chunk, KeyValueCache<Storage>::layout_of(options).block);
  }
  template <class Storage>
  static KeyValueCache<Storage> make(const KeyValueCacheOptions& options, Index share, Index shares,
                                     Index part) {
    return KeyValueCache<Storage>(
        KeyValueCache<Storage>::layout_of(options).shared(share, shares, part));
  }
};

}  // namespace detail

/// attention() over a cache's keys and values; see the head of this file for which keys a row sees.
///
/// Shapes     Q [rows, H·d_k], or heads(Q, H); the cache's keys H_kv·d_k, values H_kv·d_v
///            →  [rows, H·d_v]
/// Options    those of attention(Q, K, V, …) but the query's offset; all_keys(), cache_sequences();
///            a batch as rows of queries
/// Requires   as many query sequences as the cache has, or cache_sequences(); no more rows than a
///            sequence has tokens; rotary() on queries exactly where the keys were appended with it
///            (std::invalid_argument otherwise; outputs are then untouched)
/// Semantics  masks, biases and saved outputs count keys by their positions in the sequence, as for
///            the whole K and V
/// Cost       as attention(); no keys or values are packed but those of the newest panel
template <class Query, class Storage, class... Options>
[[nodiscard]] auto attention(Query&& Q, const KeyValueCache<Storage>& cache, Options&&... options) {
  using Scalar = kernel::cache_compute_t<Storage>;
  static_assert(detail::check_words<Options...>());  // as attention(Q, K, V) says it
  static_assert(detail::check_functors_v<decltype(detail::result_on_lanes<Scalar>(
                    std::declval<Options&>()))...>);
  return detail::attend_or_return<Scalar>("attn::attention", nullptr, std::forward<Query>(Q),
                                          detail::given_cache(cache),
                                          std::forward<Options>(options)...);
}

}  // namespace ATTN_ABI
}  // namespace attn
