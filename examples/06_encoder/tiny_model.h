// examples/06_encoder/tiny_model.h: a BERT of random numbers under Hugging Face's names, and the safetensors file of it.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "safetensors_writer.h"

namespace tiny {

struct Tensor {
  std::vector<int> shape;
  std::vector<float> values;
};
using Model = std::map<std::string, Tensor>;

struct Sizes {
  int vocabulary = 100, positions = 32, width = 48, heads = 4, blocks = 2, feed_forward = 112;
};

/// Weights of the size that keeps activations near 1. Each is a whole number of at most 7 bits times a power of two, which F32, F16
/// and BF16 hold exactly: the files of all three types are one model.
inline Model random_bert(const Sizes& n, bool pre_norm, std::uint32_t seed = 42) {
  Model model;
  std::mt19937 engine(seed);
  const auto add = [&](const std::string& name, const std::vector<int>& shape, float step,
                       float mean = 0) {
    Tensor tensor{shape, {}};
    std::size_t size = 1;
    for (const int length : shape) size *= std::size_t(length);
    for (std::size_t i = 0; i < size; ++i)
      tensor.values.push_back(mean + step * float(int(engine() >> 26) - 32));  // -32 ... 31
    model[name] = tensor;
  };
  const auto linear = [&](const std::string& name, int out, int in) {
    add(name + ".weight", {out, in}, 0x1p-7f);
    add(name + ".bias", {out}, 0x1p-8f);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {n.width}, 0x1p-6f, 1);
    add(name + ".bias", {n.width}, 0x1p-8f);
  };

  const std::string bert = "bert.";
  add(bert + "embeddings.word_embeddings.weight", {n.vocabulary, n.width}, 0x1p-5f);
  add(bert + "embeddings.position_embeddings.weight", {n.positions, n.width}, 0x1p-5f);
  add(bert + "embeddings.token_type_embeddings.weight", {2, n.width}, 0x1p-6f);
  norm(bert + "embeddings.LayerNorm");
  for (int block = 0; block < n.blocks; ++block) {
    const std::string at = bert + "encoder.layer." + std::to_string(block) + ".";
    for (const char* name : {"query", "key", "value"})
      linear(at + "attention.self." + name, n.width, n.width);
    linear(at + "attention.output.dense", n.width, n.width);
    linear(at + "intermediate.dense", n.feed_forward, n.width);
    linear(at + "output.dense", n.width, n.feed_forward);
    norm(at + (pre_norm ? "attention.LayerNorm" : "attention.output.LayerNorm"));
    norm(at + (pre_norm ? "intermediate.LayerNorm" : "output.LayerNorm"));
  }
  if (pre_norm) norm(bert + "LayerNorm");
  return model;
}

/// The bytes of a safetensors file, its numbers in F32, F16 or BF16.
inline std::string to_safetensors(const Model& model, const std::string& type) {
  safetensors::Writer file;
  for (const auto& [name, tensor] : model) {
    const auto add = [&, &name = name, &tensor = tensor](auto zero) {
      const std::vector<decltype(zero)> numbers(tensor.values.begin(), tensor.values.end());
      file.add(name, type, {tensor.shape.begin(), tensor.shape.end()}, numbers);
    };
    if (type == "F32") add(float());
    if (type == "F16") add(Eigen::half());
    if (type == "BF16") add(Eigen::bfloat16());
  }
  return file.bytes();
}

}  // namespace tiny
