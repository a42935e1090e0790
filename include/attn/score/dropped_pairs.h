// attn/score/dropped_pairs.h: which pairs of query and key dropout() leaves out, bound to a call.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../base/asked.h"
#include "../base/check.h"
#include "../base/keyed_bits.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct DropoutOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1,
                  "attn: two dropouts in one call: write one, dropout(p, seed, stream)");
  }
};

/// The pairs of one query row and head.
class RowDropout {
 public:
  RowDropout(std::uint64_t key, std::uint32_t dropped) : bits_(key), dropped_(dropped) {}

  bool keeps(Index key) const { return bits_(key) >= dropped_; }
  /// Which of the keys key, …, key + W − 1 stay; `key` is a multiple of W.
  template <class S>
  ATTN_INLINE typename S::Mask keeps(Index key) const {
    return bits_.template at_least<S>(dropped_, key);
  }
  /// The same of C packets from `key` on, a multiple of C · W; cheapest of 32 keys.
  template <class S, std::size_t C>
  ATTN_INLINE void keeps(Index key, typename S::Mask (&kept)[C]) const {
    bits_.template at_least<S>(dropped_, key, kept);
  }
  /// x where pairs stay, else `dropped`; cheaper than by masks.
  template <class S, std::size_t C>
  ATTN_INLINE void keep(Index key, typename S::Packet (&x)[C],
                        const typename S::Packet& dropped) const {
    bits_.template select<S>(dropped_, key, x, dropped);
  }

 private:
  KeyedBits bits_;
  std::uint32_t dropped_;
};

/// What dropout() gives; nothing of it depends on the call.
/// WHY  seed and stream one under the other, not xor-ed: streams 0, 1, … of one seed would else be
///      those of its neighbours, in another order
template <class Scalar>
struct BoundDropout {
  std::uint64_t key;      ///< of seed and stream
  std::uint32_t dropped;  ///< of 65536
  Scalar scale;           ///< 1 / (1 − p), of the weights that stay

  RowDropout of(const QueryRow& row) const { return of(row.sequence, row.head, row.position); }
  RowDropout of(Index sequence, Index head, Index position) const {
    const auto number = [](Index n) { return static_cast<std::uint64_t>(n); };
    const std::uint64_t of_head = key_under(key, number(sequence) << 32 ^ number(head));
    return {key_under(of_head, number(position)), dropped};
  }
};
struct Dropout : option_base {
  using Kind = DropoutOption;
  double p;  ///< as given
  std::uint64_t seed, stream;
  std::uint32_t dropped;  ///< p as it is taken: of 65536 pairs

  Dropout(double rate, std::uint64_t s, std::uint64_t n) : p(rate), seed(s), stream(n) {
    const double of_all = is_finite(p) ? p * kAll : -1;
    dropped = of_all >= 0 && of_all < kAll ? static_cast<std::uint32_t>(of_all + 0.5) : kAll;
    if (dropped == kAll) {
      fail(text("attn::dropout: p is ", number_text(p),
                ", needs 0 <= p < 1, at most what rounds to 65535/65536"));
    }
  }
  template <class Scalar, class Shape>
  BoundDropout<Scalar> bind(const Shape&) const {
    return {key_under(key_under(0, seed), stream), dropped,
            Scalar(Scalar(int(kAll)) / Scalar(int(kAll - dropped)))};
  }

 private:
  static constexpr std::uint32_t kAll = 65536;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
