// tests/fuzz_corpus_test.cpp: what fuzzing has found to be different from all else, replayed: the
// inputs in fuzz/corpus/ of six harnesses in fuzz/ (tests/fuzz/run finds more, and runs the others).
// SPDX-License-Identifier: MIT
// build: -Og
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "fuzz/attention.h"
#include "fuzz/cache.h"
#include "fuzz/gradients.h"
#include "fuzz/linear.h"
#include "fuzz/views.h"

namespace {

std::vector<std::uint8_t> bytes_of(const std::string& hexadecimal) {
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i + 1 < hexadecimal.size(); i += 2)
    bytes.push_back(std::uint8_t(std::stoi(hexadecimal.substr(i, 2), nullptr, 16)));
  return bytes;
}

/// No bytes at all, and each line of the corpus.
void replay(const std::string& name, void (*harness)(const std::uint8_t*, std::size_t)) {
  harness(nullptr, 0);
  const auto folder = std::filesystem::path(__FILE__).parent_path() / "fuzz" / "corpus";
  std::ifstream corpus(folder / (name + ".txt"));
  ASSERT_TRUE(corpus) << name;
  int inputs = 0;
  for (std::string line; std::getline(corpus, line) && !testing::Test::HasFailure(); ++inputs) {
    SCOPED_TRACE(name + ": " + line);
    const std::vector<std::uint8_t> bytes = bytes_of(line);
    harness(bytes.data(), bytes.size());
  }
  EXPECT_GT(inputs, 20);
}

TEST(FuzzCorpus, OfAttention) { replay("attention", fuzz::attention); }
TEST(FuzzCorpus, OfPlainAttention) { replay("plain", fuzz::plain); }
TEST(FuzzCorpus, OfGradients) { replay("gradients", fuzz::gradients); }
TEST(FuzzCorpus, OfLinearLayers) { replay("linear", fuzz::linear); }
TEST(FuzzCorpus, OfTheCache) { replay("cache", fuzz::cache); }
TEST(FuzzCorpus, OfViews) { replay("views", fuzz::views); }

}  // namespace
