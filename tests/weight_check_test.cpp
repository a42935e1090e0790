// tests/weight_check_test.cpp: builds with assertions end a backward pass whose weights are not those
// of its forward pass.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "support/random.h"

namespace {

using attn::heads;
using Eigen::Index;
using Eigen::MatrixXf;
using support::uniform;

/// All that a call may hold which no message compares.
struct Held {
  Index window = 20;
  MatrixXf B = uniform<float>(100, 300, 5);
  std::vector<float> slopes{0.1f, 0.2f, 0.3f, 0.4f}, logits{0.5f, 1.f, 2.f, -3.f};
  MatrixXf Q = uniform<float>(100, 4 * 6, 1), K = uniform<float>(300, 2 * 6, 2),
           V = uniform<float>(300, 2 * 3, 3), dY = uniform<float>(100, 4 * 3, 4);

  auto options() const {
    return attn::options(attn::window(window, window), attn::bias(B), attn::alibi(slopes),
                         attn::sink(logits), attn::dropout(0.3, 1));
  }
  attn::AttentionState<float> forward() const {
    attn::AttentionState<float> state;
    MatrixXf Y;
    attn::attention(heads(Q, 4), heads(K, 2), heads(V, 2), options(), attn::into(Y),
                    attn::save_state(state));
    return state;
  }
  void backward(const attn::AttentionState<float>& state) const {
    MatrixXf dV;
    attn::attention_backward(heads(Q, 4), heads(K, 2), heads(V, 2), dY, state, options(),
                             attn::dvalue(dV));
  }
};

/// The call ends the program, where that is looked for.
template <class Call>
void expect_found(const Call& call) {
  if constexpr (attn::detail::debug_checks_t::value) {
    EXPECT_DEATH(call(), "finds other weights than its forward pass");
  } else {
    call();
  }
}

TEST(WeightCheckDeathTest, WhatHasChangedIsFound) {
  const Held held;
  const auto state = held.forward();
  held.backward(state);
  const auto expect_other = [&](const auto& change) {
    Held changed = held;
    change(changed);
    expect_found([&] { changed.backward(state); });
  };
  expect_other([](Held& h) { h.window = 19; });
  expect_other([](Held& h) { h.B(99, 90) += 0.5f; });
  expect_other([](Held& h) { h.slopes[3] = 0.5f; });
  expect_other([](Held& h) { h.logits[0] = 1.f; });
  expect_other([](Held& h) { h.K(90, 11) += 1.f; });
}

TEST(WeightCheckDeathTest, ALogSumExpOfAnotherCallIsFound) {
  const Held held;
  MatrixXf Y, l, wrong, dQ;
  attn::attention(heads(held.Q, 4), heads(held.K, 2), heads(held.V, 2), attn::into(Y),
                  attn::save_logsumexp(l));
  wrong = l;
  wrong(50, 2) += 0.01f;
  const auto back = [&](const MatrixXf& lse) {
    attn::attention_backward(heads(held.Q, 4), heads(held.K, 2), heads(held.V, 2), held.dY,
                             attn::AttentionState<float>::from(Y, lse), attn::dquery(dQ));
  };
  back(l);
  expect_found([&] { back(wrong); });
}

// Rows that see no key, and what is not finite, are no mistake.
TEST(WeightCheckDeathTest, RowsWithoutASumPass) {
  Held held;
  held.Q.row(3).setConstant(std::numeric_limits<float>::quiet_NaN());
  held.logits = {1.f, -std::numeric_limits<float>::infinity(), 0.f, 50.f};
  held.B.row(7).setConstant(-std::numeric_limits<float>::infinity());
  held.backward(held.forward());
}

}  // namespace
