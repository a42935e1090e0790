// tests/fuzz/views.h: calls on views of any sizes, strides and places in one piece of memory, which
// overlap, mirror, repeat or are null: refused with all outputs as they were, or what copies give.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/error_of.h"
#include "numbers.h"

namespace fuzz {

using View = attn::TensorView<float>;

/// One piece of memory, and views of it that are drawn: mostly of sizes that fit together.
class Views {
 public:
  View query, key, value, output, logsumexp;

  explicit Views(Draw& draw) : memory_(kSize) {
    Numbers number(kind(draw), draw.seed());
    for (float& x : memory_) x = float(number());
    const Index B = draw(1, 2), H = draw(1, 2), group = draw(1, 2), Lq = draw(0, 6),
                Lk = draw(0, 6), d = draw(1, 5), d_v = draw(0, 5),
                keys_of = draw(0, 3) == 3 ? 1 : B;
    query = view(B, H * group, Lq, d, draw);
    key = view(keys_of, H, Lk, d, draw);
    value = view(keys_of, H, Lk, d_v, draw);
    output = view(B, H * group, Lq, d_v, draw);
    logsumexp = view(B, H * group, Lq, 1, draw);
    if (draw(0, 7) == 7) output = query;
  }
  Views(const Views&) = delete;

  const std::vector<float>& memory() const { return memory_; }
  void restore(const std::vector<float>& memory) { memory_ = memory; }

  /// The numbers of a view, in memory of their own: [B, H, L, d].
  static std::vector<float> copied(const View& v) {
    std::vector<float> numbers;
    for_each(v, [&](float& x) { numbers.push_back(x); });
    return numbers;
  }
  template <class F>
  static void for_each(const View& v, const F& f) {
    for (Index b = 0; b < v.sequences; ++b) {
      for (Index h = 0; h < v.heads; ++h) {
        for (Index i = 0; i < v.tokens; ++i) {
          for (Index c = 0; c < v.features; ++c) f(v(b, h, i, c));
        }
      }
    }
  }

 private:
  static constexpr std::size_t kSize = 2048;

  /// [B, H, L, d] somewhere; now and then with strides of any kind, a size that is wrong, or null.
  View view(Index B, Index H, Index L, Index d, Draw& draw) {
    const Index form = draw(0, 255);
    View v = attn::bhld(memory_.data() + draw(0, 900), B, H, L, d);
    if (form % 4 == 1) v = attn::blhd(v.data, B, L, H, d);
    if (form % 4 == 2) v = attn::lbhd(v.data, L, B, H, d);
    if (form % 4 == 3) {
      v.data = memory_.data() + kSize / 2 + draw(-100, 100);
      v.sequence_stride = draw(-64, 64);
      v.head_stride = draw(-32, 32);
      v.token_stride = draw(-16, 16);
      v.feature_stride = draw(-8, 8);
    }
    if (form >= 224) {
      static constexpr Index kWrong[] = {-1,
                                         0,
                                         3,
                                         7,
                                         Index(1) << 52,
                                         std::numeric_limits<Index>::max(),
                                         std::numeric_limits<Index>::min(),
                                         1};
      Index* const sizes[] = {&v.sequences, &v.heads, &v.tokens, &v.features};
      *sizes[form >> 2 & 3] = kWrong[draw(0, 7)];
    } else if (form >= 216) {
      v.data = nullptr;
    }
    return v;
  }

  std::vector<float> memory_;
};

/// The call, on the views or on what stands for them.
inline void attend_views(const View& q, const View& k, const View& v, const View& y,
                         const View& l) {
  attn::attention(q, k, v, attn::into(y), attn::save_logsumexp(l));
}

inline void views(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  Views x(draw);
  const std::vector<float> before = x.memory();
  const std::string refusal =
      support::error_of([&] { attend_views(x.query, x.key, x.value, x.output, x.logsumexp); });
  if (refusal != "nothing was refused") {
    EXPECT_EQ(refusal.rfind("attn::attention: ", 0), 0u) << refusal;
    EXPECT_EQ(std::memcmp(before.data(), x.memory().data(), before.size() * sizeof(float)), 0)
        << refusal;
    return;
  }

  const std::vector<float> Y = Views::copied(x.output), l = Views::copied(x.logsumexp);
  x.restore(before);
  const auto apart = [](std::vector<float>& numbers, const View& like) {
    return attn::bhld(numbers.data(), like.sequences, like.heads, like.tokens, like.features);
  };
  std::vector<float> q = Views::copied(x.query), k = Views::copied(x.key),
                     v = Views::copied(x.value), y(Y.size()), m(l.size());
  attend_views(apart(q, x.query), apart(k, x.key), apart(v, x.value), apart(y, x.output),
               apart(m, x.logsumexp));
  const auto numbers = [](const std::vector<float>& list) {
    return Eigen::Map<const Eigen::VectorXf>(list.data(), Index(list.size()));
  };
  EXPECT_TRUE(same(numbers(Y), numbers(y)));
  EXPECT_TRUE(same(numbers(l), numbers(m)));
}

}  // namespace fuzz
