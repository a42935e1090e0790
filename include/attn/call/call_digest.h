// attn/call/call_digest.h: what a state remembers of its forward call, so that a backward pass of
// another call is refused in words.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>

#include "bound_options.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Options that are told apart by whether they are given, and what messages call them.
/// (What masks, biases and functors hold takes as long to compare as the call takes.)
using DigestKinds = Order<MaskOption, SoftcapOption, BiasOption, AlibiOption, ScoreOption,
                          SinkOption, RotaryOption>;
inline constexpr const char* kDigestNames[] = {"a mask",          "a softcap", "a bias", "alibi",
                                               "a score functor", "a sink",    "rotary"};

/// A number that stands for others in their order.
class OrderedHash {
 public:
  void add(Index n) {
    value_ = (value_ ^ std::uint64_t(n)) * 0x9e3779b97f4a7c15u;
    value_ ^= value_ >> 32;
  }
  friend bool operator==(const OrderedHash& a, const OrderedHash& b) {
    return a.value_ == b.value_;
  }

 private:
  std::uint64_t value_ = 0;
};

/// A call in numbers: its sizes, positions, and options.
template <class Scalar>
struct CallDigest {
  Index sequences = 0, keys = 0, kv_heads = 0, key_dim = 0;
  OrderedHash lengths, offsets, key_lengths;  ///< of all sequences
  Scalar scale = Scalar(0), softcap = Scalar(0);
  unsigned kinds = 0;  ///< bit n: DigestKinds' number n is given
  std::optional<Dropout> dropout;

  /// Of what a call understands of its options. O(sequences).
  template <class Bound>
  static CallDigest of(const Bound& bound) {
    const CallShape& shape = bound.shape;
    CallDigest digest;
    digest.sequences = shape.sequences();
    digest.keys = shape.keys.total();
    digest.kv_heads = shape.kv_heads;
    digest.key_dim = shape.key_dim;
    for (Index b = 0; b < shape.sequences(); ++b) {
      Index seen = shape.key_length(b);
      digest.lengths.add(shape.queries.length(b));
      digest.lengths.add(seen);
      digest.offsets.add(bound.offset(b));
      bound.asked.each(
          [&](const auto& option) { seen = position_t<decltype(option)>::keys(option, b, seen); });
      digest.key_lengths.add(seen);
    }
    digest.scale = bound.scale;
    digest.add_options(bound.asked);
    return digest;
  }

  /// Refuses a call that is not the one of the forward pass.
  void check(const char* function, const CallDigest& now) const {
    check_size(function, "sequences", sequences, now.sequences);
    check_size(function, "keys", keys, now.keys);
    check_size(function, "key/value heads", kv_heads, now.kv_heads);
    check_size(function, "features of queries and keys", key_dim, now.key_dim);
    check_same(function, "lengths of the sequences", lengths, now.lengths);
    check_same(function, "query offsets", offsets, now.offsets);
    check_same(function, "key lengths", key_lengths, now.key_lengths);
    check_number(function, "scale", scale, now.scale);
    for (unsigned n = 0; n < sizeof kDigestNames / sizeof *kDigestNames; ++n) {
      const bool had = (kinds >> n & 1) != 0, has = (now.kinds >> n & 1) != 0;
      if (had && !has)
        fail(text(function, ": the forward pass had ", kDigestNames[n], ", this call none"));
      if (has && !had)
        fail(text(function, ": this call has ", kDigestNames[n], ", the forward pass had none"));
    }
    check_number(function, "softcap", softcap, now.softcap);
    if (!same_dropout(now)) {
      fail(text(function, ": the forward pass had ", dropout_text("no dropout"), ", this call ",
                now.dropout_text("none")));
    }
  }

 private:
  template <class Asked>
  void add_options(const Asked& asked) {
    add_kinds<Asked>(DigestKinds{});
    if constexpr (Asked::template has<SoftcapOption>())
      softcap = Scalar(asked.template get<SoftcapOption>().cap);
    if constexpr (Asked::template has<DropoutOption>())
      dropout = asked.template get<DropoutOption>();
  }
  template <class Asked, class... Kinds>
  void add_kinds(Order<Kinds...>) {
    static_assert(sizeof...(Kinds) == sizeof kDigestNames / sizeof *kDigestNames,
                  "a name for each");
    unsigned n = 0;
    ((kinds |= (Asked::template has<Kinds>() ? 1u : 0u) << n, ++n), ...);
  }

  bool same_dropout(const CallDigest& now) const {
    if (!dropout || !now.dropout) return !dropout && !now.dropout;
    return dropout->dropped == now.dropout->dropped && dropout->seed == now.dropout->seed &&
           dropout->stream == now.dropout->stream;
  }
  std::string dropout_text(const char* none) const {
    if (!dropout) return none;
    return text("dropout(", number_text(dropout->p), ", ", std::to_string(dropout->seed), ", ",
                std::to_string(dropout->stream), ")");
  }

  static void check_size(const char* function, const char* name, Index had, Index has) {
    if (had != has)
      fail(text(function, ": the forward pass had ", had, " ", name, ", this call has ", has));
  }
  static void check_same(const char* function, const char* names, const OrderedHash& had,
                         const OrderedHash& has) {
    if (!(had == has))
      fail(text(function, ": the forward pass had other ", names, " than this call"));
  }
  static void check_number(const char* function, const char* name, const Scalar& had,
                           const Scalar& has) {
    if (!equal(had, has)) {
      fail(text(function, ": the forward pass had ", name, "(", number_text(had), "), this call ",
                name, "(", number_text(has), ")"));
    }
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
