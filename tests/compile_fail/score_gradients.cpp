// SPDX-License-Identifier: MIT
// Gradients of what modifies scores (score_gradient.h), and the slopes of score functors.
//
// expect 1: a backward pass needs the slope of the score functor.*score\(f, slope\)
// expect 2: a generic functor brings its slope along: write score\(f\)
// expect 3: the slope of a functor takes the score and where it stands
// expect 4: the score comes with its slope, which lanes that were made without it cannot take: begin with the score
// expect 5: dbias without a bias: add the bias\(B\) of the forward call
// expect 6: dalibi without an alibi
// expect 7: dsink without a sink
// expect 8: dscore without a score
// expect 9: dbias twice in one call
// expect 10: the bias is a strided view, so its gradient is one as well
// expect 11: a gradient is written in the scalar that the call computes in
// expect 12: expected a vector of Eigen to write to
// expect 13: expected a vector, not a matrix
// expect 14: dscale: the number is a temporary
// expect 15: dscale: the number is const
// expect 16: the functor takes the gradient of a score and where it stands
#include <attn/attn.h>

#include <vector>

using Eigen::MatrixXf;
using Eigen::VectorXf;

void call(const MatrixXf& Q, const attn::AttentionState<float>& state, const MatrixXf& B) {
  MatrixXf dQ, dB;
  VectorXf numbers;
  std::vector<float> list;
  float number = 0;
  const float constant = 0;
  const auto run = [&](auto&&... options) {
    attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), options...);
  };
  const auto concrete = [](float s, attn::At) { return 2 * s; };
  const auto slope = [](float, attn::At) { return 2.f; };
  const auto generic = [](auto s, auto) { return 2 * s; };
#if CASE == 1
  run(attn::score(concrete));
#else
  run(attn::score(concrete, slope));
#endif
#if CASE == 2
  run(attn::score(generic, slope));
#else
  run(attn::score(attn::one_by_one(generic), slope));
#endif
#if CASE == 3
  run(attn::score(concrete, [](float s) { return s; }));
#else
  run(attn::score(concrete, [](float s, attn::At) { return s; }));
#endif
#if CASE == 4
  run(attn::score([](auto s, auto at) {
    auto x = at.query - at.key;
    x *= s;
    return x;
  }));
#else
  run(attn::score([](auto s, auto at) {
    auto x = s;
    x *= at.query - at.key;
    return x;
  }));
#endif
  const auto bias = attn::bias(B);
  const auto alibi = attn::alibi(0.5f);
  const auto sink = attn::sink(0.5f);
  const auto scored = attn::score(generic);
#if CASE == 5
  run(attn::dbias(dB));
#else
  run(bias, attn::dbias(dB));
#endif
#if CASE == 6
  run(attn::dalibi(numbers));
#else
  run(alibi, attn::dalibi(numbers));
#endif
#if CASE == 7
  run(attn::dsink(numbers));
#else
  run(sink, attn::dsink(numbers));
#endif
#if CASE == 8
  run(attn::dscore([](float, attn::At) {}));
#else
  run(scored, attn::dscore([](float, attn::At) {}));
#endif
#if CASE == 9
  run(bias, attn::dbias(dB), attn::dbias(dB));
#else
  run(bias, attn::dbias(dB));
#endif
  const auto view = attn::bhld(dB.data(), 1, 1, 4, 4);
  const auto bias_of_view = attn::bias(attn::bhld(B.data(), 1, 1, 4, 4));
#if CASE == 10
  run(bias_of_view, attn::dbias(dB));
#else
  run(bias_of_view, attn::dbias(view));
#endif
#if CASE == 11
  Eigen::MatrixXd wide;
  run(bias, attn::dbias(wide));
#else
  Eigen::Matrix<Eigen::half, -1, -1> narrow;
  run(bias, attn::dbias(narrow));
#endif
#if CASE == 12
  run(alibi, attn::dalibi(list));
#else
  Eigen::Map<VectorXf> mapped(list.data(), 1);
  run(alibi, attn::dalibi(mapped));
#endif
#if CASE == 13
  run(sink, attn::dsink(dB));
#else
  run(sink, attn::dsink(dB.col(0)));
#endif
#if CASE == 14
  run(attn::dscale(1.f));
#else
  run(attn::dscale(number));
#endif
#if CASE == 15
  run(attn::dscale(constant));
#else
  (void)constant;
#endif
#if CASE == 16
  run(scored, attn::dscore([](float) {}));
#else
  run(scored, attn::dscore([&](float ds, attn::At) { number += ds; }));
#endif
}
