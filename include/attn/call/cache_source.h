// attn/call/cache_source.h: a cache as the source of a call's keys and values. Plumbing of
// kv_cache.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "options.h"
#include "../mask/cache_mask.h"
#include "../kernel/cached_keys.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A cache's memory as an output of the calls that append to it.
inline OutputMemory<const unsigned char> cache_memory(const kernel::CacheStore& store) {
  return {store.view(), true, &store};
}
/// Refuses a cache without sizes: its heads and features divide nothing.
inline void check_holds(const char* function, const kernel::CacheLayout& layout) {
  if (layout.sequences == 0) {
    fail(text(function,
              ": the cache holds nothing (it was made without options, or moved from): "
              "assign KeyValueCache(options) to it"));
  }
}

/// Columns without heads() are the heads of a cache side by side.
template <class T>
TensorView<T> split_heads(TensorView<T> view, bool stacked, Index features) {
  if (stacked && view.heads == 1 && view.features != features && view.features % features == 0) {
    view.heads = view.features / features;
    view.features = features;
    view.head_stride = features * view.feature_stride;
  }
  return view;
}

/// How rotary() turned keys: what has to agree between append and attention.
template <class Asked>
Index turned_code(const char* function, Index key_dim, const Asked& asked) {
  if constexpr (Asked::template has<RotaryOption>()) {
    const auto& option = asked.template get<RotaryOption>();
    return 2 * option.checked_dims(function, key_dim) +
           (option.pairs == pairing::half_split ? 1 : 0);
  } else {
    return 0;
  }
}
inline std::string turned_text(Index code) {
  return code == 0 ? std::string("without rotary()")
                   : text("with rotary() of ", code / 2, " features, ",
                          code % 2 == 1 ? "half_split" : "interleaved");
}

/// The cache's sequence of each of the call's, refused where it does not exist.
inline Index chosen_sequence(const char* function, const IndexList* chosen, Index b,
                             Index sequences) {
  const Index sequence = chosen != nullptr ? (*chosen)[b] : b;
  if (sequence < 0 || sequence >= sequences) {
    fail(text(function, ": cache_sequences: entry ", b, " is ", sequence, ", the cache has ",
              sequences, " sequences"));
  }
  return sequence;
}
template <class Asked>
const IndexList* chosen_list(const Asked& asked) {
  if constexpr (Asked::template has<CacheSequencesOption>()) {
    return &asked.template get<CacheSequencesOption>().list;
  } else {
    return nullptr;
  }
}
/// Refuses as many sequences as the cache, or the list of those chosen, does not have.
inline void check_chosen(const char* function, const char* name, Index given,
                         const IndexList* chosen, Index sequences) {
  if (chosen != nullptr && chosen->size() != given) {
    fail(text(function, ": cache_sequences has ", chosen->size(), " entries, ", name, " has ",
              given, " sequences; needs one for each"));
  }
  if (chosen == nullptr && given != sequences) {
    fail(text(function, ": ", name, " has ", given, " sequences, the cache has ", sequences,
              "; say how rows fall into sequences, sequence_length(n) or sequences({...}), or "
              "which of the cache's they are, cache_sequences({...})"));
  }
}

/// Which of a cache's keys a row sees before the masks of the call.
enum class KeysSeen { by_position, all };

/// Keys and values of a cache: the source of a call (matrix_source.h says what is asked of one).
template <class Storage, KeysSeen Seen>
class CacheSource {
  static constexpr bool kAllKeys = Seen == KeysSeen::all;

 public:
  CacheSource(const char* function, const kernel::CacheStore& store, const IndexList* chosen)
      : memory_(store.layout(), store.memory()), chosen_(chosen), store_(store) {
    const kernel::CacheLayout& layout = memory_.layout();
    check_holds(function, layout);
    lengths_.first = &memory_.sequence(0).length;
    lengths_.step = Index(sizeof(kernel::CacheSequence) / sizeof(Index));
    lengths_.chosen = chosen;
    if (kAllKeys && layout.window != 0) {
      fail(text(function, ": all_keys() on a ring, which forgets keys by position"));
    }
  }
  CacheSource(const CacheSource&) = delete;

