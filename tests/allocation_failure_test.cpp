// tests/allocation_failure_test.cpp: whichever allocation of a call fails, everything is as it was before, and the next call right.
// build: -Og
// SPDX-License-Identifier: MIT
#include "support/allocations.h"

#include <attn/attn.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"
#include "support/random_linear.h"

namespace {

using attn::KeyValueCacheOptions;
using attn::MultiHeadOptions;
using Eigen::Index;
using support::fails_in;
using support::same_bits;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;
using Cache = attn::KeyValueCache<float>;
using Layer = attn::MultiHeadAttention<float>;
using Functor = attn::ScaledDotProductAttention<float>;

/// call(state) with each of its allocations failing in turn, on a new state each time: afterwards the state is as a new one,
/// state.expect_same(new one), and the call ends as it does when nothing fails, state.expect_right().
template <class Make, class Call>
void fail_each(int at_least, const Make& make, const Call& call) {
  const auto before = make();
  int failures = 0;
  for (bool failed = true; failed; failures += int(failed)) {
    auto state = make();
    failed = fails_in(failures, [&] { call(state); });
    SCOPED_TRACE("allocation " + std::to_string(failures + 1));
    if (failed) {
      state.expect_same(before);
      call(state);
    }
    state.expect_right();
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GE(failures, at_least) << "allocations that fail";
}

TEST(Witnesses, SeeAllocationsOfEveryKind) {
  struct alignas(64) Line {
    char bytes[64];
  };
  EXPECT_TRUE(fails_in(0, [] {
    int* volatile number = new int(1);  // volatile: a compiler may leave the pair out
    delete number;
  }));
  EXPECT_TRUE(fails_in(0, [] {
    Line* volatile line = new Line;
    delete line;
  }));
  EXPECT_TRUE(
      fails_in(0, [] { std::vector<int>(100).swap(*std::make_unique<std::vector<int>>()); }));
  EXPECT_TRUE(fails_in(0, [] { Matrix(7, 5).setZero(); }));
  EXPECT_TRUE(fails_in(1, [] { (Matrix(7, 5) * Matrix(5, 9)).eval(); }));
  EXPECT_FALSE(fails_in(0, [] { Eigen::Matrix4f::Zero().eval(); }));
}

// ---- Attention ------------------------------------------------------------------------------

void expect_same_matrix(const Matrix& has, const Matrix& before) {
  ASSERT_EQ(has.rows(), before.rows());
  ASSERT_EQ(has.cols(), before.cols());
  EXPECT_TRUE(same_bits(has, before));
}

/// All outputs of a call over 20 query rows of two heads and 30 keys.
struct Outputs {
  Matrix Y, l, m, e, W, S;

  /// Of the right size, but for those that the bits of `wrong` say; with values to lose.
  explicit Outputs(unsigned wrong) {
    unsigned bit = 1;
    const auto size = [&](Matrix& X, Index cols) {
      X = (wrong & bit) != 0 ? uniform<float>(3, 7, bit) : uniform<float>(20, cols, bit);
      bit *= 2;
    };
    size(Y, 10);
    for (Matrix* of_row : {&l, &m, &e}) size(*of_row, 2);
    for (Matrix* of_pair : {&W, &S}) size(*of_pair, 60);
  }
  void expect_same(const Outputs& before) const {
    const auto all = [](const Outputs& o) {
      return std::vector<const Matrix*>{&o.Y, &o.l, &o.m, &o.e, &o.W, &o.S};
    };
    for (std::size_t n = 0; n < 6; ++n) expect_same_matrix(*all(*this)[n], *all(before)[n]);
  }
};

struct Operands {
  Matrix Q = uniform<float>(20, 16, 1), K = uniform<float>(30, 16, 2),
         V = uniform<float>(30, 10, 3);
  Matrix B = uniform<float>(20, 30, 4);
};

/// Operands and options that own memory of their own, and everything that is saved.
template <class Attend, class... More>
void attend_with_all(Attend&& attend, const Operands& x, Outputs& o, const More&... more) {
  attend(attn::heads(x.Q * 1.0f, 2), attn::heads(x.K, 2), attn::heads(x.V, 2), attn::into(o.Y),
         attn::bias(x.B * 2.0f), attn::rotary(attn::pairing::half_split),
         attn::segments(std::vector<int>(20, 1), std::vector<int>(30, 1)),
         attn::alibi(std::vector<float>(2, 0.5f)), attn::query_offset(10),
         attn::save_logsumexp(o.l), attn::save_max_logit(o.m), attn::save_entropy(o.e),
         attn::save_weights(o.W), attn::save_scores(o.S, attn::stage::masked), more...);
}
const auto kFree = [](auto&&... arguments) {
  attn::attention(std::forward<decltype(arguments)>(arguments)...);
};

struct AttentionState : Outputs {
  Operands x;
  Functor functor;
  attn::Workspace<float> workspace;
  Outputs expected;

  AttentionState(unsigned wrong, const Outputs& right) : Outputs(wrong), expected(right) {
    Matrix small;
    functor(x.Q.topRows(1), x.K.topRows(2), x.V.topRows(2), attn::into(small));  // to be grown
  }
  void expect_right() const { Outputs::expect_same(expected); }
};

TEST(Attention, KeepsItsOutputs) {
  Outputs expected(0);
  attend_with_all(kFree, Operands(), expected);
  for (const unsigned wrong : {0u, 63u, 1u, 32u, 9u}) {
    const auto make = [&] { return AttentionState(wrong, expected); };
    fail_each(5, make, [](AttentionState& s) { attend_with_all(kFree, s.x, s); });
    fail_each(5, make, [](AttentionState& s) { attend_with_all(s.functor, s.x, s); });
    fail_each(5, make,
              [](AttentionState& s) { attend_with_all(kFree, s.x, s, attn::use(s.workspace)); });
  }
}

// The scratch of a functor stays usable when it could not grow, and what reserve() or a copy asked for is there or not.
TEST(Attention, KeepsAFunctorsScratch) {
  struct State {
    Operands x;
    Functor functor, other;
    Matrix Y, before;
    State() {
      before = attn::attention(x.Q.topRows(1), x.K.topRows(2), x.V.topRows(2));
      call(functor);
      other.reserve({20, 300, 64, 64, 4, 2});
    }
    void call(Functor& f) { f(x.Q.topRows(1), x.K.topRows(2), x.V.topRows(2), attn::into(Y)); }
    void expect_same(const State&) { expect_right(); }
    void expect_right() {
      call(functor);
      expect_same_matrix(Y, before);
      call(other);
      expect_same_matrix(Y, before);
    }
  };
  const auto make = [] { return State(); };
  fail_each(1, make, [](State& s) { s.functor.reserve({20, 3000, 128, 128, 8, 2}); });
  fail_each(1, make, [](State& s) { s.functor = s.other; });
  fail_each(1, make, [](State& s) { Functor(s.other).reserve({1, 1, 1, 1}); });
}

// ---- softmax, merge, rotate, residual_add -----------------------------------------------------

/// A matrix that is written, of the right size or not, and what it then holds.
struct Result {
  Matrix X = uniform<float>(9, 8, 1), Z = uniform<float>(9, 8, 2), la = uniform<float>(9, 2, 3),
         lb = uniform<float>(9, 2, 4);
  Matrix Y, l, expected, expected_l;

  Result(bool right_size, const Matrix& Y_is, const Matrix& l_is)
      : Y(right_size ? uniform<float>(Y_is.rows(), Y_is.cols(), 5) : uniform<float>(3, 2, 5)),
        l(right_size ? uniform<float>(l_is.rows(), l_is.cols(), 6) : uniform<float>(3, 2, 6)),
        expected(Y_is),
        expected_l(l_is) {}
  void expect_same(const Result& before) const {
    expect_same_matrix(Y, before.Y);
    expect_same_matrix(l, before.l);
  }
  void expect_right() const { expect_same_matrix(Y, expected); }
};

template <class Call>
void expect_result_kept(int at_least, const Call& call) {
  Result first(false, Matrix(), Matrix());
  call(first);
  for (const bool right_size : {true, false}) {
    fail_each(
        at_least + int(!right_size), [&] { return Result(right_size, first.Y, first.l); }, call);
  }
}

TEST(Workspace, KeepsWhatItHasWhereItCannotGrow) {
  attn::Workspace<float> workspace;
  float* const memory = workspace.reserve(100);
  EXPECT_TRUE(fails_in(0, [&] { workspace.reserve(1000); }));
  EXPECT_EQ(workspace.capacity(), 100);
  EXPECT_EQ(workspace.reserve(100), memory);
}

TEST(Softmax, KeepsItsOutput) {
  expect_result_kept(1, [](Result& r) { attn::softmax(r.X * 2.0f, attn::into(r.Y)); });
  expect_result_kept(1, [](Result& r) { attn::log_softmax(r.X * 2.0f, attn::into(r.Y)); });
  expect_result_kept(
      1, [](Result& r) { attn::logsumexp(r.X * 2.0f, attn::colwise(), attn::into(r.Y)); });
}
TEST(Merge, KeepsItsOutputs) {
  expect_result_kept(3, [](Result& r) {
    attn::merge(r.X * 2.0f, r.la.reverse(), r.Z, r.lb * 1.0f, attn::into(r.Y),
                attn::save_logsumexp(r.l));
  });
}
TEST(Rotate, KeepsItsOutput) {
  expect_result_kept(2, [](Result& r) {
    attn::rotate(r.X * 2.0f, attn::rotary(attn::pairing::interleaved), attn::into(r.Y));
  });
}
TEST(ResidualAdd, KeepsItsOutput) {
  expect_result_kept(
      2, [](Result& r) { attn::residual_add(r.X.reverse(), r.Z * 2.0f, attn::into(r.Y)); });
}

// ---- The layer --------------------------------------------------------------------------------

struct LayerState {
  Layer mha = support::random_layer<float>(MultiHeadOptions(8, 2).in_bias());
  Layer other = support::random_layer<float>(MultiHeadOptions(12, 3).out_bias(), 7);
  Matrix X = uniform<float>(5, 8, 1), Y, l, W;
  bool changed = false;  ///< the layer is other layers' equal in the end

  explicit LayerState(bool right_size = true)
      : Y(right_size ? uniform<float>(5, 8, 2) : uniform<float>(2, 2, 2)),
        l(right_size ? uniform<float>(5, 2, 3) : uniform<float>(2, 2, 3)),
        W(right_size ? uniform<float>(5, 10, 4) : uniform<float>(2, 2, 4)) {
    (void)mha(X.topRows(1));
  }
  void call() {
    mha(X, attn::into(Y), attn::save_logsumexp(l), attn::save_weights(W), attn::residual());
  }
  void expect_same(const LayerState& before) {
    expect_same_matrix(Y, before.Y);
    expect_same_matrix(l, before.l);
    expect_same_matrix(W, before.W);
    EXPECT_EQ(mha.options().d_model(), 8);
    expect_same_matrix(mha.weights().query, before.mha.weights().query);
    LayerState fresh;
    expect_same_matrix(mha(X), fresh.mha(X));
  }
  void expect_right() {}
};

TEST(MultiHead, KeepsItsOutputs) {
  struct Called : LayerState {
    using LayerState::LayerState;
    void expect_right() {
      LayerState right;
      right.call();
      expect_same_matrix(Y, right.Y);
      expect_same_matrix(l, right.l);
      expect_same_matrix(W, right.W);
    }
  };
  for (const bool right_size : {true, false}) {
    fail_each(
        2, [&] { return Called(right_size); }, [](Called& s) { s.call(); });
  }
}

TEST(MultiHead, IsEditedAndAssignedWholeOrNotAtAll) {
  struct Assigned : LayerState {
    void expect_right() {
      if (mha.options().d_model() == 8) return;
      const Matrix Z = uniform<float>(4, 12, 5);
      LayerState fresh;
      expect_same_matrix(mha(Z), fresh.other(Z));
    }
  };
  const auto make = [] { return Assigned(); };
  fail_each(8, make, [](Assigned& s) { s.mha = s.other; });
  fail_each(8, make, [](Assigned& s) { Layer copied(s.mha); });
  fail_each(7, make, [](Assigned& s) { s.mha.edit([](auto& w) { w.query.setZero(); }); });
  fail_each(9, make, [](Assigned& s) { s.mha.set_value(Matrix(uniform<float>(8, 8, 1) * 2)); });
  fail_each(10, make, [](Assigned&) { Layer made(MultiHeadOptions(20, 5).in_bias().out_bias()); });
  fail_each(2, make, [](Assigned& s) {
    attn::LayerShape shape;
    shape.queries = shape.keys = 600;
    s.mha.reserve(shape);
  });
}

TEST(MultiHead, LoadsAndStoresWithoutMemory) {
  Layer mha(MultiHeadOptions(8, 2));
  std::vector<float> in(192, 1.0f), out(64, 2.0f);
  attn::PyTorchView<float> view;
  view.in_proj_weight = in.data();
  view.out_proj_weight = out.data();
  attn::MultiHeadWeights<float> w = mha.weights();
  EXPECT_FALSE(fails_in(0, [&] { attn::load(w, view); }));
  EXPECT_FALSE(fails_in(0, [&] { attn::store(w, view); }));
}

// ---- The cache --------------------------------------------------------------------------------

/// What a cache holds, as attention sees it: every key for itself.
Matrix seen_in(const Cache& cache) {
  const Matrix Q = uniform<float>(6, 8, 9);
  return attn::attention(Q, cache, attn::all_keys());
}

struct CacheState {
  Cache cache{KeyValueCacheOptions(40, 2, 4)}, other{KeyValueCacheOptions(300, 2, 4)};
  Layer mha = support::random_layer<float>(MultiHeadOptions(8, 4).kv_heads(2).key_dim(4));
  Matrix X, Y, W;
  Functor functor;

  explicit CacheState(bool right_size = true, Index rows = 5)
      : X(uniform<float>(rows, 8, 1)),
        Y(right_size ? uniform<float>(rows, 8, 2) : uniform<float>(2, 2, 2)),
        W(right_size ? uniform<float>(5, 4 * 25, 3) : uniform<float>(2, 2, 3)) {
    cache.append(uniform<float>(20, 8, 4), uniform<float>(20, 8, 5));
    other.append(uniform<float>(280, 8, 6), uniform<float>(280, 8, 7));
  }
  void expect_same(const CacheState& before) const {
    expect_same_matrix(Y, before.Y);
    expect_same_matrix(W, before.W);
    ASSERT_EQ(cache.length(), 20);
    ASSERT_EQ(cache.capacity(), 40);
    expect_same_matrix(seen_in(cache), seen_in(before.cache));
  }
  void expect_right() const {}
};

TEST(CacheOfKeys, IsAppendedToAndAssignedWholeOrNotAtAll) {
  struct Assigned : CacheState {
    void expect_right() const {
      if (cache.capacity() == 300) expect_same_matrix(seen_in(cache), seen_in(other));
    }
  };
  struct Appended : CacheState {
    void expect_right() const {
      EXPECT_EQ(cache.length(), 25);
      CacheState right;
      right.cache.append(X, X);
      expect_same_matrix(seen_in(cache), seen_in(right.cache));
    }
  };
  fail_each(
      1, [] { return Assigned(); }, [](Assigned& s) { s.cache = s.other; });
  fail_each(
      1, [] { return Assigned(); }, [](Assigned& s) { Cache copied(s.cache); });
  fail_each(
      1, [] { return Assigned(); }, [](Assigned&) { Cache made(KeyValueCacheOptions(9, 2, 4)); });
  fail_each(
      2, [] { return Appended(); },
      [](Appended& s) { s.cache.append(s.X * 1.0f, s.X.reverse().reverse()); });
}

TEST(CacheOfKeys, KeepsTheOutputsOfAttention) {
  static constexpr Index kRows = 20;  // a list of as many does not lie in its option
  struct Attended : CacheState {
    explicit Attended(bool right_size) : CacheState(right_size, kRows) {}
    void expect_right() const {
      Attended right(true);
      right.attend();
      expect_same_matrix(Y, right.Y);
    }
    void attend() {
      functor(X * 1.0f, cache, attn::into(Y), attn::sequence_length(1),
              attn::cache_sequences(std::vector<Index>(kRows, 0)));
    }
  };
  for (const bool right_size : {true, false}) {
    fail_each(
        3, [&] { return Attended(right_size); }, [](Attended& s) { s.attend(); });
  }
}

TEST(CacheOfKeys, AndOutputAreKeptByDecode) {
  struct Decoded : CacheState {
    using CacheState::CacheState;
    void expect_right() const {
      CacheState right;
      decode(right);
      EXPECT_EQ(cache.length(), 25);
      expect_same_matrix(Y, right.Y);
      expect_same_matrix(W, right.W);
      expect_same_matrix(seen_in(cache), seen_in(right.cache));
    }
    static void decode(CacheState& s) {
      s.mha.decode(s.X * 1.0f, s.cache, attn::into(s.Y), attn::save_weights(s.W));
    }
  };
  for (const bool right_size : {true, false}) {
    fail_each(
        3, [&] { return Decoded(right_size); }, [](Decoded& s) { Decoded::decode(s); });
  }
}

// ---- Linear layers ----------------------------------------------------------------------------

struct LinearState {
  attn::Linear<float> linear = support::random_linear<float>(attn::LinearOptions(8, 12).bias());
  attn::Linear<float> other = support::random_linear<float>(attn::LinearOptions(40, 3), 7);
  Matrix X = uniform<float>(5, 8, 1), Y = uniform<float>(2, 3, 2);

  void expect_same(const LinearState& before) const {
    for (const auto of : {&LinearState::linear, &LinearState::other}) {
      const auto w = (this->*of).weights(), was = (before.*of).weights();
      expect_same_matrix(w.kernel(), was.kernel());
      expect_same_matrix(w.bias(), was.bias());
    }
    expect_same_matrix(Y, before.Y);
  }
  void expect_right() { EXPECT_EQ((Matrix(other(Matrix::Ones(1, 40))).cols()), 3); }
};

TEST(AllocationFailure, LeavesALinearLayerAndItsOutputAsTheyWere) {
  const auto make = [] { return LinearState(); };
  fail_each(2, make, [](LinearState& s) { s.linear(s.X, attn::into(s.Y), attn::gelu()); });
  fail_each(2, make, [](LinearState& s) { s.linear.edit([](auto& w) { w.kernel().setZero(); }); });
  struct Assigned : LinearState {
    void expect_right() {
      expect_same_matrix(other.weights().kernel(), LinearState().linear.weights().kernel());
    }
  };
  fail_each(
      2, [] { return Assigned(); }, [](Assigned& s) { s.other = s.linear; });
}

}  // namespace
