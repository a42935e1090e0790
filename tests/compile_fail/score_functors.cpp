// SPDX-License-Identifier: MIT
// The user's own scores and masks (score.h, lanes.h, mask.h): signatures, and what lanes cannot do.
//
// expect 1: one key at a time takes the score and where it stands.*write \[\]\(float s, attn::At at\)
// expect 2: called with lanes of keys: write \[\]\(auto s, auto at\)
// expect 3: lanes have no single truth.*write select\(condition, a, b\)
// expect 4: lanes have no single truth.*write select\(condition, a, b\)
// expect 5: lanes have no single truth.*write select\(condition, a, b\)
// expect 6: the table must know its size
// expect 7: two score functors in one call: options have no order
// expect 8: two alibis in one call
// expect 9: two sinks in one call
// expect 10: called with lanes of keys: write \[\]\(auto s, auto at\)
// expect 11: mask: the functor is const, takes where a pair stands.*write \[\]\(attn::At at\)
// expect 12: the functor's ranges are written attn::KeyRange keys\(const attn::QueryRows& rows\) const
// expect 13: block_sparse: expected a matrix of bool, an entry for each block x block
// expect 14: causal\(\) leaves the alignment open that another mask of the call names
// expect 15: causal\(\) leaves the alignment open that another mask of the call names
// expect 16: expected a vector, one number for each head
// expect 17: one key at a time takes the score and where it stands.*write \[\]\(float s, attn::At at\)
// expect 18: mask: the functor is const, takes where a pair stands.*write \[\]\(attn::At at\)
// expect 19: an index differs from lane to lane: write lookup\(table, index\)
#include <attn/attn.h>

#include <vector>

using Eigen::MatrixXf;
using Bools = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;

struct Ranged {
  bool operator()(attn::At at) const { return at.key < 3; }
#if CASE == 12
  attn::KeyRange keys(int) const { return {0, 3}; }
#else
  attn::KeyRange keys(const attn::QueryRows&) const { return {0, 3}; }
#endif
};

void call(const MatrixXf& Q, const std::vector<float>& table, const Bools& B) {
  MatrixXf Y;
  const auto run = [&](const auto&... options) { Y = attn::attention(Q, Q, Q, options...); };
#if CASE == 1
  run(attn::score([](float s) { return s; }));
#else
  run(attn::score([](float s, attn::At) { return s; }));
#endif
#if CASE == 2
  run(attn::score([](auto s) { return s; }));
#else
  run(attn::score([](auto s, auto) { return s; }));
#endif
#if CASE == 3
  run(attn::score([](auto s, auto at) {
    if (at.query < at.key) return s;
    return s + 1;
  }));
#else
  run(attn::score([](auto s, auto at) { return select(at.query < at.key, s, s + 1); }));
#endif
#if CASE == 4
  run(attn::score([](auto s, auto) { return s > 0 ? s : -s; }));
#else
  run(attn::score([](float s, attn::At) { return s > 0 ? s : -s; }));
#endif
#if CASE == 5
  run(attn::score([](auto s, auto) {
    while (s) s -= 1;
    return s;
  }));
#else
  run(attn::score([](auto s, auto) { return abs(s); }));
#endif
#if CASE == 6
  run(attn::score([&](auto s, auto at) { return s + lookup(table.data(), at.key); }));
#else
  run(attn::score([&](auto s, auto at) { return s + lookup(table, at.key); }));
#endif
  const auto twice = attn::score([](auto s, auto) { return 2 * s; });
#if CASE == 7
  run(twice, attn::score([](float s, attn::At) { return s; }));
#else
  run(twice);
#endif
#if CASE == 8
  run(attn::alibi(0.5f), attn::alibi(0.25f));
#else
  run(attn::alibi(0.5f));
#endif
#if CASE == 9
  run(attn::sink(), attn::sink(1.f));
#else
  run(attn::sink());
#endif
#if CASE == 10
  run(attn::score([](auto, auto at) { return at.query < at.key; }));
#else
  run(attn::score([](auto, auto at) { return at.key; }));
#endif
#if CASE == 11
  run(attn::mask([](float s, attn::At at) { return s > 0 && at.key > 3; }));
#else
  run(attn::mask([](attn::At at) { return at.key > 3; }));
#endif
  run(attn::mask(Ranged()));
#if CASE == 13
  run(attn::block_sparse(Q, 128));
#else
  run(attn::block_sparse(B, 128));
#endif
#if CASE == 14
  run(attn::causal(), attn::causal(attn::align::lower_right));
#else
  run(attn::causal(attn::align::lower_right));
#endif
#if CASE == 15
  run(attn::window(3, 0) && !(attn::causal_from(2) || attn::causal()));
#else
  run(attn::window(3, 0) && !(attn::causal_from(2) || attn::window(1, 0)));
#endif
#if CASE == 16
  run(attn::alibi(Q));
#else
  run(attn::alibi(Q.col(0)));
#endif
#if CASE == 17
  run(attn::score([n = 0.f](float s, attn::At) mutable { return s + n++; }));
#else
  run(attn::score([](float s, attn::At at) { return s + float(at.key); }));
#endif
#if CASE == 18
  run(attn::mask([](attn::Index key) { return key > 3; }));
#else
  run(attn::mask([](attn::Index, attn::Index key) { return key > 3; }));
#endif
#if CASE == 19
  run(attn::score([&](auto s, auto at) { return s + Q(at.query, at.key); }));
#else
  run(attn::score([&](float s, attn::At at) { return s + Q(at.query, at.key); }));
#endif
}
