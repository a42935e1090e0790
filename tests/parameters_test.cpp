// tests/parameters_test.cpp: weights by name, as one vector and back, and the option dweights().
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/parameters.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/scalar_names.h"

namespace {

using attn::for_each_parameter;
using attn::LinearOptions;
using attn::LinearWeights;
using attn::MultiHeadOptions;
using attn::MultiHeadWeights;
using Eigen::Index;
using Eigen::MatrixXf;
using Eigen::VectorXd;
using Eigen::VectorXf;
using support::error_of;
using support::same_bits;

/// Weights whose numbers are 1, 2, … in their order.
template <class Weights, class Sizes>
Weights counted(const Sizes& sizes) {
  Weights w(sizes);
  int n = 0;
  for_each_parameter(w, [&](const char*, auto& part) {
    for (Index k = 0; k < part.cols(); ++k) {
      for (Index c = 0; c < part.rows(); ++c)
        part(c, k) = typename Weights::Scalar(static_cast<float>(++n));
    }
  });
  return w;
}
template <class Weights>
std::vector<std::string> names(const Weights& w) {
  std::vector<std::string> all;
  for_each_parameter(w, [&](const char* name, const auto&) { all.emplace_back(name); });
  return all;
}

const MultiHeadOptions kSizes =
    MultiHeadOptions(6, 2).kv_heads(1).key_features(5).output_features(4);

TEST(Parameters, ComeInTheirOrderWithoutThoseThatTheLayerHasNot) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(MultiHeadWeights<float>(kSizes)),
            (Names{"query.weight", "key.weight", "value.weight", "output.weight"}));
  EXPECT_EQ(names(MultiHeadWeights<float>(kSizes.biases())),
            (Names{"query.weight", "query.bias", "key.weight", "key.bias", "value.weight",
                   "value.bias", "output.weight", "output.bias"}));
  EXPECT_EQ(names(MultiHeadWeights<float>(kSizes.out_bias())).back(), "output.bias");
  EXPECT_EQ(names(LinearWeights<float>(LinearOptions(3, 4))), (Names{"weight"}));
  EXPECT_EQ(names(LinearWeights<float>(LinearOptions(3, 4).bias())), (Names{"weight", "bias"}));
}

TEST(Parameters, AreTheMatricesThemselves) {
  MultiHeadWeights<float> w(kSizes.biases());
  std::vector<const void*> seen;
  for_each_parameter(w, [&](const char*, auto& part) { seen.push_back(part.data()); });
  const std::vector<const void*> parts{w.query.data(),    w.query_bias.data(), w.key.data(),
                                       w.key_bias.data(), w.value.data(),      w.value_bias.data(),
                                       w.output.data(),   w.output_bias.data()};
  EXPECT_EQ(seen, parts);

  LinearWeights<float> linear(LinearOptions(3, 4).bias());
  for_each_parameter(linear, [](const char*, auto& part) { part.setOnes(); });
  EXPECT_EQ(linear.kernel().sum() + linear.bias().sum(), 16.0f);
}

TEST(Parameters, WalkWithTheirGradientsAndWhatAnOptimiserKeeps) {
  auto w = counted<MultiHeadWeights<Eigen::half>>(kSizes.in_bias());
  const auto g = counted<attn::MultiHeadGradients<Eigen::half>>(kSizes.in_bias());
  static_assert(std::is_same_v<attn::MultiHeadGradients<Eigen::half>, MultiHeadWeights<float>>);
  for_each_parameter(w, g, [](const char* name, auto& p, const auto& dp) {
    EXPECT_EQ(p.template cast<float>().sum(), dp.sum()) << name;
    p -= dp.template cast<Eigen::half>();
  });
  for_each_parameter(
      w, [](const char*, const auto& p) { EXPECT_EQ(p.template cast<float>().norm(), 0.0f); });

  const LinearOptions sizes = LinearOptions(2, 3).bias();
  LinearWeights<double, 2, 3> fixed(sizes);
  LinearWeights<double> moment(sizes), other(sizes);
  const auto gradient = counted<attn::LinearGradients<double>>(sizes);
  for_each_parameter(fixed, gradient, moment, other,
                     [](const char*, auto& p, const auto& dp, auto& m, auto& v) {
                       m = 2 * dp;
                       v = dp.cwiseAbs2();
                       p = m + v;
                     });
  EXPECT_EQ(fixed.kernel()(1, 2), 12 + 36);
  EXPECT_EQ(fixed.bias()(2), 18 + 81);
}