  template <class T>
  TensorView<T> query(const TensorView<T>& view, bool stacked) const {
    return split_heads(view, stacked, memory_.layout().key_dim);
  }
  template <class Asked>
  CallShape shape(const char* function, const OperandShape& query, const Batch& batch,
                  const Asked& asked) {
    const kernel::CacheLayout& layout = memory_.layout();
    const TensorExtent& q = query.extent;
    if (q.features != layout.key_dim) {
      fail(text(function, ": query has ", q.features, " features for each head, the cache ",
                layout.key_dim));
    }
    if (q.heads % layout.kv_heads != 0) {
      fail(text(function, ": query has ", q.heads, " heads, needs a multiple of the cache's ",
                layout.kv_heads));
    }
    if (batch.query_offsets != batch.key_offsets || batch.query_length != batch.key_length) {
      fail(text(function,
                ": the batch names rows of keys, which a cache knows itself: write "
                "sequences(offsets) or sequence_length(n) of the queries alone"));
    }
    CallShape shape;
    shape.function = function;
    shape.heads = q.heads;
    shape.kv_heads = layout.kv_heads;
    shape.key_dim = layout.key_dim;
    shape.value_dim = layout.value_dim;
    shape.queries =
        tokens_of(function, "query", q, query.stacked, batch.query_offsets, batch.query_length);
    const Index sequences = shape.sequences(),
                held = chosen_ != nullptr ? chosen_->size() : layout.sequences;
    if (kAllKeys && held == 1 && sequences != 1) {
      shape.shared_keys = true;
    } else {
      check_chosen(function, "query", sequences, chosen_, layout.sequences);
    }
    shape.keys.sequences = shape.shared_keys ? 1 : sequences;
    shape.keys.cached = &lengths_;
    const Index turned = turned_code(function, layout.key_dim, asked);
    for (Index b = 0; b < shape.keys.sequences; ++b) {
      const Index sequence = chosen_sequence(function, chosen_, b, layout.sequences);
      const kernel::CacheSequence& state = memory_.sequence(sequence);
      if (state.length > 0 && state.turned != turned) {
        fail(text(function, ": called ", turned_text(turned), ", sequence ", sequence,
                  " of the cache was appended ", turned_text(state.turned),
                  "; queries and keys turn alike"));
      }
    }
    shared_ = shape.shared_keys;
    return shape;
  }

  template <class Asked>
  auto masks(const CallShape& shape, const Asked& asked) const {
    using Position = PositionOf<Asked>;
    static_assert(!kAllKeys || Position::asks == nullptr,
                  "attn: all_keys() beside a mask that hides keys by position: causal(), "
                  "prefix_lm() or tree()");
    static_assert(!kAllKeys || Position::named == 1 ||
                      !(Asked::template has<RotaryOption>() || Asked::template has<AlibiOption>() ||
                        Position::relative),
                  "attn: all_keys() leaves open where the queries are, which window(), alibi() or "
                  "rotary() asks: name it, query_offset(n) puts the first query at key n");
    const kernel::CacheLayout& layout = memory_.layout();
    CacheMask own;
    own.causal = !kAllKeys && Position::asks == nullptr;
    if (layout.window != 0) {
      own.window = layout.window;
      own.pinned = layout.pinned;
    }
    if constexpr (!Asked::template has<MaskOption>()) {
      return own;
    } else {
      auto others = bind_masks(shape, asked);
      return And<CacheMask, decltype(others)>(own, others);
    }
  }

