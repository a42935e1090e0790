// examples/training/parameters.h: all weights of a model by their names: what an optimiser and a
// file ask for.
// SPDX-License-Identifier: MIT
//
//   template <class Visit>
//   void each_layer(const Visit& visit) {              // a model says what it is made of
//     visit("words", words);
//     block.each_layer("block.0.", visit);             // visit("block.0.attention", …), …
//   }
#pragma once

#include <string>

#include "types.h"

namespace training {

/// f(name, weight, gradient) for each: "block.0.attention.query.weight", …
template <class Model, class F>
void for_each_parameter(Model& model, const F& f) {
  model.each_layer([&](const std::string& layer_name, auto& layer) {
    layer.for_each_parameter([&](const char* name, auto& weight, const auto& gradient) {
      f(layer_name + '.' + name, weight, gradient);
    });
  });
}
/// f(gradient) for each, in the same order.
template <class Model, class F>
void for_each_gradient(Model& model, const F& f) {
  model.each_layer([&](const std::string&, auto& layer) { layer.for_each_gradient(f); });
}
template <class Model>
Index parameter_count(Model& model) {
  Index count = 0;
  for_each_gradient(model, [&](const auto& gradient) { count += gradient.size(); });
  return count;
}

}  // namespace training