TEST(Parameters, OfOtherShapesAreRefusedBeforeTheFunctorIsCalled) {
  LinearWeights<float> w(LinearOptions(3, 4).bias()), g(LinearOptions(3, 5).bias());
  int calls = 0;
  const auto count = [&](const char*, auto&...) { ++calls; };
  EXPECT_EQ(error_of([&] { for_each_parameter(w, w, g, count); }),
            "attn::for_each_parameter: weight is 3x4 in the first argument, 3x5 in argument 3; all "
            "need one shape");
  LinearWeights<float> without(LinearOptions(3, 4));
  EXPECT_EQ(error_of([&] { for_each_parameter(w, without, count); }),
            "attn::for_each_parameter: bias is 1x4 in the first argument, 1x0 in argument 2; all "
            "need one shape");
  EXPECT_EQ(calls, 0);
}

TEST(Parameters, AreCounted) {
  EXPECT_EQ(attn::parameter_count(LinearWeights<float>(LinearOptions(3, 4).bias())), 16);
  EXPECT_EQ(attn::parameter_count(MultiHeadWeights<float>(kSizes)), 6 * 6 + 5 * 3 + 5 * 3 + 6 * 4);
}

TEST(Parameters, BecomeOneVectorColumnByColumn) {
  const auto w = counted<MultiHeadWeights<float>>(kSizes.biases());
  const Index count = attn::parameter_count(w);
  VectorXf x;
  attn::flatten(w, x);
  EXPECT_TRUE(same_bits(x, VectorXf::LinSpaced(count, 1, static_cast<float>(count))));
  EXPECT_EQ(x(1), w.query(1, 0));

  VectorXd wide(count);
  attn::flatten(w, wide.head(count));
  EXPECT_EQ(wide(count - 1), static_cast<double>(count));
  Eigen::Matrix<Eigen::half, 1, Eigen::Dynamic> row;
  attn::flatten(w, row);
  EXPECT_EQ(row.cols(), count);
  MatrixXf spread(3, count);
  attn::flatten(w, spread.row(1));
  EXPECT_TRUE(same_bits(MatrixXf(spread.row(1)), MatrixXf(x.transpose())));
}

template <class Stored>
class ParametersOf : public ::testing::Test {};
using Storages = ::testing::Types<float, double, long double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(ParametersOf, Storages, support::ScalarNames);

TYPED_TEST(ParametersOf, AVectorAreTheWeightsAgain) {
  const auto w = counted<LinearWeights<TypeParam, 3, 5>>(LinearOptions(3, 5).bias());
  LinearWeights<TypeParam> back(LinearOptions(3, 5).bias());
  VectorXd x;
  attn::flatten(w, x);
  attn::unflatten(x, back);
  EXPECT_TRUE(back.kernel() == w.kernel() && back.bias() == w.bias());
  attn::unflatten(2 * x, back);
  EXPECT_TRUE(back.kernel() == w.kernel() + w.kernel());
  Eigen::Matrix<TypeParam, 1, Eigen::Dynamic> same;
  attn::flatten(w, same);
  attn::unflatten(same.reverse(), back);
  EXPECT_EQ(back.kernel()(0, 0), w.bias()(4));
}

TEST(Parameters, VectorsThatDoNotFitAreRefused) {
  LinearWeights<float> w(LinearOptions(3, 4).bias());
  VectorXf x(15);
  EXPECT_EQ(error_of([&] { attn::unflatten(x, w); }),
            "attn::unflatten: the vector has 15 numbers, the weights 16");
  EXPECT_EQ(error_of([&] { attn::flatten(w, x.head(15)); }),
            "attn::flatten: vector is 15x1, needs 16x1");
  Eigen::Matrix<float, 1, 7> fixed;
  EXPECT_EQ(error_of([&] { attn::flatten(w, fixed); }), "attn::flatten: vector is 1x7, needs 1x16");
  Eigen::Map<VectorXf> own(w.kernel().data(), 12);
  LinearWeights<float> small(LinearOptions(3, 4));
  small.kernel().setOnes();
  Eigen::Map<VectorXf> of_small(small.kernel().data(), 12);
  EXPECT_EQ(error_of([&] { attn::flatten(small, of_small); }),
            "attn::flatten: vector overlaps weight; write to memory of its own");
  EXPECT_EQ(error_of([&] { attn::unflatten(of_small, small); }),
            "attn::unflatten: weight overlaps the vector; write to memory of its own");
  EXPECT_EQ(error_of([&] { attn::unflatten(own, small); }), "nothing was refused");
  EXPECT_EQ(small.kernel().norm(), 0.0f);
}

TEST(Parameters, GradientsAreTheOptionOfABackwardPass) {
  attn::LinearGradients<Eigen::bfloat16> g(LinearOptions(3, 4).bias());
  const auto option = attn::dweights(g);
  EXPECT_EQ(option.weights, &g);
  static_assert(attn::detail::is_gradient_option_v<decltype(option)>);
  attn::detail::Outputs outputs("call");
  option.add_to(outputs);
  EXPECT_EQ(error_of([&] { option.add_to(outputs); }),
            "call: dweights overlaps dweights; write to memory of its own");
}

}  // namespace
