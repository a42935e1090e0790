// examples/05_decode.cpp: a small causal layer reads a prompt at once, then decodes token by token over a key/value cache: the rows of
// the whole text in one call, bit by bit; and what the cache takes in each storage type.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>

namespace {
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr Eigen::Index kWidth = 256, kHeads = 8, kKvHeads = 4, kPrompt = 200, kTokens = 456;
const auto kTurned =
    attn::rotary(attn::pairing::half_split);  // positions: keys turn on their way into the cache

/// Decodes all of X, the prompt first, and reports it beside what one causal call gives.
template <class Stored>
void decode(const char* stored, attn::MultiHeadAttention<float>& mha, const Matrix& X,
            const Matrix& whole) {
  const attn::KeyValueCacheOptions options(kTokens, kKvHeads, kWidth / kHeads);
  attn::KeyValueCache<Stored> cache(options), in_chunks(options);
  Matrix Y(kTokens, kWidth), Z(kTokens, kWidth);
  mha.decode(X.topRows(kPrompt), cache, attn::into(Y.topRows(kPrompt)), attn::residual(), kTurned);

  const auto start = std::chrono::steady_clock::now();
  for (Eigen::Index t = kPrompt; t < kTokens; ++t)
    mha.decode(X.row(t), cache, attn::into(Y.row(t)), attn::residual(), kTurned);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  for (Eigen::Index t = 0; t < kTokens; t += 57)  // the same text in pieces of 57 tokens
    mha.decode(X.middleRows(t, 57), in_chunks, attn::into(Z.middleRows(t, 57)), attn::residual(),
               kTurned);
  std::printf(
      "%-9s %6.0f KiB %9.0f tokens/s   in pieces: %s   from one causal call: %s, at most %.1e\n",
      stored, double(cache.bytes()) / 1024, double(kTokens - kPrompt) / seconds.count(),
      Z == Y ? "the same bits" : "OTHER BITS", whole == Y ? "the same bits" : "other bits",
      double((whole - Y).cwiseAbs().maxCoeff()));
}
}  // namespace

int main() {
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(kWidth, kHeads).kv_heads(kKvHeads));
  std::mt19937 engine(42);
  mha.edit([&](auto& weights) { attn::glorot_uniform(weights, engine); });
  const auto uniform = [&] { return float(engine() >> 8) * 0x1p-23f - 1; };  // [-1, 1)
  const Matrix X = Matrix::NullaryExpr(kTokens, kWidth, uniform);
  const Matrix whole = mha(X, attn::causal(), attn::residual(), kTurned);

  std::printf("%d tokens of prompt, then %d one by one; d_model %d, %d heads on %d\n", int(kPrompt),
              int(kTokens - kPrompt), int(kWidth), int(kHeads), int(kKvHeads));
  decode<float>("float", mha, X, whole);
  decode<Eigen::half>("half", mha, X, whole);
  decode<Eigen::bfloat16>("bfloat16", mha, X, whole);
  decode<std::int8_t>("int8", mha, X, whole);
}
