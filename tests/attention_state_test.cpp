// tests/attention_state_test.cpp: what a forward call leaves for a backward one: m, l, O, and that
// nothing else changes.
// SPDX-License-Identifier: MIT
// build: -Og
#include "support/allocations.h"

#include <attn/attn.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::allocations_in;
using support::same_bits;
using support::uniform;
using State = attn::AttentionState<float>;

/// m, l [rows, heads] and O of a state.
struct Parts {
  MatrixXf m, l, O;
};
Parts parts_of(const State& state) {
  const auto rows = attn::detail::StateOf::store(state).rows();
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Map = Eigen::Map<const RowMajor>;
  return {Map(rows.maximum, state.queries(), state.heads()),
          Map(rows.sum, state.queries(), state.heads()),
          Map(rows.output, state.queries(), state.heads() * state.value_dim())};
}

/// Two sequences, four heads in two groups, features that fill no packet; some rows see no key.
struct Call {
  std::vector<Index> queries{0, 5, 23}, keys{0, 9, 300};
  MatrixXf Q = uniform<float>(23, 4 * 5, 1), K = uniform<float>(300, 2 * 5, 2),
           V = uniform<float>(300, 2 * 19, 3), X = uniform<float>(23, 4 * 19, 4);

  template <class Output, class... Options>
  void operator()(Output& Y, const Options&... options) const {
    attn::attention(attn::heads(Q, 4), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                    attn::sequences(queries, keys), attn::causal_from({-2, 150}),
                    attn::softcap(2.f), options...);
  }
};

template <class Output, class... Options>
void expect_same_output(const Options&... options) {
  const Call call;
  Output plain, saving;
  State state;
  call(plain, options...);
  call(saving, options..., attn::save_state(state));
  EXPECT_TRUE(same_bits(saving, plain));
  EXPECT_FALSE(state.empty());
}

TEST(AttentionState, ChangesNoBitOfTheOutput) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Call call;
  expect_same_output<MatrixXf>(attn::residual(call.X));
  expect_same_output<RowMajor>(attn::residual(call.X));
  expect_same_output<Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic>>();
  expect_same_output<MatrixXf>(attn::sink(), attn::split_keys(1), attn::dropout(0.3, 7));
}

TEST(AttentionState, HoldsMaximaSumsAndTheOutputBeforeTheResidual) {
  const Call call;
  State state;
  MatrixXf Y, plain, m, logsumexp;
  call(plain);
  call(Y, attn::residual(call.X), attn::save_state(state), attn::save_max_logit(m),
       attn::save_logsumexp(logsumexp));
  EXPECT_EQ(state.queries(), 23);
  EXPECT_EQ(state.heads(), 4);
  EXPECT_EQ(state.value_dim(), 19);
  const Parts parts = parts_of(state);
  EXPECT_TRUE(same_bits(parts.O, plain));
  int empty = 0;
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index h = 0; h < m.cols(); ++h) {
      const float l = parts.l(i, h);
      if (l == 0) {
        ++empty;
        EXPECT_EQ(m(i, h), -std::numeric_limits<float>::infinity());
      } else {
        EXPECT_EQ(parts.m(i, h), m(i, h));
        EXPECT_EQ(parts.m(i, h) + std::log(l), logsumexp(i, h));
      }
    }
  }
  EXPECT_EQ(empty, 2 * 4);
}

// Half precision is storage: the state has what was computed.
TEST(AttentionState, HoldsTheOutputBeforeItsRounding) {
  const Call call;
  State narrow, whole;
  MatrixXf Y;
  Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic> rounded;
  call(Y, attn::save_state(whole));
  call(rounded, attn::save_state(narrow));
  EXPECT_TRUE(same_bits(parts_of(narrow).O, Y));
  EXPECT_TRUE(same_bits(parts_of(narrow).l, parts_of(whole).l));
}

TEST(AttentionState, IsARegularValue) {
  const Call call;
  MatrixXf Y;
  State state;
  EXPECT_TRUE(state.empty());
  EXPECT_EQ(state.queries(), 0);
  call(Y, attn::save_state(state));
  State copy(state), assigned;
  assigned = copy;
  EXPECT_TRUE(same_bits(parts_of(assigned).O, parts_of(state).O));
  std::vector<State> layers(2, state);
  layers[0] = std::move(assigned);
  EXPECT_TRUE(same_bits(parts_of(layers[0]).m, parts_of(state).m));
  EXPECT_EQ(allocations_in([&] { copy = state; }), 0);
}

TEST(AttentionState, ARefusedCallLeavesItAsItWas) {
  const Call call;
  MatrixXf Y;
  State state;
  call(Y, attn::save_state(state));
  const Parts before = parts_of(state);
  const MatrixXf fewer = call.Q.topRows(5), short_keys = call.K.topRows(4);
  EXPECT_NE(support::error_of([&] {
              attn::attention(fewer, short_keys, call.V, attn::into(Y), attn::save_state(state));
            }),
            "nothing was refused");
  EXPECT_FALSE(state.empty());
  EXPECT_EQ(state.queries(), 23);
  EXPECT_TRUE(same_bits(parts_of(state).O, before.O));
}

TEST(AttentionState, ACallThatThrowsInItsMiddleLeavesItEmpty) {
  const Call call;
  MatrixXf Y;
  State state;
  call(Y, attn::save_state(state));
  const auto throwing = attn::score([](float s, attn::At at) {
    if (at.key == 100) throw std::runtime_error("enough");
    return s;
  });
  EXPECT_THROW(call(Y, attn::save_state(state), throwing), std::runtime_error);
  EXPECT_TRUE(state.empty());
  call(Y, attn::save_state(state));
  EXPECT_FALSE(state.empty());
}

