// tests/training_allocations_test.cpp: a step of training a multi-head layer, forward → backward →
// edit, allocates nothing from the second one of the same sizes on; where an allocation fails, all
// is as it was, and the next call right.
// SPDX-License-Identifier: MIT
// build: -Og
#include "support/allocations.h"

#include <attn/attn.h>
#include <gtest/gtest.h>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"
#include "support/scalar_names.h"

namespace {

using Eigen::Index;
using support::allocations_in;
using support::DynamicMatrix;
using support::uniform;

/// A pool of the calling thread.
struct InTurn {
  template <class F>
  void parallel_for(int n, const F& f) {
    for (int i = 0; i < n; ++i) f(i);
  }
};

/// w −= rate · gradient, in place.
template <class Weights, class Gradients>
void descend(Weights& w, const Gradients& g) {
  attn::for_each_parameter(w, g, [](const char*, auto& parameter, const auto& gradient) {
    using Scalar = typename std::decay_t<decltype(parameter)>::Scalar;
    using Compute = attn::compute_t<Scalar>;
    for (Index n = 0; n < parameter.size(); ++n) {
      parameter.data()[n] =
          Scalar(Compute(parameter.data()[n]) - Compute(0.01f) * gradient.data()[n]);
    }
  });
}

template <class Storage>
class TrainingAllocations : public ::testing::Test {};
using StorageTypes = ::testing::Types<float, double, Eigen::bfloat16>;
TYPED_TEST_SUITE(TrainingAllocations, StorageTypes, support::ScalarNames);

const auto kShape = attn::MultiHeadOptions(24, 4).kv_heads(2).value_dim(5).biases();

TYPED_TEST(TrainingAllocations, OfSelfAttentionAreInTheFirstStep) {
  using Compute = attn::compute_t<TypeParam>;
  auto mha = support::random_layer<TypeParam>(kShape);
  attn::MultiHeadState<Compute> state;
  attn::MultiHeadGradients<TypeParam> g(kShape);
  const auto X = uniform<Compute>(130, 24, 1), dY = uniform<Compute>(130, 24, 2);
  DynamicMatrix<Compute> Y(130, 24), dX(130, 24);
  InTurn pool;
  std::uint64_t stream = 0;
  const std::vector<Index> offsets = {0, 37, 40, 130};
  const auto step = [&](Index sequences) {
    const auto x = X.topRows(offsets[std::size_t(sequences)]);
    const auto of_rows = [&](auto& M) { return M.topRows(x.rows()); };
    const auto call = attn::options(
        attn::sequence_length(x.rows()), attn::causal(), attn::rotary(attn::pairing::half_split),
        attn::dropout(0.1, 5, ++stream), attn::residual(), attn::on(pool, 3));
    mha(x, attn::into(of_rows(Y)), attn::save_state(state), call);
    mha.backward(x, of_rows(dY), state, call, attn::dweights(g), attn::dquery(of_rows(dX)));
    mha.edit([&](auto& w) { descend(w, g); });
  };
  EXPECT_GE(allocations_in([&] { step(3); }), 1);
  for (const Index sequences : {3, 1, 2, 3})  // fewer tokens fit
    EXPECT_EQ(allocations_in([&] { step(sequences); }), 0) << sequences;
}
TYPED_TEST(TrainingAllocations, OfCrossAttentionAreInTheFirstStep) {
  using Compute = attn::compute_t<TypeParam>;
  auto mha = support::random_layer<TypeParam>(kShape.key_features(10));
  attn::MultiHeadState<Compute> state;
  attn::MultiHeadGradients<TypeParam> g(mha.options());
  const auto Xq = uniform<Compute>(37, 24, 1), Xkv = uniform<Compute>(150, 10, 2),
             dY = uniform<Compute>(37, 24, 3);
  const auto B = uniform<Compute>(1, 150, 4);
  DynamicMatrix<Compute> Y, dXq, dXkv, dB;
  attn::Workspace<Compute> workspace;
  const auto step = [&] {
    const auto call = attn::options(attn::bias(B), attn::use(workspace));
    mha(Xq, Xkv, attn::into(Y), attn::save_state(state), call);
    mha.backward(Xq, Xkv, dY, state, call, attn::dweights(g), attn::dquery(dXq), attn::dkey(dXkv),
                 attn::dbias(dB));
    mha.backward(Xq, Xkv, dY, state, call, attn::dweights(g), attn::dquery(dXq), attn::dkey(dXkv),
                 attn::dbias(dB), attn::accumulate());
    mha.edit([&](auto& w) { descend(w, g); });
  };
  EXPECT_GE(allocations_in(step), 1);
  for (int n = 0; n < 3; ++n) EXPECT_EQ(allocations_in(step), 0) << n;
}

// ---- Where memory runs out --------------------------------------------------------------------

/// A layer, and what two calls of different sizes leave.
struct Trained {
  using Matrix = DynamicMatrix<float>;
  attn::MultiHeadAttention<float> mha = support::random_layer<float>(kShape);
  Matrix X = uniform<float>(40, 24, 1), dY = uniform<float>(40, 24, 2), Y, dX;
  attn::MultiHeadState<float> state;
  attn::MultiHeadGradients<float> g{kShape};

