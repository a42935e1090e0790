// tests/support/error_of.h: the message with which a call is refused.
// SPDX-License-Identifier: MIT
#pragma once

#include <stdexcept>
#include <string>

namespace support {

/// What the std::invalid_argument says that the call throws.
template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace support
