// tests/multi_head_gradient_composition_test.cpp: gradients of layers of random sizes over random
// batches under random masks, with rotary positions, a bias and dropout, where tokens that have no
// part in the loss hold no numbers.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/layer_gradient_case.h"
#include "support/random_composition.h"
#include "support/threads.h"

namespace {

using attn::MultiHeadOptions;
using Eigen::Index;
using namespace support;
using LayerCaseF = LayerCase<float>;

MultiHeadOptions random_sizes(const Case& c, Inputs given, Draw& draw) {
  MultiHeadOptions sizes = MultiHeadOptions(draw(1, 40), c.heads)
                               .kv_heads(c.kv_heads)
                               .key_dim(2 * draw(1, 6))
                               .value_dim(draw(1, 20))
                               .output_features(draw(1, 40));
  if (given != Inputs::one) sizes = sizes.key_features(draw(1, 40));
  if (given == Inputs::three) sizes = sizes.value_features(draw(1, 40));
  if (draw.one_in(2)) sizes = sizes.in_bias();
  if (draw.one_in(2)) sizes = sizes.out_bias();
  return sizes;
}

template <Inputs given>
struct Drawn {
  LayerCaseF x;
  Composition mask;
  Index offset;
  Scores scores;
  std::uint32_t part;  ///< of 65536 pairs, dropped
  attn::detail::Dropout drop;
  bool interleaved;
  Index dims;

  Drawn(const Case& c, Draw& draw)
      : x(random_sizes(c, given, draw), c, draw.seed() % 1000),
        mask(compose(c, draw, draw(0, 3))),
        offset(draw.one_in(3) ? 0 : draw(-20, 60)),
        scores(c, draw),
        part(draw.one_in(3) ? 0 : std::uint32_t(draw(0, 40000))),
        drop(attn::dropout(part / 65536., draw.seed(), draw.seed())),
        interleaved(draw.one_in(2)),
        dims(2 * draw(1, x.mha.options().key_dim() / 2)) {
    scores.bias = scores.bias.unaryExpr([](float b) { return std::isinf(b) ? 1.f : b; });
  }
  Drawn(const Drawn&) = delete;

  auto call() const {
    return attn::options(
        mask.mask, attn::query_offset(offset), attn::bias(scores.bias), drop,
        attn::rotary(interleaved ? attn::pairing::interleaved : attn::pairing::half_split, 100)
            .dims(dims));
  }
  LayerCall reference() const {
    LayerCall call = x.reference();
    call.attention.visible = [this](Index b, Index h, Index i, Index j) {
      return mask.rule({b, h, i, i + offset, j, x.queries[at(b)] + i});
    };
    call.attention.bias = [this](Index, Index, Index i, Index j) { return scores.bias_of(i, j); };
    call.attention.keeps = [this](Index b, Index h, Index i, Index j) {
      return attn::keeps(drop, {b, h, i + offset, j});
    };
    call.attention.dropped = part / 65536.L;
    call.rotary = ReferenceRotary{interleaved, 100, dims};
    for (Index b = 0; b < x.sequences(); ++b) {
      for (Index i = 0; i < x.query_length(b); ++i) call.query_positions.push_back(i + offset);
      if (b > 0 && x.keys.size() == 2) continue;
      for (Index j = 0; j < x.key_length(b); ++j) call.key_positions.push_back(j);
    }
    return call;
  }

  /// No numbers in tokens that neither see nor are seen.
  void poison(Draw& draw) {
    std::vector<bool> queries(at(x.Xq.rows())), keys(at(x.Xk.rows()));
    const LayerCall call = reference();
    for (Index b = 0; b < x.sequences(); ++b) {
      const Index first = x.keys.size() == 2 ? 0 : x.keys[at(b)];
      for (Index h = 0; h < x.heads; ++h) {
        for (Index i = 0; i < x.query_length(b); ++i) {
          for (Index j = 0; j < x.key_length(b); ++j) {
            if (call.attention.visible(b, h, i, j))
              queries[at(x.queries[at(b)] + i)] = keys[at(first + j)] = true;
          }
        }
      }
    }
    const auto fill = [&](auto&& row) {
      row.setConstant(draw.one_in(2)   ? kNaN<float>
                      : draw.one_in(2) ? kInfinity<float>
                                       : -kInfinity<float>);
    };
    for (Index i = 0; i < x.Xq.rows(); ++i) {
      if (!queries[at(i)] && (given != Inputs::one || !keys[at(i)])) fill(x.Xq.row(i));
    }
    for (Index j = 0; j < x.Xk.rows(); ++j) {
      if (keys[at(j)]) continue;
      fill(x.Xk.row(j));
      fill(x.Xv.row(j));
    }
  }
};

template <Inputs given>
void expect_formula(const Case& c, Draw& draw) {
  Drawn<given> d(c, draw);
  const MultiHeadOptions& o = d.x.mha.options();
  SCOPED_TRACE(testing::Message() << 1 + int(given) << " inputs, " << d.mask.text << ", offset "
                                  << d.offset << ", " << c.sequences() << " sequences of up to "
                                  << c.longest_query() << " x " << c.longest_key() << ", heads "
                                  << c.heads << " on " << c.kv_heads << " of " << o.key_dim()
                                  << " and " << o.value_dim() << ", d_model " << o.d_model() << ", "
                                  << d.part << " / 65536 dropped");
  const LayerCall call = d.reference();
  const auto expected = expected_gradient(d.x, given, call);
  d.poison(draw);
  Eigen::MatrixXf dB;
  auto g = trained_layer<given>(d.x, d.call(), attn::dbias(dB));
  expect_gradients(g, expected, given);
  if (!d.scores.one_column) {  // (which shifts all scores of a row alike: 0 but for rounding)
    EXPECT_TRUE(
        near_gradient<float>(dB, bias_gradient(expected.attention.added, call.attention,
                                               d.scores.bias.rows(), 1, d.scores.bias.cols())))
        << "by the bias";
  }
  auto by_threads = g;
  Eigen::MatrixXf dB_by_threads;
  Threads pool;
  by_threads.template backward<given>(d.x.mha, d.x, d.call(), attn::dbias(dB_by_threads),
                                      attn::on(pool, 3));
  expect_same_gradients(by_threads, g);
  EXPECT_TRUE(same_bits(dB_by_threads, dB));
}

TEST(MultiHeadGradientComposition, IsTheFormula) {
  for (std::uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Draw draw(seed);
    Case c = random_case(draw);
    if (draw.one_in(2)) {
      expect_formula<Inputs::three>(c, draw);
    } else if (draw.one_in(2)) {
      expect_formula<Inputs::two>(c, draw);
    } else {
      c.keys = c.queries;
      expect_formula<Inputs::one>(c, draw);
    }
    if (testing::Test::HasFailure()) break;  // one is enough to read
  }
}

}  // namespace
