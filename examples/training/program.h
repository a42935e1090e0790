// examples/training/program.h: what a training program is told on its command line, and weights
// that outlive it.
// SPDX-License-Identifier: MIT
//
//   PROGRAM [OPTIONS] [TEXT...]
//     --train          trains in any case; else those of an earlier run are taken, if there are any
//     --quick          trains a little, and keeps no weights
//     --threads=N      the same weights to the last bit
//     --pictures=DIR   where pictures go; else beside the program, as the weights do
#pragma once

#include <cstdio>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "weights_file.h"

namespace training {

struct ProgramOptions {
  std::string name;  ///< of the program
  bool train = false, quick = false;
  int threads = 1;
  std::filesystem::path folder, pictures;
  std::vector<std::string> texts;

  std::filesystem::path weights() const { return folder / (name + ".safetensors"); }
  std::filesystem::path picture(const std::string& of) const {
    return pictures / (name + '_' + of + ".svg");
  }
};

inline ProgramOptions parse_options(int count, char** arguments) {
  ProgramOptions options;
  const std::filesystem::path program = arguments[0];
  options.name = program.stem().string();
  options.folder = options.pictures = program.parent_path();
  for (int n = 1; n < count; ++n) {
    const std::string argument = arguments[n];
    if (argument == "--train") {
      options.train = true;
    } else if (argument == "--quick") {
      options.quick = true;
    } else if (argument.rfind("--threads=", 0) == 0) {
      options.threads = std::stoi(argument.substr(10));
    } else if (argument.rfind("--pictures=", 0) == 0) {
      options.pictures = argument.substr(11);
      std::filesystem::create_directories(options.pictures);
    } else if (argument.rfind("--", 0) == 0) {
      throw std::invalid_argument("there is no option " + argument);
    } else {
      options.texts.push_back(argument);
    }
  }
  return options;
}

/// What main() returns: run(options), or 1 and the error in words.
template <class Run>
int run_with_options(int count, char** arguments, const Run& run) {
  try {
    return run(parse_options(count, arguments));
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}

/// Restores the weights of an earlier run, or calls train() and saves what it made; returns what
/// train() does, the losses, if it trained.
template <class Model, class Train>
std::vector<double> train_or_restore(Model& model, const ProgramOptions& options,
                                     const Train& train) {
  const std::filesystem::path path = options.weights();
  if (!options.train && !options.quick && std::filesystem::exists(path)) {
    try {
      restore_weights_file(model, path);
      std::printf("The weights are those of %s; --train makes new ones\n", path.string().c_str());
      return {};
    } catch (const std::exception& error) {
      std::printf("%s does not fit: %s\n", path.string().c_str(), error.what());
    }
  }
  const std::vector<double> losses = train();
  if (!options.quick) save_weights_file(model, path);
  return losses;
}

}  // namespace training
