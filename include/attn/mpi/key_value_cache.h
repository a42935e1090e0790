// attn/mpi/key_value_cache.h: a key/value cache that lies on several ranks: decoding where one
// machine's memory does not hold the context.
// SPDX-License-Identifier: MIT
//
//   attn::mpi::KeyValueCache<float> cache(ranks, KeyValueCacheOptions(1 << 20, 8, 128), 4096);
//   cache.append(K, V);                                      // on all ranks: each keeps its own
//   Y = attn::mpi::attention(attn::heads(Q, 32), cache);     // on all ranks: each has all of Y
//
// Part n of a sequence, tokens [n·C, (n + 1)·C), lies on rank n mod P. Each rank attends its parts;
// their states (partial.h) go to the rank that merges their key/value head, in the order of the
// keys, and from there to all. So the bits are those of one process under split_keys(C), whatever
// P is.
#pragma once

#include <algorithm>
#include <exception>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../kv_cache.h"
#include "../partial.h"
#include "alike.h"
#include "meeting.h"
#include "row_messages.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The keys of one part.
struct BoundPart : IntervalMask<BoundPart> {
  KeyRange part;
  KeyRange row_keys(const QueryRow&) const { return part; }
};
struct PartMask : mask_base {
  KeyRange part;
  explicit PartMask(KeyRange keys) : part(keys) {}
  BoundPart bind(const CallShape&) const {
    BoundPart bound;
    bound.part = part;
    return bound;
  }
};

/// An option that finished rows are given.
template <class Option>
inline constexpr bool finishes_v = is_of_kind_v<Option, IntoOption, ResidualOption, SinkOption,
                                                kernel::LogSumExpOfRow, kernel::MaxLogitOfRow>;
/// It, or nothing, as a tuple of references.
template <class Take, class Option>
auto taken_if(Take, Option& option) {
  if constexpr (Take::value) {
    return std::tuple<Option&>(option);
  } else {
    return std::tuple<>();
  }
}

template <class... Options>
constexpr void check_cache_options() {
  static_assert(!given_v<SplitKeysOption, Options...>,
                "attn::mpi::attention: the parts of the keys are the cache's own: leave out "
                "split_keys()");
  static_assert(!given_v<PartialOption, Options...>,
                "attn::mpi::attention: a call on a mpi::KeyValueCache finishes its rows: leave "
                "out save_partial()");
  static_assert(!given_v<WeightsOption, Options...> && !given_v<ScoresOption, Options...> &&
                    !given_v<kernel::EntropyOfRow, Options...>,
                "attn::mpi::attention: save_weights(), save_scores() and save_entropy() need all "
                "keys on one rank, which a mpi::KeyValueCache has not");
}

/// Which rank merges which key/value heads: rank r those from first(r) on, before first(r + 1).
struct HeadShares {
  Index heads, ranks;
  Index first(Index rank) const { return rank * heads / ranks; }
  Index count(Index rank) const { return first(rank + 1) - first(rank); }
};

}  // namespace detail
namespace mpi {

/// A KeyValueCache (kv_cache.h) whose sequences lie on all ranks of a communicator, in parts of C
/// tokens: C = chunk rounded up to whole blocks of keys, as split_keys(chunk) does.
///
/// \tparam Storage  as of KeyValueCache
/// Shapes     as KeyValueCache; capacity counts the tokens of all ranks together
/// Requires   no ring, chunk ≥ 1; sizes that are the same on all ranks (std::invalid_argument
///            otherwise)
/// Semantics  a value; what is done to it is done on all ranks alike: the constructor, append() and
///            attention() are collective, and throw on all ranks where one throws, which leaves the
///            cache as it was
/// Cost       about 1/P of the memory on each rank. A call sends the states of its parts, (L / C)
///            · H · (d_v + 2) scalars over all ranks, and takes back 2·H · (d_v + 2) a row
template <class Storage>
class KeyValueCache {
 public:
  using Scalar = Storage;
  using Compute = typename attn::KeyValueCache<Storage>::Compute;

  KeyValueCache(const Ranks& ranks, const KeyValueCacheOptions& options, Index chunk)
      : KeyValueCache(ranks, made(ranks, options, chunk)) {}

  /// Appends tokens, as KeyValueCache::append(): the same ones on all ranks, each of which keeps
  /// those of its parts.
  template <class Key, class Value, class... Options>
  void append(Key&& K, Value&& V, const Options&... options) {
    detail::with_meetings(ranks_, [&](detail::Meeting& meeting) {
      std::vector<Index> before;
      for (Index b = 0; b < sequences(); ++b) before.push_back(length(b));
      here_.append(std::forward<Key>(K), std::forward<Value>(V), options...);
      try {
        meeting.hold();
      } catch (...) {
        for (Index b = 0; b < sequences(); ++b) here_.truncate(b, before[std::size_t(b)]);
        throw;
      }
    });
  }

