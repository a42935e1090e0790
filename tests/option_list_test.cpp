// tests/option_list_test.cpp: options(a, b, …), several options as one value, at every door.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"

namespace {

using Eigen::MatrixXf;
using support::same_bits;
using support::uniform;

struct Operands {
  MatrixXf Q = uniform<float>(6, 8, 1), K = uniform<float>(6, 8, 2), V = uniform<float>(6, 8, 3),
           B = uniform<float>(6, 6, 4);
};

TEST(Options, StandForTheirParts) {
  const Operands x;
  const MatrixXf expected =
      attn::attention(x.Q, x.K, x.V, attn::causal(), attn::bias(x.B), attn::softcap(2.f));
  const auto inner = attn::options(attn::bias(x.B), attn::softcap(2.f));
  const auto nested = attn::options(attn::causal(), inner);
  EXPECT_TRUE(same_bits(attn::attention(x.Q, x.K, x.V, nested), expected));
  EXPECT_TRUE(same_bits(attn::attention(x.Q, x.K, x.V, inner, attn::causal()), expected));
  // A temporary list owns what its options own.
  MatrixXf Y;
  attn::attention(x.Q, x.K, x.V, attn::options(),
                  attn::options(attn::causal(), attn::bias(x.B + 0 * x.B), attn::softcap(2.f)),
                  attn::options(attn::into(Y)));
  EXPECT_TRUE(same_bits(Y, expected));
}

TEST(Options, OfFunctorsThatAreConst) {
  const Operands x;
  attn::Workspace<float> workspace;
  const attn::ScaledDotProductAttention<float> sdpa;
  EXPECT_TRUE(same_bits(
      sdpa(x.Q, x.K, x.V, attn::options(attn::options(attn::use(workspace)), attn::causal())),
      attn::attention(x.Q, x.K, x.V, attn::causal())));
  EXPECT_GT(workspace.capacity(), 0);
}

TEST(Options, OfSoftmaxAndLayers) {
  const Operands x;
  const auto masks = attn::options(attn::causal(), attn::window(2, 0));
  EXPECT_TRUE(
      same_bits(attn::softmax(x.B, masks), attn::softmax(x.B, attn::causal(), attn::window(2, 0))));
  const auto layer = support::random_layer<float>(attn::MultiHeadOptions(8, 2));
  attn::MultiHeadAttention<float> mha = layer;
  const MatrixXf expected = mha(x.Q, attn::causal(), attn::window(2, 0), attn::residual());
  EXPECT_TRUE(same_bits(mha(x.Q, masks, attn::residual()), expected));
  attn::Workspace<float> workspace;
  const auto& shared = mha;
  EXPECT_TRUE(same_bits(shared(x.Q, attn::options(masks, attn::residual(), attn::use(workspace))),
                        expected));
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(6, 2, 4));
  EXPECT_TRUE(same_bits(mha.decode(x.Q, cache, attn::options(attn::window(2, 0), attn::residual())),
                        expected));
}

}  // namespace