  /// Rows are the last of the sequence; refuses more rows than it has, and rows whose keys a ring
  /// has lost.
  template <class Asked>
  Index query_offset(const CallShape& shape, Index sequence, const Asked& asked) const {
    if constexpr (kAllKeys) {
      return query_offset_of(shape, sequence, asked);
    } else {
      static_assert(PositionOf<Asked>::named == 0,
                    "attn: a cache knows the positions of its rows, the last of each sequence: "
                    "leave out query_offset(), causal_from() and causal(align::...)");
      const kernel::CacheLayout& layout = memory_.layout();
      const Index rows = shape.queries.length(sequence), keys = shape.key_length(sequence),
                  offset = keys - rows;
      if (offset < 0) {
        fail(text(shape.function, ": query has ", rows, " rows in sequence ", sequence,
                  ", the cache holds ", keys,
                  " tokens; rows are the last of what was appended, causal by position. Queries "
                  "that see all keys (cross-attention) say so: all_keys()"));
      }
      const kernel::CacheSequence& state = memory_.sequence(key(shape).sequence(sequence));
      if (rows > 0 && !layout.holds(state, layout.window_begin(offset), keys)) {
        fail(text(shape.function, ": query row 0 of sequence ", sequence, " is at position ",
                  offset, " and sees keys from ", layout.window_begin(offset),
                  ", of which the ring has lost those before ", layout.first_held(state)));
      }
      return offset;
    }
  }
  template <class Scalar, class Angles, class Offset>
  auto rotation(const CallShape& shape, const Rotary<Angles>& option, const Offset& offset) const {
    return QueryRotation<Scalar, Angles, Offset>(shape, option, offset);
  }

  auto key(const CallShape&) const {
    return kernel::CacheOperand<Storage>{&memory_, chosen_, shared_};
  }
  auto value(const CallShape&) const { return Absent{}; }
  template <class Visit>
  void visit_memory(const CallShape&, const Visit& visit) const {
    visit("the cache", store_.view());
  }
  Index scratch_keys(const CallShape&) const {
    return memory_.layout().blocks() * memory_.layout().rows;
  }

 private:
  kernel::CacheMemory<Storage> memory_;
  const IndexList* chosen_;
  const kernel::CacheStore& store_;
  CachedLengths lengths_;
  bool shared_ = false;
};

/// A cache given in place of keys and values.
template <class Storage>
struct GivenCache {
  static constexpr int kKeys = Eigen::Dynamic, kValueDim = Eigen::Dynamic,
                       kResultCols = Eigen::Dynamic;
  const kernel::CacheStore& store;

  explicit GivenCache(const KeyValueCache<Storage>& cache) : store(cache.store_) {}

  template <class Query>
  static constexpr void check_types() {
    static_assert(
        is_operand_v<Query>,
        "attn: the query is an Eigen matrix, heads(X, n) of one, or a strided view (bhld, "
        "blhd, lbhd)");
    using Scalar = compute_t<typename operand_traits<bare_t<Query>>::Scalar>;
    static_assert(std::is_same_v<Scalar, kernel::cache_compute_t<Storage>>,
                  "attn: the query computes in another scalar than the cache: cast it");
  }
  template <class Asked>
  auto open(const char* function, const Asked& asked) const {
    static_assert(!Asked::template has<DropoutOption>(),
                  "attn: dropout() on a KeyValueCache: a cache serves inference, where nothing is "
                  "dropped. Leave it out, or give keys and values as matrices");
    static_assert(!Asked::template has<StateOption>(),
                  "attn::save_state: gradients need the keys and values as matrices, which a "
                  "KeyValueCache is not: call attention(Q, K, V, save_state(state))");
    static_assert(
        !Asked::template has<NativeBfloat16Option>() || std::is_same_v<Storage, Eigen::bfloat16>,
        "attn::native_bfloat16: on a KeyValueCache of bfloat16 alone, whose numbers are "
        "multiplied as they are stored: KeyValueCache<Eigen::bfloat16>");
    constexpr KeysSeen seen =
        Asked::template has<AllKeysOption>() ? KeysSeen::all : KeysSeen::by_position;
    return CacheSource<Storage, seen>(function, store, chosen_list(asked));
  }
};
template <class Storage>
GivenCache<Storage> given_cache(const KeyValueCache<Storage>& cache) {
  return GivenCache<Storage>(cache);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
