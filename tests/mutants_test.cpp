// tests/mutants_test.cpp: the list of the mutation check (tests/mutants/run) still fits the library: each fault's text stands
// in its file once, and its test is there.
// SPDX-License-Identifier: MIT
// build: -Og
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Mutant {
  std::string name, text, replacement;
  std::map<std::string, std::string> fields;
};

const std::filesystem::path kTests = std::filesystem::path(__FILE__).parent_path();

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// tests/mutants/list, whose head says how it is written.
std::vector<Mutant> parse(const std::string& list) {
  std::vector<Mutant> mutants;
  const auto add = [](std::string& text, const std::string& line) {
    if (!text.empty()) text += '\n';
    text += line.size() > 2 ? line.substr(2) : "";
  };
  std::istringstream lines(list);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    if (line[0] == '-') {
      add(mutants.back().text, line);
    } else if (line[0] == '+') {
      add(mutants.back().replacement, line);
    } else if (line[0] == ' ') {
      std::istringstream words(line);
      std::string field, value;
      words >> field;
      std::getline(words >> std::ws, value);
      mutants.back().fields[field] = value;
    } else {
      mutants.push_back({line, "", "", {}});
    }
  }
  return mutants;
}

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

/// What does not fit, a sentence each.
std::vector<std::string> misfits(const std::vector<Mutant>& mutants) {
  std::vector<std::string> found;
  std::set<std::string> names;
  for (const Mutant& mutant : mutants) {
    const auto field = [&](const char* name) {
      const auto at = mutant.fields.find(name);
      return at == mutant.fields.end() ? std::string() : at->second;
    };
    const auto say = [&](const std::string& what) { found.push_back(mutant.name + ": " + what); };
    if (!names.insert(mutant.name).second) say("the name is taken");
    if (mutant.text.empty()) say("no text is replaced");
    if (mutant.text == mutant.replacement) say("the text is replaced by itself");
    if (field("breaks").empty()) say("breaks nothing");
    const std::string test = field("test").substr(0, field("test").find(' '));
    if (test.empty() || !std::filesystem::exists(kTests / (test + ".cpp")))
      say("there is no test program \"" + test + "\"");
    const std::size_t count =
        occurrences(read(kTests.parent_path() / "include" / "attn" / field("file")), mutant.text);
    if (count != 1)
      say("its text occurs " + std::to_string(count) + " times in " + field("file") +
          ", needs once: tests/mutants/list has to follow the library");
  }
  return found;
}

TEST(Mutants, FitTheLibrary) {
  const auto mutants = parse(read(kTests / "mutants" / "list"));
  EXPECT_GE(mutants.size(), 60u);
  for (const std::string& misfit : misfits(mutants)) ADD_FAILURE() << misfit;
}

TEST(Mutants, ThatDoNotFitAreNamed) {
  const std::string good =
      "one\n  file mask/interval.h\n  breaks j <= p\n  test mask_test CausalMask.*\n"
      "- {0, row.position + 1}; }\n+ {0, row.position + 2}; }\n";
  EXPECT_TRUE(misfits(parse(good)).empty());
  EXPECT_EQ(misfits(parse(good + good)).size(), 1u);  // one name twice
  const auto with = [&](const std::string& part, const std::string& other) {
    std::string bad = good;
    return misfits(parse(bad.replace(bad.find(part), part.size(), other))).size();
  };
  EXPECT_EQ(with("- {0, row.position + 1}", "- {7, row.position + 1}"), 1u);  // not there
  EXPECT_EQ(with("- {0, row.position + 1}; }", "- KeyRange"), 1u);            // there often
  EXPECT_EQ(with("mask_test", "mosk_test"), 1u);
  EXPECT_EQ(with("breaks j <= p", "breaks"), 1u);
}

}  // namespace