  void forward(Index rows) {
    mha(X.topRows(rows), attn::into(Y), attn::save_state(state), attn::causal());
  }
  void backward(Index rows) {
    mha.backward(X.topRows(rows), dY.topRows(rows), state, attn::causal(), attn::dweights(g),
                 attn::dquery(dX));
  }
  Trained() { step(3); }
  void step(Index rows) {
    forward(rows);
    backward(rows);
  }
};
void expect_same(const Trained& a, const Trained& b) {
  EXPECT_TRUE(support::same_bits(a.Y, b.Y));
  EXPECT_TRUE(support::same_bits(a.dX, b.dX));
  attn::for_each_parameter(a.g, b.g, [](const char* name, const auto& of_a, const auto& of_b) {
    EXPECT_TRUE(support::same_bits(of_a, of_b)) << name;
  });
}
/// call(trained) with each of its allocations failing in turn; then check(trained), and again.
template <class Prepare, class Call, class Check>
void fail_each(const Prepare& prepare, const Call& call, const Check& check) {
  int failures = 0;
  for (bool failed = true; failed; failures += int(failed)) {
    SCOPED_TRACE(testing::Message() << "allocation " << failures + 1);
    Trained x;
    prepare(x);
    failed = support::fails_in(failures, [&] { call(x); });
    if (failed) check(x);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GE(failures, 1);
}

TEST(TrainingWithoutMemory, LeavesTheStateOfAForwardPass) {
  const Trained before;
  Trained after;
  after.step(40);
  fail_each([](Trained&) {}, [](Trained& x) { x.forward(40); },
            [&](Trained& x) {
              expect_same(x, before);
              x.backward(3);  // the state is that of the call before
              expect_same(x, before);
              x.step(40);
              expect_same(x, after);
            });
}
TEST(TrainingWithoutMemory, LeavesTheGradientsOfABackwardPass) {
  Trained before, after;
  before.forward(40);
  after.step(40);
  fail_each([](Trained& x) { x.forward(40); }, [](Trained& x) { x.backward(40); },
            [&](Trained& x) {
              expect_same(x, before);
              x.backward(40);
              expect_same(x, after);
            });
}
TEST(TrainingWithoutMemory, LeavesAStateThatIsAssignedTo) {
  const Trained before;
  Trained other;
  other.step(40);
  fail_each([](Trained&) {}, [&](Trained& x) { x.state = other.state; },
            [&](Trained& x) {
              EXPECT_EQ(x.state.queries(), 3);
              x.backward(3);
              expect_same(x, before);
              x.state = other.state;
              x.backward(40);
              EXPECT_TRUE(support::same_bits(x.dX, other.dX));
            });
}

}  // namespace
