// tests/training_examples_test.cpp: what the training examples make beside their models: files of
// weights, pictures, sentences and their labels.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "../examples/07_classify/grammar.h"
#include "../examples/training/heat_map.h"
#include "../examples/training/loss_curve.h"
#include "../examples/training/weights_file.h"
#include "support/matrix_matchers.h"

namespace {

using training::Engine;
using training::Index;
using Words = std::vector<std::string>;
using Matrix = training::Matrix<float>;

// ---- Files of weights ---------------------------------------------------------------------------

/// A model of a matrix of Eigen's own order, a row-major one and a vector.
struct Three {
  Eigen::MatrixXf kernel;
  Matrix table;
  training::Row<float> bias;
  const char* name_of_bias = "bias";

  Three(Index rows, Index cols)
      : kernel(Eigen::MatrixXf::Random(rows, cols)),
        table(Matrix::Random(rows, cols)),
        bias(training::Row<float>::Random(cols)) {}
  template <class Visit>
  void each_layer(const Visit& visit) {
    visit("layer.0", *this);
  }
  template <class F>
  void for_each_parameter(const F& f) {
    f("kernel", kernel, kernel);
    f("table", table, table);
    f(name_of_bias, bias, bias);
  }
};

const std::string kFile = "training_examples_test.safetensors";  // in the folder where tests run
std::string refusal(Three& model) {
  const Three was = model;
  try {
    training::restore_weights_file(model, kFile);
  } catch (const std::runtime_error& error) {
    EXPECT_TRUE(support::same_bits(model.kernel, was.kernel));
    EXPECT_TRUE(support::same_bits(model.table, was.table));
    return error.what();
  }
  return "nothing was refused";
}

TEST(WeightsFile, ComesBackToTheBit) {
  Three saved(3, 5), restored(3, 5);
  ASSERT_FALSE(support::same_bits(saved.kernel, restored.kernel));
  training::save_weights_file(saved, kFile);
  training::restore_weights_file(restored, kFile);
  EXPECT_TRUE(support::same_bits(saved.kernel, restored.kernel));
  EXPECT_TRUE(support::same_bits(saved.table, restored.table));
  EXPECT_TRUE(support::same_bits(saved.bias, restored.bias));
  std::filesystem::remove(kFile);
}

TEST(WeightsFile, IsWhatItsFormatSays) {
  Three saved(3, 5);
  training::save_weights_file(saved, kFile);
  const auto file = safetensors::File::read(kFile);
  EXPECT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensor("layer.0.kernel").shape, (safetensors::Shape{3, 5}));
  EXPECT_EQ(file.tensor("layer.0.bias").shape, (safetensors::Shape{5}));
  EXPECT_TRUE(support::same_bits(file.matrix("layer.0.kernel", 3, 5), Matrix(saved.kernel)));
  std::filesystem::remove(kFile);
}

TEST(WeightsFile, RefusesThatOfAnotherModel) {
  Three model(3, 5), wider(3, 6), named(3, 5);
  training::save_weights_file(model, kFile);
  EXPECT_EQ(refusal(wider), "tensor layer.0.kernel is F32 [3, 5], needs F32 [3, 6]");
  named.name_of_bias = "shift";
  EXPECT_EQ(refusal(named),
            "there is no tensor \"layer.0.shift\" among the 3 of the file, of which the first is "
            "\"layer.0.bias\"");
  std::filesystem::remove(kFile);
  EXPECT_EQ(refusal(model), "there is no such file, or it may not be read");

  safetensors::Writer writer;
  const std::vector<float> one = {1};
  for (const char* name : {"kernel", "table", "bias", "more"})
    writer.add(std::string("layer.0.") + name, "F32", {1, 1}, one);
  std::ofstream(kFile, std::ios::binary) << writer.bytes();
  Three small(1, 1);
  EXPECT_EQ(refusal(small), "tensor layer.0.bias is F32 [1, 1], needs F32 [1]");
  std::filesystem::remove(kFile);
}

// ---- Words --------------------------------------------------------------------------------------

TEST(Words, AreSplitAndMeasured) {
  EXPECT_EQ(training::split_words("  a bc  d "), (Words{"a", "bc", "d"}));
  EXPECT_EQ(training::split_characters("aé三░"), (Words{"a", "é", "三", "░"}));
  EXPECT_EQ(training::width_on_screen("aé三░"), 5u);
  EXPECT_EQ(training::split_characters(""), Words{});
}