  /// As of KeyValueCache, of the sequences as a whole; to be called on all ranks alike.
  Index length(Index sequence = 0) const { return here_.length(sequence); }
  Index room(Index sequence = 0) const { return here_.room(sequence); }
  void truncate(Index n) { here_.truncate(n); }
  void truncate(Index sequence, Index n) { here_.truncate(sequence, n); }
  void clear() { here_.clear(); }
  void clear(Index sequence) { here_.clear(sequence); }
  void copy(Index from, Index to) { here_.copy(from, to); }

  Index sequences() const { return here_.sequences(); }
  Index capacity() const { return here_.capacity(); }
  Index kv_heads() const { return here_.kv_heads(); }
  Index key_dim() const { return here_.key_dim(); }
  Index value_dim() const { return here_.value_dim(); }
  /// C.
  Index part() const { return part_; }
  /// The memory that it takes on this rank.
  std::size_t bytes() const { return here_.bytes(); }

 private:
  template <class Query, class Any, class... Options>
  friend auto attention(Query&& Q, KeyValueCache<Any>& cache, Options&&... options);
  using Partial = attn::Partial<Compute>;
  static constexpr const char *kName = "attn::mpi::KeyValueCache",
                              *kAttention = "attn::mpi::attention";

  /// A part's tokens, and the parts of this rank.
  struct Made {
    Index part = 0;
    std::optional<attn::KeyValueCache<Storage>> here;
  };
  KeyValueCache(const Ranks& ranks, Made&& made)
      : ranks_(ranks), part_(made.part), here_(std::move(*made.here)) {}
  static Made made(const Ranks& ranks, const KeyValueCacheOptions& options, Index chunk) {
    Made result;
    detail::with_meetings(ranks, [&](detail::Meeting& meeting) {
      result.part = checked_part(options, chunk);
      const auto& here = result.here.emplace(
          detail::SharedCache::make<Storage>(options, ranks.rank(), ranks.size(), result.part));
      meeting.alike(kName)
          .add("sequences", here.sequences())
          .add("capacity", here.capacity())
          .add("key/value heads", here.kv_heads())
          .add("features of keys", here.key_dim())
          .add("features of values", here.value_dim())
          .add("tokens of a part", result.part);
      meeting.hold();
    });
    return result;
  }
  static Index checked_part(const KeyValueCacheOptions& options, Index chunk) {
    options.check(kName);
    detail::check_size(kName, "chunk", chunk, 1);
    if (options.is_ring()) {
      detail::fail(detail::text(kName,
                                ": a ring lies in one piece: use KeyValueCache, whose "
                                "memory does not grow with the context"));
    }
    return detail::SharedCache::part<Storage>(options, std::min(chunk, options.capacity()));
  }
  /// Parts of the longest sequence, and those of them on a rank.
  Index parts() const {
    Index most = 0;
    for (Index b = 0; b < sequences(); ++b) most = std::max(most, length(b));
    return (most + part_ - 1) / part_;
  }
  Index parts_of(Index rank) const { return (parts() - rank + ranks_.size() - 1) / ranks_.size(); }
  /// Those of all ranks before it.
  Index parts_before(Index rank) const {
    return rank * (parts() / ranks_.size()) + std::min<Index>(rank, parts() % ranks_.size());
  }
  const auto& state(Index n) const { return detail::PartialOf::store(states_[std::size_t(n)]); }
  auto& merged() { return detail::PartialOf::store(merged_); }
  detail::HeadShares shares() const { return {kv_heads(), ranks_.size()}; }

  template <class Query, class... Options>
  void attend(Query& Q, Options&... options) {
    detail::with_meetings(ranks_, [&](detail::Meeting& meeting) {
      detail::RowMessages messages(ranks_.comm());
      std::apply([&](auto&... own) { attend_parts(Q, own...); },
                 std::tuple_cat(detail::taken_if(std::bool_constant<!detail::finishes_v<Options>>(),
                                                 options)...));
      prepare(messages);
      compare(meeting.alike(kAttention));
      meeting.hold();
      exchange(messages);
      std::exception_ptr failure;
      try {
        std::apply(
            [&](auto&... own) { detail::finish_into(kAttention, merged(), detail::Asked(own...)); },
            std::tuple_cat(
                detail::taken_if(std::bool_constant<detail::finishes_v<Options>>(), options)...));
      } catch (...) {
        failure = std::current_exception();
      }
      meeting.hold(failure);
    });
  }
  /// The states of this rank's parts; of no key where it has none, which tells the sizes.
  template <class Query, class... Options>
  void attend_parts(Query& Q, Options&... options) {
    const std::size_t count = std::size_t(parts_of(ranks_.rank()));
    states_.resize(std::max<std::size_t>(count, 1));
    for (std::size_t n = 0; n < states_.size(); ++n) {
      const Index first = (Index(n) * ranks_.size() + ranks_.rank()) * part_,
                  keys = n < count ? part_ : 0;
      detail::attend_or_return<Compute>(kAttention, &workspace_, Q, detail::given_cache(here_),
                                        options..., detail::PartMask({first, first + keys}),
                                        split_keys(part_), save_partial(states_[n]));
    }
  }
  void prepare(detail::RowMessages& messages);
  /// What has to be the same on all ranks in a call.
  void compare(detail::Alike& alike) const {
    const auto& call = state(0).sizes();
    alike.add("query rows", call.queries).add("query heads", call.heads);
    for (Index b = 0; b < sequences(); ++b)
      alike.add("tokens of a sequence in the cache", length(b));
  }
  void exchange(detail::RowMessages& messages);

