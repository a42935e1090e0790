// bench/peers/format.h: numbers as readers want them.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <string>

namespace bench {

template <class... Numbers>
std::string formatted(const char* pattern, Numbers... numbers) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, numbers...);
  return text;
}

/// Three digits or four: 0.0012, 0.123, 1.23, 12.3, 123.
inline std::string milliseconds(double ms) {
  const int decimals = ms < 0.1 ? 4 : ms < 1 ? 3 : ms < 10 ? 2 : ms < 100 ? 1 : 0;
  return formatted("%.*f", decimals, ms);
}

}  // namespace bench
