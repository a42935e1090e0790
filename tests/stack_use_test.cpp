// tests/stack_use_test.cpp: how much stack a call takes: measured on threads whose stacks were painted, and bounded. Callers
// with small stacks (audio callbacks, fibres) rely on it.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#if defined(__linux__)
#include <pthread.h>
#endif

#include <cstdlib>
#include <cstring>
#include <functional>

#include "support/random.h"
#include "support/random_layer.h"
#include "support/random_linear.h"

namespace {

using Eigen::Index;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kOwnFrames = false;  // sanitizers widen every frame
#else
constexpr bool kOwnFrames = true;
#endif

/// Bytes of stack that a call takes, on a thread of its own.
std::size_t stack_of([[maybe_unused]] const std::function<void()>& call) {
#if defined(__linux__)
  constexpr std::size_t size = 8 << 20;
  constexpr unsigned char kPaint = 0xA5;
  auto* const stack = static_cast<unsigned char*>(std::aligned_alloc(4096, size));
  std::memset(stack, kPaint, size);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, size);
  pthread_t thread;
  const auto run = [](void* f) -> void* {
    (*static_cast<const std::function<void()>*>(f))();
    return nullptr;
  };
  pthread_create(&thread, &attributes, run, const_cast<std::function<void()>*>(&call));
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  std::size_t untouched = 0;
  while (untouched < size && stack[untouched] == kPaint) ++untouched;
  std::free(stack);
  return size - untouched;
#else
  return 0;
#endif
}
/// Of the call alone: less what a thread takes that does nothing.
void expect_stack(const char* what, std::size_t most, const std::function<void()>& call) {
  call();  // what is set up once, is
  const std::size_t nothing = stack_of([] {}), bytes = stack_of(call) - nothing;
  if (std::getenv("ATTN_SHOW_STACK") != nullptr)
    std::printf("%-48s %6.1f KiB\n", what, double(bytes) / 1024);
  EXPECT_LE(bytes, most) << what;
}

constexpr std::size_t kKiB = 1024;

TEST(StackUse, OfCallsIsBounded) {
  if (!kOwnFrames) GTEST_SKIP() << "sanitizers widen every frame";
  const Matrix X = uniform<float>(300, 64, 1), dY = uniform<float>(300, 64, 2);
  const Eigen::MatrixXd D = uniform<double>(300, 64, 1);
  Matrix Y(300, 64), row(1, 64), dQ(300, 64), dK(300, 64), dV(300, 64);
  Eigen::MatrixXd E(300, 64);
  attn::ScaledDotProductAttention<float> sdpa;
  attn::ScaledDotProductAttention<double> sdpa_double;
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(300, 4, 16));
  cache.append(X, X);
  attn::AttentionState<float> state;
  auto mha = support::random_layer<float>(attn::MultiHeadOptions(64, 4));
  auto linear = support::random_linear<float>(attn::LinearOptions(64, 64));
  const auto h = [](auto& M) { return attn::heads(M, 4); };

  expect_stack("attention, float", 64 * kKiB,
               [&] { sdpa(h(X), h(X), h(X), attn::into(Y), attn::causal()); });
  expect_stack("attention, double", 64 * kKiB,
               [&] { sdpa_double(h(D), h(D), h(D), attn::into(E), attn::causal()); });
  expect_stack("decoding from a cache", 64 * kKiB, [&] {
    const auto last = X.bottomRows(1);
    sdpa(h(last), cache, attn::into(row));
  });
  expect_stack("attention, state saved", 64 * kKiB, [&] {
    sdpa(h(X), h(X), h(X), attn::into(Y), attn::causal(), attn::save_state(state));
  });
  expect_stack("gradients", 96 * kKiB, [&] {
    sdpa.backward(h(X), h(X), h(X), h(dY), state, attn::causal(), attn::dquery(dQ), attn::dkey(dK),
                  attn::dvalue(dV));
  });
  expect_stack("a layer", 64 * kKiB, [&] { mha(X, attn::into(Y)); });
  expect_stack("a linear layer", 64 * kKiB, [&] { linear(X, attn::into(Y), attn::gelu()); });
  expect_stack("softmax", 64 * kKiB, [&] { attn::softmax(X, attn::into(Y)); });
}

/// Fixed sizes keep their scratch on the stack, up to EIGEN_STACK_ALLOCATION_LIMIT (128 KiB).
template <class Scalar, int Rows, int Keys, int Dim>
void expect_fixed(const char* what, std::size_t most) {
  const Eigen::Matrix<Scalar, Rows, Dim> Q = uniform<Scalar>(Rows, Dim, 1);
  const Eigen::Matrix<Scalar, Keys, Dim> K = uniform<Scalar>(Keys, Dim, 2);
  Eigen::Matrix<Scalar, Rows, Dim> Y;
  expect_stack(what, most, [&] { attn::attention(Q, K, K, attn::into(Y)); });
}
TEST(StackUse, OfFixedSizesIsBounded) {
  if (!kOwnFrames) GTEST_SKIP() << "sanitizers widen every frame";
  expect_fixed<float, 8, 8, 8>("float 8 x 8, d 8", 160 * kKiB);
  expect_fixed<float, 16, 16, 32>("float 16 x 16, d 32", 160 * kKiB);
  expect_fixed<float, 64, 64, 64>("float 64 x 64, d 64", 160 * kKiB);
  expect_fixed<double, 64, 64, 64>("double 64 x 64, d 64", 160 * kKiB);
}

}  // namespace