TEST(Words, HaveNumbers) {
  training::Vocabulary vocabulary;
  EXPECT_EQ(vocabulary.add("a"), 0);
  EXPECT_EQ(vocabulary.add("b"), 1);
  EXPECT_EQ(vocabulary.add("a"), 0);
  EXPECT_EQ(vocabulary.size(), 2);
  EXPECT_EQ(vocabulary.ids({"b", "a", "b"}), (std::vector<int>{1, 0, 1}));
  EXPECT_EQ(vocabulary.words({1, 0}), (Words{"b", "a"}));
  EXPECT_THROW((void)vocabulary.ids({"c"}), std::invalid_argument);
}

// ---- Pictures -----------------------------------------------------------------------------------

/// What is wrong with a text as XML: tags that do not pair, attributes without quotes, bare & or <.
/// Counts the elements.
struct Xml {
  std::string problem;
  std::multiset<std::string> elements;

  explicit Xml(const std::string& text) {
    std::vector<std::string> open;
    std::size_t at = 0;
    while (at < text.size() && problem.empty()) {
      if (text[at] == '&') {
        const std::string entity = text.substr(at, text.find(';', at) + 1 - at);
        if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;") problem = "a bare &";
      } else if (text[at] == '>') {
        problem = "a bare >";
      } else if (text[at] == '<') {
        const std::size_t end = text.find('>', at);
        if (end == std::string::npos) {
          problem = "a tag does not end";
          break;
        }
        read_tag(text.substr(at + 1, end - at - 1), open);
        at = end;
      }
      ++at;
    }
    if (problem.empty() && !open.empty()) problem = open.back() + " does not end";
  }

 private:
  void read_tag(std::string tag, std::vector<std::string>& open) {
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) problem = tag + " closes nothing";
      if (!open.empty()) open.pop_back();
      return;
    }
    const bool closed = tag.back() == '/';
    if (closed) tag.pop_back();
    const std::string name = tag.substr(0, tag.find(' '));
    elements.insert(name);
    if (!closed) open.push_back(name);
    // name="value" name="value"
    std::string rest = tag.substr(name.size());
    while (!rest.empty() && rest != " ") {
      const std::size_t equals = rest.find("=\""), quote = rest.find('"', equals + 2);
      if (rest[0] != ' ' || equals == std::string::npos || quote == std::string::npos ||
          rest.substr(0, quote).find('<') != std::string::npos) {
        problem = "no attribute: " + rest;
        return;
      }
      rest = rest.substr(quote + 1);
    }
  }
};

TEST(Xml, FindsWhatIsWrong) {
  EXPECT_EQ(Xml("<a b=\"1\" c=\"2\"><d/>x &lt; y</a>").problem, "");
  EXPECT_NE(Xml("<a>").problem, "");
  EXPECT_NE(Xml("<a></b>").problem, "");
  EXPECT_NE(Xml("<a>x & y</a>").problem, "");
  EXPECT_NE(Xml("<a>x > y</a>").problem, "");
  EXPECT_NE(Xml("<a b=1></a>").problem, "");
  EXPECT_NE(Xml("<a b=\"1></a>").problem, "");
}

TEST(Pictures, ChangeColoursOnDarkPages) {
  examples::Svg picture(10, 10);
  picture.text(1, 9, "small", "start", 0, "black", 11);
  picture.in_the_dark("black", "#eee");
  const Xml svg(picture.str());
  EXPECT_EQ(svg.problem, "");
  EXPECT_EQ(svg.elements.count("style"), 1u);
  EXPECT_NE(picture.str().find("(prefers-color-scheme: dark) { [fill=\"black\"] { fill: #eee }"),
            std::string::npos);
  EXPECT_NE(picture.str().find("fill=\"black\" font-size=\"11\">small<"), std::string::npos);
}

TEST(Pictures, OfAttentionAreWellFormed) {
  training::HeatMap map{{"三", "<b>"}, {"x", "&", "\"q\""}, Matrix::Random(2, 3).cwiseAbs()};
  const Xml svg(training::draw(map, "a < b & c").str());
  EXPECT_EQ(svg.problem, "");
  EXPECT_EQ(svg.elements.count("rect"), 1u + 6u);
  EXPECT_EQ(svg.elements.count("text"), 1u + 2u + 3u);
  map.weights.setZero();
  EXPECT_EQ(Xml(training::draw(map, "").str()).problem, "");
}

