// tests/encoder_test.cpp: examples/06_encoder against its plain loops: norms before and behind, all
// types of file, one sentence and many; and what it says of files that are no BERT.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "../examples/06_encoder/bert.h"
#include "../examples/06_encoder/reference.h"
#include "../examples/06_encoder/tiny_model.h"
#include "support/matrix_matchers.h"

namespace {

using encoder::Batch;
using encoder::BertFile;
using encoder::BertOptions;
using encoder::Encoder;
using encoder::Index;
using encoder::Matrix;
using safetensors::File;
using support::same_bits;

const std::vector<std::vector<int>> kSentences = {
    {2, 7, 11, 42, 3},
    {2, 99, 3},
    {5},
    {2, 5, 5, 5, 8, 13, 21, 34, 55, 89, 3, 1, 4, 1, 5, 9, 2, 6}};

BertOptions options_of(const tiny::Sizes& sizes) {
  BertOptions options;
  options.heads = sizes.heads;
  return options;
}
Encoder load(const tiny::Model& model, const std::string& type = "F32",
             const BertOptions& options = options_of({})) {
  const File file(tiny::to_safetensors(model, type));
  return BertFile(file, options).load();
}
/// What is said where a model cannot be loaded, or run on the sentences.
std::string refusal(const tiny::Model& model, const BertOptions& options = options_of({}),
                    const std::vector<std::vector<int>>& sentences = {}) {
  try {
    Encoder encoder = load(model, "F32", options);
    (void)encoder(Batch(sentences));
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was refused";
}

void expect_near_reference(const tiny::Sizes& sizes, bool pre_norm) {
  const tiny::Model model = tiny::random_bert(sizes, pre_norm, 7);
  Encoder encoder = load(model, "F32", options_of(sizes));
  EXPECT_EQ(encoder.pre_norm, pre_norm);
  EXPECT_EQ(encoder.blocks.size(), std::size_t(sizes.blocks));
  const reference::Encoder expected(model, sizes, pre_norm, 1e-12f);
  const Batch batch(kSentences);
  const Matrix X = encoder(batch);
  Index row = 0;
  for (const auto& sentence : kSentences) {
    for (const auto& token : expected(sentence)) {
      for (std::size_t c = 0; c < token.size(); ++c)
        ASSERT_NEAR(X(row, Index(c)), double(token[c]), 3e-6)
            << "token " << row << ", feature " << c;
      ++row;
    }
  }
  EXPECT_EQ(row, X.rows());
}

TEST(EncoderExample, IsThePlainLoops) {
  for (const bool pre_norm : {false, true}) {
    expect_near_reference({}, pre_norm);
    tiny::Sizes odd;
    odd.width = 21, odd.heads = 3, odd.blocks = 3, odd.feed_forward = 37;
    expect_near_reference(odd, pre_norm);
  }
}

TEST(EncoderExample, IsOneModelInEveryType) {
  const tiny::Model model = tiny::random_bert({}, false);
  const Batch batch(kSentences);
  const Matrix X = load(model)(batch);
  EXPECT_TRUE(same_bits(load(model, "F16")(batch), X));
  EXPECT_TRUE(same_bits(load(model, "BF16")(batch), X));
}

// Width 21: rows begin at every alignment.
TEST(EncoderExample, GivesASentenceTheSameBitsInEveryBatch) {
  tiny::Sizes odd;
  odd.width = 21, odd.heads = 3;
  for (const bool pre_norm : {false, true}) {
    Encoder encoder = load(tiny::random_bert(odd, pre_norm), "F32", options_of(odd));
    const Batch batch(kSentences);
    const Matrix X = encoder(batch);
    for (Index n = 0; n < batch.sentences(); ++n) {
      const Matrix alone = encoder(Batch({kSentences[std::size_t(n)]}));
      EXPECT_TRUE(same_bits(alone, Matrix(X.middleRows(batch.begin(n), batch.tokens(n))))) << n;
    }
  }
}

TEST(EncoderExample, TakesEmptySentencesAndBatches) {
  Encoder encoder = load(tiny::random_bert({}, false));
  EXPECT_EQ(encoder(Batch()).rows(), 0);
  const Batch batch({{}, {2, 3}, {}});
  const Matrix X = encoder(batch);
  EXPECT_TRUE(same_bits(X, encoder(Batch({{2, 3}}))));
  EXPECT_TRUE(same_bits(Matrix(encoder::mean_pool(X, batch).row(0)), Matrix(Matrix::Zero(1, 48))));
}

TEST(EncoderExample, PoolsToTheDirectionOfTheMean) {
  Matrix X(3, 2);
  X << 1, 0, 2, 4, 0, -2;
  const Matrix pooled = encoder::mean_pool(X, Batch({{1, 1}, {1}}));
  EXPECT_TRUE(support::near(pooled, Eigen::MatrixXd{{0.6, 0.8}, {0, -1}}, 1e-6));
}

TEST(EncoderExample, RmsNormLeavesTheMean) {
  Matrix X(1, 2);
  X << 3, 4;
  encoder::rms_norm(X, Eigen::RowVector2f(1, 10), 0);
  const double rms = std::sqrt(12.5);
  EXPECT_TRUE(support::near(X, Eigen::RowVector2d(3 / rms, 40 / rms), 1e-6));
}

// ---- Files as they are about ----------------------------------------------------------------------

tiny::Model renamed(const tiny::Model& model, const std::string& from, const std::string& to) {
  tiny::Model other;
  for (const auto& [old_name, tensor] : model) {
    std::string name = old_name;
    const std::size_t at = name.find(from);
    if (at != std::string::npos) name.replace(at, from.size(), to);
    other[name] = tensor;
  }
  return other;
}

TEST(BertFiles, HaveAnyPrefixAndOldNamesOfNorms) {
  const tiny::Model model = tiny::random_bert({}, false);
  const Batch batch(kSentences);
  const Matrix X = load(model)(batch);
  EXPECT_TRUE(same_bits(load(renamed(model, "bert.", ""))(batch), X));
  EXPECT_TRUE(same_bits(load(renamed(model, "bert.", "model.roberta."))(batch), X));
  const tiny::Model old = renamed(renamed(model, "LayerNorm.weight", "LayerNorm.gamma"),
                                  "LayerNorm.bias", "LayerNorm.beta");
  EXPECT_TRUE(same_bits(load(old)(batch), X));
}

TEST(BertFiles, MayBeginTheirPositionsLater) {
  const tiny::Sizes sizes;
  tiny::Model model = tiny::random_bert(sizes, false);
  const Batch batch(kSentences);
  const Matrix X = load(model)(batch);
  auto& positions = model["bert.embeddings.position_embeddings.weight"];
  positions.values.insert(positions.values.begin(), std::size_t(2 * sizes.width), 9.0f);
  positions.shape[0] += 2;
  BertOptions options = options_of(sizes);
  options.first_position = 2;
  EXPECT_TRUE(same_bits(load(model, "F32", options)(batch), X));
}

TEST(BertFiles, HaveTheirOptionsInAConfiguration) {
  const auto path = std::filesystem::path(testing::TempDir()) / "encoder_test_config.json";
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return BertOptions::read(path);
  };
  const auto bert = read(R"({"num_attention_heads": 12, "hidden_act": "gelu", "model_type": "bert",
                             "pad_token_id": 0, "layer_norm_eps": 1e-07})");
  ASSERT_TRUE(bert);
  EXPECT_EQ(bert->heads, 12);
  EXPECT_EQ(bert->epsilon, 1e-7f);
  EXPECT_EQ(bert->first_position, 0);
  const auto roberta =
      read(R"({"num_attention_heads": 2, "model_type": "xlm-roberta", "pad_token_id": 1})");
  ASSERT_TRUE(roberta);
  EXPECT_EQ(roberta->first_position, 2);
  const auto error = [&](const std::string& text) -> std::string {
    try {
      (void)read(text);
    } catch (const std::exception& refused) {
      return refused.what();
    }
    return "nothing was refused";
  };
  EXPECT_EQ(error(R"({"num_attention_heads": 2, "hidden_act": "relu"})"),
            "config.json: hidden_act is \"relu\", ours is gelu");
  EXPECT_EQ(error(R"({"num_attention_heads": 2, "model_type": "roberta", "pad_token_id": -7})"),
            "config.json: pad_token_id is no small number");
  for (const char* text :
       {"", "[]", "{}", R"({"num_attention_heads": "many"})", R"({"num_attention_heads": 2.5})"})
    EXPECT_EQ(error(text).rfind("config.json", 0), 0u) << error(text);
  std::filesystem::remove(path);
  EXPECT_FALSE(BertOptions::read(path));
}