  Ranks ranks_;
  Index part_;
  attn::KeyValueCache<Storage> here_;
  Workspace<Compute> workspace_;
  std::vector<Partial> states_;
  Partial merged_;
  detail::AlignedBuffer<Compute> sent_, received_;
};

/// Takes all memory that exchange() needs: it does not fail.
template <class Storage>
void KeyValueCache<Storage>::prepare(detail::RowMessages& messages) {
  const Index size = state(0).head_size(), rank = ranks_.rank();
  sent_.grow(parts_of(rank) * kv_heads() * size);
  received_.grow(parts() * shares().count(rank) * size);
  messages.reserve(4 * std::size_t(ranks_.size()));
  merged().start(state(0).sizes());
}

// WHAT     each rank's states, cut by key/value head, to the rank that merges the head; there all
//          parts in the order of the keys; what is merged to all ranks
// WHY      a merge is bound by memory: shared by heads it takes 1/P of the time, and each state
//          crosses the network once instead of P times. What comes back is a state as well, with
//          what rounding took from it: sinks, residual and outputs are then each rank's own call of
//          finish()
// EDGES    fewer key/value heads than ranks: some merge nothing
template <class Storage>
void KeyValueCache<Storage>::exchange(detail::RowMessages& messages) {
  enum Tag { kStates, kSums, kLost };
  const int ranks = ranks_.size(), rank = ranks_.rank();
  const Index size = state(0).head_size(), own = parts_of(rank), mine = shares().count(rank);

  Compute* out = sent_.data();
  for (int r = 0; r < ranks; ++r) {
    messages.receive(received_.data() + parts_before(r) * mine * size, parts_of(r) * mine * size, r,
                     kStates);
  }
  for (int r = 0; r < ranks; ++r) {
    const Compute* const first = out;
    for (Index n = 0; n < own; ++n) {
      out = std::copy_n(state(n).data() + shares().first(r) * size, shares().count(r) * size, out);
    }
    messages.send(first, Index(out - first), r, kStates);
  }
  messages.wait();

  for (Index n = 0; n < parts(); ++n) {
    const Compute* const part =
        received_.data() + (parts_before(n % ranks) + n / ranks) * mine * size;
    for (Index h = 0; h < mine; ++h) merged().merge_head(shares().first(rank) + h, part + h * size);
  }
  for (const auto& [numbers, tag] :
       {std::pair(merged().data(), kSums), std::pair(merged().lost_data(), kLost)}) {
    for (int r = 0; r < ranks; ++r) {
      if (r == rank) continue;
      messages.receive(numbers + shares().first(r) * size, shares().count(r) * size, r, tag);
      messages.send(numbers + shares().first(rank) * size, mine * size, r, tag);
    }
  }
  messages.wait();
  merged().complete();
}

/// attention() over a cache on several ranks, called on all of them with the same rows.
///
/// Shapes     as attention(Q, cache): Q [rows, H·d_k], or heads(Q, H) → [rows, H·d_v], all of it on
///            every rank
/// Options    those of attention(Q, cache) that need no pair of all keys: not save_weights(),
///            save_scores(), save_entropy(), split_keys(), save_partial()
/// Requires   as attention(Q, cache), on each rank (std::invalid_argument there otherwise; all
///            others then throw RankFailed); as many rows, heads and cached tokens on all ranks
///            (std::invalid_argument on all otherwise). An output or a residual of another shape
///            is found last: other ranks have written theirs
/// Semantics  the bits of attention(Q, cache, split_keys(cache.part())) in one process, on any
///            number of ranks. Positions are those of the whole sequence in every option
/// Cost       the pairs of the rank's own parts; two exchanges
template <class Query, class Storage, class... Options>
[[nodiscard]] auto attention(Query&& Q, KeyValueCache<Storage>& cache, Options&&... options) {
  return detail::with_opened(
      [&](auto&... opened) {
        detail::check_cache_options<detail::bare_t<decltype(opened)>...>();
        if constexpr (detail::given_v<detail::IntoOption, detail::bare_t<decltype(opened)>...>) {
          cache.attend(Q, opened...);
        } else {
          typename detail::result<detail::bare_t<Query>, detail::GivenCache<Storage>>::type Y;
          auto target = into(Y);
          cache.attend(Q, opened..., target);
          return Y;
        }
      },
      options...);
}

}  // namespace mpi
}  // namespace ATTN_ABI
}  // namespace attn
