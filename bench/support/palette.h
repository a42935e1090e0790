// bench/support/palette.h: the colours of pictures.
// SPDX-License-Identifier: MIT
#pragma once

#include "../../examples/support/svg.h"

namespace bench {

/// Of light pages, each with its like on dark ones.
struct Colour {
  const char *light, *dark;
};
constexpr Colour kPage = {"white", "#0d1117"}, kText = {"#1f2328", "#e6edf3"},
                 kMuted = {"#59636e", "#9198a1"}, kGrid = {"#d1d9e0", "#3d444d"},
                 kOurs = {"#0969da", "#4493f8"}, kOther = {"#d1622b", "#e08a4f"},
                 kByHand = {"#a8b1ba", "#6e7681"};

/// Pictures are drawn in light colours; a reader's dark page has the others.
inline void add_dark_colours(examples::Svg& svg) {
  for (const Colour& colour : {kPage, kText, kMuted, kGrid, kOurs, kOther, kByHand})
    svg.in_the_dark(colour.light, colour.dark);
}

}  // namespace bench
