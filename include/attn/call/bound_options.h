// attn/call/bound_options.h: what a pass understands of its options, forward and backward alike:
// masks, modifiers, positions, rotation, dropout, scale.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/problem.h"
#include "options.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The offset of each sequence's query positions.
template <class Source, class Asked>
struct QueryOffsets {
  const Source& source;
  const CallShape& shape;
  const Asked& asked;
  Index operator()(Index sequence) const { return source.query_offset(shape, sequence, asked); }
  /// Refuses what is left open.
  void check() const {
    for (Index b = 0; b < shape.sequences(); ++b) (*this)(b);
  }
};

/// The factor of q·k: 1/√d_k, unless an option says otherwise.
template <class Scalar, class Asked>
Scalar scale_of(const CallShape& shape, const Asked& asked) {
  if constexpr (Asked::template has<ScaleOption>()) {
    return bind<ScaleOption, Scalar>(shape, asked);
  } else {
    using std::sqrt;
    const Scalar root = sqrt(from_index<Scalar>(shape.key_dim));
    return Scalar(1) / root;
  }
}

/// How queries and keys turn, or Absent.
template <class Scalar, class Source, class Asked, class Offset>
auto rotation_of(const Source& source, const CallShape& shape, const Asked& asked,
                 const Offset& offset) {
  if constexpr (Asked::template has<RotaryOption>()) {
    return source.template rotation<Scalar>(shape, asked.template get<RotaryOption>(), offset);
  } else {
    return Absent{};
  }
}
/// What the products of a call multiply: BfloatProducts, or Absent.
template <class Scalar, class Asked>
constexpr auto products_of() {
  if constexpr (Asked::template has<NativeBfloat16Option>()) {
    check_native_bfloat16<Scalar>();
    // What is refused has said so: Absent spares it the errors that would follow.
    constexpr bool kServed = has_native_bfloat16 && std::is_same_v<Scalar, float>;
    return std::conditional_t<kServed, kernel::BfloatProducts, Absent>{};
  } else {
    return Absent{};
  }
}

template <class Rotation>
Index angles_of(const Rotation& rotation) {
  return rotation.scalars();
}
inline Index angles_of(Absent) { return 0; }
template <class Rotation, class Scalar>
auto fill_angles(const Rotation& rotation, Scalar* memory) {
  return rotation.fill(memory);
}
template <class Scalar>
Absent fill_angles(Absent, Scalar*) {
  return {};
}

/// The options that say how queries meet keys, bound to the shape of a call, and refused where they
/// cannot be.
template <class Scalar, class Source, class Asked>
struct BoundOptions {
  using Offset = QueryOffsets<Source, Asked>;
  const CallShape& shape;
  const Source& source;
  const Asked& asked;
  const decltype(source.masks(shape, asked)) mask;
  const decltype(bind_modifiers<Scalar>(shape, asked)) modify;
  const Offset offset;
  const decltype(rotation_of<Scalar>(source, shape, asked, offset)) rotation;
  const decltype(bind<DropoutOption, Scalar>(shape, asked)) dropout;
  const Scalar scale;

  BoundOptions(const CallShape& s, const Source& from, const Asked& a)
      : shape(s),
        source(from),
        asked(a),
        mask(source.masks(shape, asked)),
        modify(bind_modifiers<Scalar>(shape, asked)),
        offset{source, shape, asked},
        rotation(rotation_of<Scalar>(source, shape, asked, checked(offset))),
        dropout(bind<DropoutOption, Scalar>(shape, asked)),
        scale(scale_of<Scalar>(shape, asked)) {}
  BoundOptions(const BoundOptions&) = delete;  // its parts refer to one another

  /// The call as the engine sees it, but for the angles that are filled into its scratch.
  template <class Query, class Output, class Residual, class Saved, class Parts>
  auto problem(const Operand<Query>& query, const Output& output, const Residual& residual,
               const Saved& saved, const Parts& parts) const {
    using Angles = decltype(fill_angles(rotation, static_cast<Scalar*>(nullptr)));
    return kernel::Problem{shape,
                           query,
                           source.key(shape),
                           source.value(shape),
                           output,
                           scale,
                           mask,
                           modify,
                           kernel::OffsetOf(offset),
                           residual,
                           saved,
                           Angles{},
                           parts,
                           dropout,
                           products_of<Scalar, Asked>()};
  }

 private:
  static const Offset& checked(const Offset& offset) {
    offset.check();
    return offset;
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
