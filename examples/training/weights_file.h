// examples/training/weights_file.h: the weights of a trained model in a file, so that a second run
// need not train.
// SPDX-License-Identifier: MIT
//
// A safetensors file (its format: ../06_encoder/safetensors.h) of one tensor in F32 for each
// parameter, under the name that for_each_parameter() gives it, "block.0.attention.query.weight":
//
//   a weight of Y = X·W + b    [in, out], row by row: PyTorch's weight, transposed
//   a bias, a norm's scale     [features]
//   an embedding's table       [vocabulary, features]
//
// Other programs read it: in Python, safetensors.numpy.load_file(path).
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "../06_encoder/safetensors.h"
#include "../06_encoder/safetensors_writer.h"
#include "parameters.h"

namespace training {

/// A vector is a list; a matrix has rows and columns.
template <class Weight>
std::vector<std::int64_t> shape_in_file(const Weight& weight) {
  if constexpr (Weight::IsVectorAtCompileTime) return {weight.size()};
  return {weight.rows(), weight.cols()};
}

template <class Model>
void save_weights_file(Model& model, const std::filesystem::path& path) {
  safetensors::Writer writer;
  for_each_parameter(model, [&](const std::string& name, const auto& weight, const auto&) {
    std::vector<float> numbers;
    for (Index i = 0; i < weight.rows(); ++i) {
      for (Index c = 0; c < weight.cols(); ++c) numbers.push_back(float(weight(i, c)));
    }
    writer.add(name, "F32", shape_in_file(weight), numbers);
  });
  std::ofstream file(path, std::ios::binary);
  file << writer.bytes();
  if (!file.flush()) safetensors::refuse(path.string(), " could not be written");
}

/// Refuses a file of another model (std::runtime_error), before a weight is changed.
template <class Model>
void restore_weights_file(Model& model, const std::filesystem::path& path) {
  const auto file = safetensors::File::read(path);
  std::size_t count = 0;
  for_each_parameter(model, [&](const std::string& name, const auto& weight, const auto&) {
    const safetensors::Tensor& tensor = file.tensor(name);
    const auto shape = shape_in_file(weight);
    const safetensors::Shape needs(shape.begin(), shape.end());
    if (tensor.shape != needs || tensor.type != "F32") {
      safetensors::refuse("tensor ", name, " is ", tensor.type, ' ',
                          safetensors::text(tensor.shape), ", needs F32 ",
                          safetensors::text(needs));
    }
    ++count;
  });
  if (count != file.tensors().size()) {
    safetensors::refuse("the file has ", file.tensors().size(), " tensors, the model ", count);
  }
  for_each_parameter(model, [&](const std::string& name, auto& weight, const auto&) {
    using Weight = std::decay_t<decltype(weight)>;
    using Scalar = typename Weight::Scalar;
    if constexpr (Weight::IsVectorAtCompileTime) {
      weight = file.vector(name, weight.size()).template cast<Scalar>();
    } else {
      weight = file.matrix(name, weight.rows(), weight.cols()).template cast<Scalar>();
    }
  });
}

}  // namespace training
