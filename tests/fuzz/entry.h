// tests/fuzz/entry.h: what libFuzzer starts with: the first check that fails ends the program, and
// its bytes are kept.
// SPDX-License-Identifier: MIT
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

namespace fuzz {

class EndOfProgram : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) std::abort();  // libFuzzer takes no notice of GoogleTest's own trap
  }
};

}  // namespace fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  testing::UnitTest::GetInstance()->listeners().Append(new fuzz::EndOfProgram);
  return 0;
}