TEST(Pictures, OfLossesAreWellFormed) {
  std::vector<double> losses;
  for (int n = 0; n < 1234; ++n) losses.push_back(2.0 / (n + 1));
  const Xml svg(training::draw_losses({{"one", losses}, {"two", {1, 0}}}, "Loss").str());
  EXPECT_EQ(svg.problem, "");
  EXPECT_EQ(svg.elements.count("polyline") > 3, true);
  EXPECT_EQ(training::smoothed(losses).size(), 95u);  // runs of 13
  EXPECT_EQ(training::smoothed({1, 2}), (std::vector<double>{1, 2}));
  EXPECT_EQ(Xml(training::draw_losses({{"none", {}}}, "").str()).problem, "");
}

TEST(Pictures, InTheTerminal) {
  testing::internal::CaptureStdout();
  Matrix weights(2, 3);
  weights << 0.5f, 0, 0.1f, 0, 0.3f, 0.2f;
  training::print(training::HeatMap{{"was", "三"}, {"a", "no", "三"}, weights});
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            "         n   \n"
            "       a o 三\n"
            "  was  ██  ··\n"
            "   三    ▒▒░░\n");
}

// ---- Sentences about films ----------------------------------------------------------------------

/// The label by the rule, read from the words alone.
bool praises(const Words& words) {
  const std::set<std::string> turning = {"not", "never", "hardly", "nobody", "few", "far"};
  std::vector<std::vector<std::string>> clauses(1);
  bool although_first = false, although_second = false, but = false;
  for (std::size_t n = 0; n < words.size(); ++n) {
    const bool conjunction_but =
        words[n] == "but" && words[n - 1] != "anything" && words[n - 1] != "nothing";
    if (words[n] == "although" && n == 0) {
      although_first = true;
    } else if (words[n] == "although" || words[n] == "and" || words[n] == "," || conjunction_but) {
      although_second = words[n] == "although", but = conjunction_but;
      clauses.emplace_back();
    } else {
      clauses.back().push_back(words[n]);
    }
  }
  EXPECT_EQ(clauses.size() == 1 || although_first || although_second || but ||
                std::count(words.begin(), words.end(), "and") == 1,
            true);
  const auto& main = clauses[although_first || but ? 1 : 0];
  const auto& adjectives = film::kAdjectives;
  const auto at = std::find(adjectives.begin(), adjectives.end(), main.back());
  bool praise = at - adjectives.begin() < 12;
  for (const std::string& word : main) {
    if (turning.count(word) != 0 || word == "anything") praise = !praise;
  }
  return praise;
}

TEST(Films, LabelsFollowFromTheRule) {
  Engine engine(1);
  int praised = 0;
  std::vector<int> of_kind(film::kKinds.size());
  const training::Vocabulary vocabulary = film::vocabulary();
  for (int n = 0; n < 2000; ++n) {
    const film::Sentence sentence = film::random_sentence(engine, n % 2 == 0);
    ASSERT_EQ(praises(sentence.words), sentence.praises);
    praised += sentence.praises;
    ++of_kind[sentence.kind];
    EXPECT_EQ(vocabulary.words(vocabulary.ids(sentence.words)), sentence.words);
    for (const auto& pair : sentence.pairs) ASSERT_EQ(film::is_held_out(pair), n % 2 == 0);
  }
  EXPECT_NEAR(praised, 1000, 100);
  // What no bag of words can know, the last three kinds, is six of ten.
  EXPECT_NEAR(of_kind[2] + of_kind[3] + of_kind[4], 1200, 100);
}

TEST(Films, EveryThingAndAdjectiveIsInBothParts) {
  for (std::size_t thing = 0; thing < film::kThings.size(); ++thing) {
    int held_out = 0;
    for (std::size_t a = 0; a < film::kAdjectives.size(); ++a)
      held_out += film::is_held_out({thing, a});
    EXPECT_EQ(held_out, 4);
  }
  for (std::size_t a = 0; a < film::kAdjectives.size(); ++a) {
    int held_out = 0;
    for (std::size_t thing = 0; thing < film::kThings.size(); ++thing)
      held_out += film::is_held_out({thing, a});
    EXPECT_EQ(held_out, 2);
  }
}

}  // namespace
