// tests/message_text_test.cpp: how the text of a message is put together.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/base/check.h>

#include <gtest/gtest.h>

#include <limits>

namespace {

using attn::detail::text;
using attn::detail::TextPart;

TEST(MessageText, JoinsWordsAndNumbers) {
  const char* const function = "attention";
  const std::string name = "query";
  const Eigen::Index rows = 7;
  EXPECT_EQ(text(function, ": ", name, " has ", rows, " rows, not ", 12),
            "attention: query has 7 rows, not 12");
  EXPECT_EQ(text(name + " and key"), "query and key");
  EXPECT_EQ(text(""), "");
}

TEST(MessageText, ShowsEveryIntegerInDecimal) {
  EXPECT_EQ(text(0, " ", -1, " ", 1L), "0 -1 1");
  EXPECT_EQ(text(std::numeric_limits<long long>::min()), "-9223372036854775808");
  EXPECT_EQ(text(std::numeric_limits<long long>::max()), "9223372036854775807");
}

// All messages share one function: what is a template is only how its parts are written down.
TEST(MessageText, IsBuiltByOneFunction) {
  std::string (*const build)(std::initializer_list<TextPart>) = &text;
  EXPECT_EQ(build({"key has ", 2L, " heads"}), "key has 2 heads");
  EXPECT_EQ(build({}), "");
}

TEST(MessageText, NamesOneThingInTheSingular) {
  EXPECT_EQ(attn::detail::with_singulars("key has 1 rows"), "key has 1 row");
  EXPECT_EQ(attn::detail::with_singulars("key has 11 rows"), "key has 11 rows");
  EXPECT_EQ(attn::detail::shape_text(1, 64), "1x64");
}

}  // namespace
