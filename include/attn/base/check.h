// attn/base/check.h: one cold function through which every run-time error leaves, and the text of
// its messages.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "config.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Messages are written in the plural; where the number is 1: "key has 1 row".
ATTN_COLD inline std::string with_singulars(std::string message) {
  constexpr const char* kNouns[][2] = {{"columns", "column"},
                                       {"entries", "entry"},
                                       {"features", "feature"},
                                       {"heads", "head"},
                                       {"ids", "id"},
                                       {"key/value heads", "key/value head"},
                                       {"keys", "key"},
                                       {"offsets", "offset"},
                                       {"positions", "position"},
                                       {"queries", "query"},
                                       {"rows", "row"},
                                       {"sequences", "sequence"},
                                       {"tokens are", "token is"},
                                       {"tokens", "token"}};
  for (const auto& noun : kNouns) {
    const std::string plural = std::string(" 1 ") + noun[0];
    for (std::size_t at = message.find(plural); at != std::string::npos;
         at = message.find(plural, at + 1)) {
      message.replace(at + 3, plural.size() - 3, noun[1]);
    }
  }
  return message;
}

/// Ends the call: throws std::invalid_argument, or hands the message to ATTN_FAIL where exceptions
/// are off.
[[noreturn]] ATTN_COLD inline void fail(const std::string& message) {
#if ATTN_EXCEPTIONS
  throw std::invalid_argument(with_singulars(message));
#else
  const std::string whole = with_singulars(message);
#if defined(ATTN_FAIL)
  ATTN_FAIL(whole.c_str());
#else
  std::fputs(whole.c_str(), stderr);
  std::fputc('\n', stderr);
#endif
  std::abort();
#endif
}

/// A part of a message: words, which it refers to, or a number in decimal.
struct TextPart {
  TextPart(const char* part) : words(part) {}
  TextPart(const std::string& part) : words(part.c_str()) {}
  TextPart(long long part) : number(part) {}
  TextPart(long part) : number(part) {}
  TextPart(int part) : number(part) {}

  const char* words = nullptr;
  long long number = 0;
};

/// Joins the parts of a message. Only called on the way to fail().
/// WHY  one function for all messages: as a template over the parts it was fifteen functions in one
///      call of attention, a seventh of the time that clang takes behind its parser
ATTN_COLD inline std::string text(std::initializer_list<TextPart> parts) {
  std::string joined;
  for (const TextPart& part : parts) {
    if (part.words != nullptr) {
      joined += part.words;
    } else {
      joined += std::to_string(part.number);
    }
  }
  return joined;
}
template <class... Parts>
ATTN_INLINE std::string text(const Parts&... parts) {
  return text({TextPart(parts)...});
}

/// A number of an option as messages show it.
template <class Number>
ATTN_COLD std::string number_text(const Number& x) {
  using Wide =
      std::conditional_t<std::is_constructible_v<long double, const Number&>, long double, float>;
  if constexpr (std::is_constructible_v<Wide, const Number&>) {
    char digits[40];
    std::snprintf(digits, sizeof digits, "%.6Lg", static_cast<long double>(Wide(x)));
    return digits;
  } else {
    return "(a scalar)";
  }
}

/// "7x64": how a matrix's shape is written in messages.
ATTN_COLD inline std::string shape_text(Eigen::Index rows, Eigen::Index cols) {
  return text(rows, "x", cols);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