TEST(BertFiles, AreRefusedWhereTheyLackSomething) {
  const tiny::Model model = tiny::random_bert({}, false);
  tiny::Model other = model;
  other.erase("bert.encoder.layer.1.output.dense.bias");
  EXPECT_EQ(
      refusal(other),
      "there is no tensor \"bert.encoder.layer.1.output.dense.bias\" among the 36 of the file, "
      "of which the first is \"bert.embeddings.LayerNorm.bias\"");
  EXPECT_EQ(refusal({}),
            "there is no tensor \"embeddings.word_embeddings.weight\" among the 0 of the file");
  EXPECT_EQ(refusal(renamed(model, "layer.1.", "layer.9.")).substr(0, 70),
            "there is no tensor \"bert.encoder.layer.1.intermediate.dense.weight\" am");
  EXPECT_EQ(refusal(renamed(model, "layer.1.", "layer.4000000000000000000.")).substr(0, 70),
            "there is no tensor \"bert.encoder.layer.1.intermediate.dense.weight\" am");

  other = model;
  other["bert.encoder.layer.0.attention.self.key.weight"].shape = {24, 96};
  EXPECT_EQ(
      refusal(other),
      "tensor \"bert.encoder.layer.0.attention.self.key.weight\" is [24, 96], needs [48, 48]");
  other = model;
  other["bert.embeddings.token_type_embeddings.weight"] = {{0, 48}, {}};
  EXPECT_EQ(refusal(other),
            "tensor \"bert.embeddings.token_type_embeddings.weight\" is [0, 48], needs rows and "
            "columns");
}