TEST(AttentionState, AllocatesNothingFromTheSecondCallOn) {
  const Call call;
  MatrixXf Y(23, 4 * 19);
  State state, reserved;
  attn::ScaledDotProductAttention<float> attend;
  const auto fill = [&](State& to) {
    attend(attn::heads(call.Q, 4), attn::heads(call.K, 2), attn::heads(call.V, 2), attn::into(Y),
           attn::save_state(to));
  };
  fill(state);
  EXPECT_EQ(allocations_in([&] { fill(state); }), 0);
  attn::AttentionShape shape;
  shape.queries = 23, shape.keys = 300, shape.key_dim = 5, shape.value_dim = 19;
  shape.heads = 4, shape.kv_heads = 2;
  reserved.reserve(shape);
  EXPECT_TRUE(reserved.empty());
  EXPECT_EQ(allocations_in([&] { fill(reserved); }), 0);
  EXPECT_EQ(support::error_of([&] {
              shape.kv_heads = 3;
              reserved.reserve(shape);
            }),
            "attn::AttentionState::reserve: heads is 4, needs a multiple of kv_heads, 3");

  MatrixXf dQ, dK, dV;
  const auto back = [&] {
    attend.backward(attn::heads(call.Q, 4), attn::heads(call.K, 2), attn::heads(call.V, 2), call.X,
                    state, attn::dquery(dQ), attn::dkey(dK), attn::dvalue(dV));
  };
  back();
  EXPECT_EQ(allocations_in(back), 0);
  attn::Workspace<float> workspace;
  const auto back_lent = [&] {
    attn::attention_backward(attn::heads(call.Q, 4), attn::heads(call.K, 2), attn::heads(call.V, 2),
                             call.X, state, attn::dquery(dQ), attn::dkey(dK), attn::dvalue(dV),
                             attn::use(workspace));
  };
  back_lent();
  EXPECT_EQ(allocations_in(back_lent), 0);
  EXPECT_EQ(allocations_in([&] { fill(state); }), 0);
}

TEST(AttentionState, StaysAsItWasWhereMemoryRunsOut) {
  const Call call;
  MatrixXf Y;
  State filled;
  call(Y, attn::save_state(filled));
  const Parts before = parts_of(filled);
  const MatrixXf Q = uniform<float>(100, 5, 5);
  long succeeded_after = 0;
  for (; succeeded_after < 100; ++succeeded_after) {
    support::failing = support::allocations + succeeded_after;
    support::watched = true;
    bool failed = false;
    try {
      attn::attention(Q, Q, Q, attn::into(Y), attn::save_state(filled));
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    support::watched = false;
    support::failing = -1;
    if (!failed) break;
    ASSERT_EQ(filled.queries(), 23);
    ASSERT_TRUE(same_bits(parts_of(filled).O, before.O));
  }
  EXPECT_GE(succeeded_after, 1);
  EXPECT_LT(succeeded_after, 100);
  EXPECT_EQ(filled.queries(), 100);
}

TEST(AttentionState, FromAnotherLibrarysForwardPass) {
  const Call call;
  State own;
  MatrixXf Y, logsumexp, dQ, dK, dV, from_dQ, from_dK, from_dV;
  call(Y, attn::save_state(own), attn::save_logsumexp(logsumexp));
  const State from = State::from(Y, logsumexp);
  EXPECT_EQ(from.queries(), 23);
  EXPECT_EQ(from.heads(), 4);
  EXPECT_EQ(from.value_dim(), 19);
  const auto back = [&](const State& state, MatrixXf& q, MatrixXf& k, MatrixXf& v) {
    attn::attention_backward(attn::heads(call.Q, 4), attn::heads(call.K, 2), attn::heads(call.V, 2),
                             call.X, state, attn::sequences(call.queries, call.keys),
                             attn::causal_from({-2, 150}), attn::softcap(2.f), attn::dquery(q),
                             attn::dkey(k), attn::dvalue(v));
  };
  back(own, dQ, dK, dV);
  back(from, from_dQ, from_dK, from_dV);
  EXPECT_TRUE(support::near(from_dQ, dQ, 1e-5));
  EXPECT_TRUE(support::near(from_dK, dK, 1e-5));
  EXPECT_TRUE(support::near(from_dV, dV, 1e-5));
  EXPECT_TRUE((from_dQ.topRows(2).array() == 0).all());  // they see no key
  EXPECT_FALSE((from_dQ.row(2).array() == 0).all());

  logsumexp(5, 1) = std::numeric_limits<float>::quiet_NaN();  // not that of an empty row
  EXPECT_EQ(parts_of(State::from(Y, logsumexp)).l(5, 1), 1.f);
  EXPECT_EQ(parts_of(from).l(0, 1), 0.f);

  const auto error = [](const MatrixXf& output, const MatrixXf& lse) {
    return support::error_of([&] { State::from(output, lse); });
  };
  EXPECT_EQ(error(Y, logsumexp.topRows(22)),
            "attn::AttentionState::from: the output has 23 rows, logsumexp has 22; both need one "
            "row per query");
  EXPECT_EQ(error(Y.leftCols(75), logsumexp),
            "attn::AttentionState::from: the output has 75 columns, needs a multiple of the 4 "
            "columns of logsumexp");
  EXPECT_EQ(error(Y.leftCols(0), logsumexp.leftCols(0)),
            "attn::AttentionState::from: the output has 0 columns, needs a multiple of the 0 "
            "columns of logsumexp");
}

}  // namespace
