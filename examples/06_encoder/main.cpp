// examples/06_encoder/main.cpp: a BERT from a safetensors file: token ids in, sentence embeddings and their cosines out.
// SPDX-License-Identifier: MIT
//
//   06_encoder                                              a tiny model of random numbers, held to plain loops in long double
//   06_encoder MODEL.safetensors [heads=N] IDS IDS ...      one of yours; IDS are a sentence's tokens, 101,7592,2088,102
//
// Token ids are what the model's tokenizer makes of a text: in Python, tokenizer("hello world").input_ids.
#include <chrono>
#include <cstdio>
#include <exception>
#include <sstream>

#include "bert.h"
#include "reference.h"
#include "tiny_model.h"

namespace {

using Eigen::Index;
using encoder::Batch;
using encoder::Encoder;
using encoder::Matrix;
using Sentences = std::vector<std::vector<int>>;

void print_embeddings(const Matrix& sentences) {
  std::printf(
      "Sentence embeddings, the mean of their tokens' (first features), and their cosines\n");
  for (Index i = 0; i < sentences.rows(); ++i) {
    std::printf("  %d ", int(i) + 1);
    for (Index c = 0; c < std::min<Index>(4, sentences.cols()); ++c)
      std::printf(" %8.4f", double(sentences(i, c)));
    std::printf(" ...   ");
    for (Index j = 0; j < sentences.rows(); ++j)
      std::printf(" %6.3f", double(sentences.row(i).dot(sentences.row(j))));
    std::printf("\n");
  }
}

// ---- A tiny model ---------------------------------------------------------------------------------

/// The largest difference from the same encoder in plain loops, over all tokens and features.
double largest_error(const Matrix& X, const Sentences& sentences, const reference::Encoder& loops) {
  double largest = 0;
  Index row = 0;
  for (const auto& sentence : sentences) {
    for (const auto& token : loops(sentence)) {
      for (std::size_t c = 0; c < token.size(); ++c)
        largest = std::max(largest, std::abs(double(token[c] - X(row, Index(c)))));
      ++row;
    }
  }
  return largest;
}

/// Writes the model to a file, loads it, runs the sentences, and says whether all is right.
bool try_tiny(const std::filesystem::path& path, const char* type, bool pre_norm,
              const Sentences& sentences) {
  const tiny::Sizes sizes;
  const tiny::Model numbers = tiny::random_bert(sizes, pre_norm);
  std::ofstream(path, std::ios::binary) << tiny::to_safetensors(numbers, type);

  encoder::BertOptions options;
  options.heads = sizes.heads;
  const auto file = safetensors::File::read(path);
  Encoder model = encoder::BertFile(file, options).load();
  const Matrix X = model(Batch(sentences));

  const double error = largest_error(X, sentences, {numbers, sizes, pre_norm, options.epsilon});
  const Matrix alone = model(Batch({sentences.back()}));
  const bool same = alone == X.bottomRows(alone.rows());
  std::printf("  %-4s  %s  %9.1f KiB    %.1e          %s\n", type, pre_norm ? "pre " : "post",
              double(file.bytes()) / 1024, error, same ? "the same bits" : "OTHER BITS");
  return error < 4e-6 && same;
}

int try_tiny_models(const std::filesystem::path& program) {
  const Sentences sentences = {
      {2, 7, 11, 42, 3}, {2, 7, 11, 43, 3}, {2, 99, 3}, {2, 5, 5, 5, 8, 13, 21, 34, 55, 89, 3}};
  const std::filesystem::path path =
      std::filesystem::path(program).replace_filename("tiny.safetensors");
  std::printf(
      "A BERT of random numbers: 2 blocks of 48 features and 4 heads; 4 sentences, 24 tokens\n"
      "  file  norm           size    from plain loops  a sentence alone, and in the batch\n");
  bool right = true;
  for (const bool pre_norm : {true, false}) {
    for (const char* type : {"F32", "F16", "BF16"})
      right = try_tiny(path, type, pre_norm, sentences) && right;
  }
  std::printf("\nThe last file runs like a model of yours:\n  %s %s heads=4 2,7,11,42,3 2,99,3\n",
              program.string().c_str(), path.string().c_str());
  return right ? 0 : 1;
}

// ---- A model of yours -----------------------------------------------------------------------------

int parse_number(const std::string& text) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos)
    safetensors::refuse(safetensors::quoted(text), " is no number: ids are 101,7592,2088,102");
  return std::stoi(text);
}
std::vector<int> parse_ids(const std::string& list) {
  std::vector<int> ids;
  std::istringstream numbers(list);
  for (std::string id; std::getline(numbers, id, ',');) ids.push_back(parse_number(id));
  return ids;
}

int run_model(const std::filesystem::path& path, const std::vector<std::string>& arguments) {
  const auto file = safetensors::File::read(path);
  auto options = encoder::BertOptions::read(path.parent_path() / "config.json");
  Sentences sentences;
  for (const std::string& argument : arguments) {
    if (argument.rfind("heads=", 0) != 0) {
      sentences.push_back(parse_ids(argument));
    } else {
      if (!options) options.emplace();
      options->heads = parse_number(argument.substr(6));
    }
  }
  if (!options) safetensors::refuse("no config.json beside it: say heads=N, the attention heads");
  Encoder model = encoder::BertFile(file, *options).load();
  const Batch batch(sentences);

  const auto start = std::chrono::steady_clock::now();
  const Matrix X = model(batch);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%d blocks of %d features: %d tokens in %.1f ms\n", int(model.blocks.size()),
              int(X.cols()), int(X.rows()), seconds.count() * 1e3);
  print_embeddings(encoder::mean_pool(X, batch));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count == 1) return try_tiny_models(arguments[0]);
    return run_model(arguments[1], {arguments + 2, arguments + count});
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", arguments[count > 1], error.what());
    return 1;
  }
}