TEST(BertFiles, AreRefusedWithHeadsOrTokensThatTheyDoNotHave) {
  const tiny::Model model = tiny::random_bert({}, false);
  BertOptions options;
  options.heads = 5;
  EXPECT_EQ(refusal(model, options),
            "attn::MultiHeadAttention: d_model is 48, needs a multiple of the 5 heads, or "
            "key_dim(n)");
  EXPECT_EQ(refusal(model, options_of({}), {{1, 100}}),
            "there is no token 100, the vocabulary has 100");
  EXPECT_EQ(refusal(model, options_of({}), {{-1}}), "there is no token -1, the vocabulary has 100");
  EXPECT_EQ(refusal(model, options_of({}), {{}, std::vector<int>(33, 1)}),
            "a sentence has 33 tokens, the model reads 32");
}

// The reader's own test has more damage (safetensors_test.cpp): here it meets the names.
TEST(BertFiles, AreReadOrRefusedHoweverTheyAreDamaged) {
  tiny::Sizes sizes;
  sizes.width = 8, sizes.heads = 2, sizes.feed_forward = 8, sizes.vocabulary = 8,
  sizes.positions = 4;
  const std::string whole = tiny::to_safetensors(tiny::random_bert(sizes, false), "BF16");
  std::mt19937 engine(1);
  int loaded = 0;
  for (int n = 0; n < 500; ++n) {
    std::string bytes = whole;
    bytes[8 + engine() % (whole.size() / 2)] ^= char(1 << engine() % 8);
    try {
      const File file(bytes);
      (void)BertFile(file, options_of(sizes)).load()(Batch({{1, 2, 3}}));
      ++loaded;
    } catch (const std::runtime_error&) {
    }
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, 400);
}

}  // namespace
