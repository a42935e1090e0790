// tests/gates_test.cpp: rules that keep include/attn readable, each shown to catch what breaks it.
// build: -Og
// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include "support/source_tree.h"

namespace {

using sources::Findings;
using sources::Tree;

const Tree& library() {
  static const Tree tree = sources::read_tree(
      std::filesystem::path(__FILE__).parent_path().parent_path() / "include" / "attn");
  return tree;
}

/// A tree of one file.
Tree file(const std::string& name, const std::string& text) {
  return {{name, sources::lines_of(text)}};
}
std::string times(int n, const std::string& text) {
  std::string all;
  for (int i = 0; i < n; ++i) all += text;
  return all;
}

TEST(Gates, FindTheLibrary) {
  EXPECT_GT(library().size(), 60u);
  EXPECT_EQ(library().count("attention.h"), 1u);
  EXPECT_EQ(library().count("base/config.h"), 1u);
}

TEST(Gates, NoIncludeRises) {
  EXPECT_EQ(sources::rising_includes(library()), Findings{});

  const auto rises = [](const char* from, const char* line) {
    return !sources::rising_includes(file(from, line)).empty();
  };
  EXPECT_TRUE(rises("base/check.h", "#include \"../mask/tree.h\""));
  EXPECT_TRUE(rises("base/check.h", "#include \"../mask.h\""));
  EXPECT_TRUE(rises("mask/tree.h", "#include \"../kernel/pack.h\""));
  EXPECT_TRUE(rises("kernel/pack.h", "#include \"../call/attend.h\""));
  EXPECT_TRUE(rises("call/attend.h", "#include \"../attention.h\""));
  EXPECT_TRUE(rises("mask.h", "#include \"detail/tree.h\""));
  EXPECT_TRUE(rises("detail/tree.h", ""));
  EXPECT_FALSE(rises("call/attend.h", "#include \"../mask.h\""));
  EXPECT_FALSE(rises("kernel/pack.h", "#include \"../base/load.h\""));
  EXPECT_FALSE(rises("attention.h", "#include \"call/attend.h\""));
}

TEST(Gates, NoTwoFilesShareAName) {
  EXPECT_EQ(sources::shared_names(library()), Findings{});

  EXPECT_FALSE(sources::shared_names({{"mask.h", {}}, {"base/masks.h", {}}}).empty());
  EXPECT_FALSE(sources::shared_names({{"rotary.h", {}}, {"kernel/rotary.h", {}}}).empty());
  EXPECT_TRUE(sources::shared_names({{"rotary.h", {}}, {"kernel/rotate_row.h", {}}}).empty());
}

TEST(Gates, LinesEndAtColumn100ButInTables) {
  EXPECT_EQ(sources::long_lines(library()), Findings{});

  const std::string words = times(20, "word ");  // 100 columns and its two slashes
  EXPECT_FALSE(sources::long_lines(file("mask.h", "//" + words)).empty());
  EXPECT_FALSE(sources::long_lines(file("mask.h", "// WHY  " + words)).empty());
  EXPECT_FALSE(sources::long_lines(file("mask.h", "int table;   // " + words)).empty());
  EXPECT_TRUE(sources::long_lines(file("mask.h", "// Shapes   Q [L, d]   " + words)).empty());
  EXPECT_TRUE(sources::long_lines(file("mask.h", "// " + times(32, "∑· "))).empty());
}

TEST(Gates, FunctionsEndAtLine60) {
  EXPECT_EQ(sources::long_functions(library()), Findings{});

  EXPECT_FALSE(
      sources::long_functions(file("mask.h", "void f(int a) {\n" + times(60, "  ++a;\n") + "}\n"))
          .empty());
  EXPECT_FALSE(
      sources::long_functions(file("mask.h", "struct S {\n  S(int a) : a_(a) {\n" +
                                                 times(60, "    if (a) {}\n") + "  }\n};\n"))
          .empty());
  EXPECT_TRUE(
      sources::long_functions(file("mask.h", "void f(int a) {\n" + times(58, "  ++a;\n") + "}\n"))
          .empty());
  EXPECT_TRUE(
      sources::long_functions(file("mask.h", "struct S {\n" + times(80, "int f();\n") + "};\n"))
          .empty());
}

TEST(Gates, FilesHaveAtMost400Lines) {
  EXPECT_EQ(sources::long_files(library()), Findings{});

  EXPECT_FALSE(sources::long_files(file("mask.h", times(401, "\n"))).empty());
  EXPECT_TRUE(sources::long_files(file("mask.h", times(400, "\n"))).empty());
}

TEST(Gates, NoTemplateTakesABool) {
  EXPECT_EQ(sources::bool_template_parameters(library()), Findings{});

  const auto caught = [](const char* text) {
    return !sources::bool_template_parameters(file("mask.h", text)).empty();
  };
  EXPECT_TRUE(caught("template <bool Hidden>\nvoid f();"));
  EXPECT_TRUE(caught("template <class A,\n          bool Hidden = true>\nvoid f();"));
  EXPECT_FALSE(
      caught("template <class A, class B = std::enable_if_t<(sizeof(A) > 1)>>\nbool f(bool a);"));
}

TEST(Gates, EigenInternalsAndCompilersAreNamedInOneFileEach) {
  EXPECT_EQ(sources::eigen_internals(library()), Findings{});
  EXPECT_EQ(sources::compiler_conditions(library()), Findings{});

  EXPECT_FALSE(sources::eigen_internals(file("base/load.h", "Eigen::internal::pload(p)")).empty());
  EXPECT_TRUE(sources::eigen_internals(file("base/simd.h", "Eigen::internal::pload(p)")).empty());
  EXPECT_FALSE(sources::compiler_conditions(file("mask.h", "#if defined(__clang__)")).empty());
  EXPECT_FALSE(sources::compiler_conditions(file("mask.h", "  # ifdef _MSC_VER")).empty());
  EXPECT_TRUE(sources::compiler_conditions(file("mask.h", "#if ATTN_VECTOR_TYPES")).empty());
}

TEST(Gates, NothingPrintsOrIsLeftOpen) {
  EXPECT_EQ(sources::leftovers(library()), Findings{});

  EXPECT_FALSE(sources::leftovers(file("mask.h", "std::cout << 1;")).empty());
  EXPECT_FALSE(sources::leftovers(file("mask.h", "// TODO later")).empty());
}

TEST(Gates, WhatIsIncludedIsUsed) {
  EXPECT_EQ(sources::unused_includes(library()), Findings{});

  Tree tree = file("base/check.h", "[[noreturn]] void fail(const char* message);");
  tree["base/load.h"] = {"#include \"check.h\"", "int load();"};
  EXPECT_FALSE(sources::unused_includes(tree).empty());
  tree["base/load.h"] = {"#include \"check.h\"", "int load() { fail(\"\"); }"};
  EXPECT_TRUE(sources::unused_includes(tree).empty());
}

TEST(Gates, ConstantsAreUsed) {
  EXPECT_EQ(sources::unused_constants(library()), Findings{});

  EXPECT_FALSE(sources::unused_constants(file("mask.h", "constexpr int kRows = 3;")).empty());
  EXPECT_TRUE(sources::unused_constants(file("mask.h", "constexpr int kRows = 3;\nint r = kRows;"))
                  .empty());
}

}  // namespace
