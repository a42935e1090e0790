// examples/onnx_attention/case_file.h: reads one case, an operator with its inputs and expected outputs, from a text file.
// SPDX-License-Identifier: MIT
//
//   op OPTYPE opset N
//   attr NAME TYPE VALUE...
//   tensor in|out INDEX NAME DTYPE d0 d1 ...          then one line of values; "nan", "inf" and "-inf" may occur
//   tensor in|out INDEX - none                        an optional one that is not there
#pragma once

#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "tensor.h"

namespace onnx {

struct Case {
  std::string op;
  int opset = 0;
  std::map<std::string, std::string> attributes;
  std::vector<std::optional<Tensor>> inputs, outputs;

  double number(const std::string& name, double otherwise) const {
    const auto found = attributes.find(name);
    return found == attributes.end() ? otherwise : std::strtod(found->second.c_str(), nullptr);
  }
  Index integer(const std::string& name, Index otherwise) const {
    return Index(number(name, double(otherwise)));
  }
  /// An input, or null where it is not there.
  const Tensor* input(std::size_t n) const {
    return n < inputs.size() && inputs[n] ? &*inputs[n] : nullptr;
  }
  bool wants(std::size_t output) const { return output < outputs.size() && outputs[output]; }
};

inline Type type_named(const std::string& name) {
  static const std::map<std::string, Type> types = {
      {"float32", Type::float32}, {"float", Type::float32},   {"float64", Type::float64},
      {"double", Type::float64},  {"float16", Type::float16}, {"bfloat16", Type::bfloat16},
      {"int8", Type::int8},       {"int16", Type::int16},     {"int32", Type::int32},
      {"int64", Type::int64},     {"uint8", Type::uint8},     {"uint16", Type::uint16},
      {"uint32", Type::uint32},   {"uint64", Type::uint64},   {"bool", Type::boolean}};
  const auto found = types.find(name);
  if (found == types.end()) throw std::invalid_argument("onnx: no tensors of type " + name);
  return found->second;
}

/// One line of numbers, as many as the tensor has.
inline void read_values(const std::string& line, Tensor& tensor) {
  const char* at = line.c_str();
  for (Index i = 0; i < tensor.size(); ++i) {
    char* end = nullptr;
    const double value = std::strtod(at, &end);
    if (end == at) throw std::invalid_argument("onnx: a tensor has too few values");
    tensor.set(i, value);
    at = end;
  }
}

inline Case read_case(std::istream& file) {
  Case read;
  std::string line, word;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    if (!(words >> word) || word[0] == '#') continue;
    if (word == "op") {
      words >> read.op >> word >> read.opset;
    } else if (word == "attr") {
      std::string name, type, value;
      words >> name >> type;
      std::getline(words >> std::ws, value);
      read.attributes[name] = value;
    } else if (word == "tensor") {
      std::string direction, name, type;
      std::size_t index = 0;
      words >> direction >> index >> name >> type;
      auto& list = direction == "in" ? read.inputs : read.outputs;
      if (list.size() <= index) list.resize(index + 1);
      if (type == "none") continue;
      std::vector<Index> dims;
      for (Index d = 0; words >> d;) dims.push_back(d);
      list[index] = Tensor(type_named(type), dims);
      std::getline(file, line);
      read_values(line, *list[index]);
    } else {
      throw std::invalid_argument("onnx: no line begins with " + word);
    }
  }
  return read;
}
inline Case read_case(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::invalid_argument("onnx: cannot read " + path);
  return read_case(file);
}

}  // namespace onnx
