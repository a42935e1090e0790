// tests/fuzz/layer.h: the multi-head layer of any sizes, forwards and backwards, against the oracle
// and against itself: rows alone, other threads and layouts, other numbers in tokens that nobody sees.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/layer_gradient_case.h"
#include "../support/threads.h"
#include "call.h"

namespace fuzz {

/// A multi-head layer of any sizes over a batch.
inline attn::MultiHeadOptions layer_sizes(const Case& c, Draw& draw) {
  const auto sizes = attn::MultiHeadOptions(draw(1, 40), c.heads)
                         .kv_heads(c.kv_heads)
                         .key_dim(draw(1, 20))
                         .value_dim(draw(1, 20))
                         .key_features(draw(1, 40))
                         .value_features(draw(1, 40))
                         .output_features(draw(1, 40));
  const Index biases = draw(0, 3);
  return biases == 0   ? sizes
         : biases == 1 ? sizes.in_bias()
         : biases == 2 ? sizes.out_bias()
                       : sizes.biases();
}

using Layer = LayerCase<float>;
inline LayerTraining<float> train(Layer& x, Index offset, const AnyMask& mask, Draw& draw) {
  Threads pool;
  return trained_layer<Inputs::three>(
      x, attn::options(attn::query_offset(offset), mask, attn::on(pool, 1 + 2 * (draw(0, 7) / 7))));
}
inline Layer rows_of(const Layer& x, const Call& of, const Rows& r) {
  const Index keys = of.c.key_length(r.sequence), first = of.c.queries[at(r.sequence)] + r.begin;
  Layer part(x.mha.options(), BatchCase{{0, r.size()}, {0, keys}});
  part.mha = x.mha;
  part.Xq = some_rows(x.Xq, first, r.size());
  part.dY = some_rows(x.dY, first, r.size());
  part.Xk = some_rows(x.Xk, of.first_key(r.sequence), keys);
  part.Xv = some_rows(x.Xv, of.first_key(r.sequence), keys);
  return part;
}

/// What float may err by, of unit-scale weights and sums over the tokens.
inline void expect_layer_oracle(const Layer& x, const LayerTraining<float>& g,
                                const LayerCall& asked) {
  const Reference Xq = widened(x.Xq), Xk = widened(x.Xk), Xv = widened(x.Xv);
  const auto weights = widened_layer(x.mha.weights());
  EXPECT_TRUE(agrees(g.Y, reference_multi_head(weights, Xq, Xk, Xv, asked).output, 1e-5L)) << "Y";
  const auto expected = expected_gradient(x, Inputs::three, asked);
  const auto near = [](const auto& actual, const Reference& exact) {
    return agrees(actual, exact, 1e-5L * (1 + largest(exact)));
  };
  for_each_weight(g.weights, expected.weights,
                  [&](const char* name, const auto& by, const Reference& exact) {
                    if (by.size() + exact.size() > 0) EXPECT_TRUE(near(by, exact)) << name;
                  });
  EXPECT_TRUE(near(g.query, expected.query)) << "by the query input";
  EXPECT_TRUE(near(g.key, expected.key)) << "by the key input";
  EXPECT_TRUE(near(g.value, expected.value)) << "by the value input";
}

inline void layer(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  const Call of(draw);
  Layer x(layer_sizes(of.c, draw), BatchCase(of.c), draw.seed());
  const Layer whole = x;
  Call::scramble(x.Xk, of.seen_keys(), draw);
  Call::scramble(x.Xv, of.seen_keys(), draw);
  const auto all = train(x, of.offset, of.mask.mask, draw);
  LayerCall asked = x.reference();
  asked.attention.visible = of.reference().visible;
  expect_layer_oracle(whole, all, asked);

  Layer other = x;
  Call::scramble(other.Xk, of.seen_keys(), draw);
  Call::scramble(other.Xv, of.seen_keys(), draw);
  expect_same_gradients(train(other, of.offset, of.mask.mask, draw), all);
  const Rows r = of.some_rows(draw);
  Layer some = rows_of(x, of, r);
  const auto alone = train(some, of.offset + r.begin, of.part_mask(r), draw);
  const Index first = of.c.queries[at(r.sequence)] + r.begin;
  EXPECT_TRUE(same(alone.Y, some_rows(all.Y, first, r.size()))) << "Y of some rows";
  EXPECT_TRUE(same(alone.query, some_rows(all.query, first, r.size()))) << "dXq of some rows";
}

}  // namespace fuzz
