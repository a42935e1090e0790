// tests/onnx_test.cpp: the ONNX standard's own cases, and what its text says over random attributes, by examples/onnx_attention.
// SPDX-License-Identifier: MIT
// build: -Og
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <sstream>

#include "operators.h"
#include "support/error_of.h"

#ifndef ATTN_ONNX_CASES
#define ATTN_ONNX_CASES ""
#endif

namespace {

using onnx::Case;
using onnx::Index;
using onnx::Tensor;
using onnx::Type;
using support::error_of;

// ---- the standard's cases -----------------------------------------------------------------------

std::vector<std::string> case_files() {
  std::vector<std::string> paths;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(ATTN_ONNX_CASES, none)) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() == ".txt" && name.rfind("test_", 0) == 0)
      paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

TEST(OnnxCases, AreThere) {
  if (case_files().empty())
    GTEST_SKIP() << "no ONNX cases: the CMake variable ATTN_ONNX_CASES names no folder of them ("
                 << ATTN_ONNX_CASES << ")";
}

class OnnxCase : public testing::TestWithParam<std::string> {};

TEST_P(OnnxCase, HoldsWithinTheStandardsTolerance) {
  const Case c = onnx::read_case(GetParam());
  ASSERT_FALSE(c.outputs.empty());
  const auto results = onnx::run(c);
  ASSERT_EQ(results.size(), c.outputs.size());
  for (std::size_t n = 0; n < results.size(); ++n) {
    if (!c.outputs[n]) continue;
    const Tensor& expected = *c.outputs[n];
    const auto standard = onnx::compare(*results[n], expected, 1e-3, 1e-7);
    EXPECT_TRUE(standard.within) << "output " << n << ": error " << standard.largest;
    if (expected.type != Type::float32) continue;
    const auto own = onnx::compare(*results[n], expected, 0, 1e-6);
    EXPECT_TRUE(own.within) << "output " << n << ": error " << own.largest;
  }
}

std::string file_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = std::filesystem::path(info.param).stem().string();
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); },
      '_');
  return name;
}
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OnnxCase);
INSTANTIATE_TEST_SUITE_P(Onnx, OnnxCase, testing::ValuesIn(case_files()), file_name);

// ---- the standard's text, over random attributes ----------------------------------------------------

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  Index from(Index first, Index last) {
    return first + Index(engine_() % std::uint32_t(last - first + 1));
  }
  bool coin(int of = 2) { return engine_() % std::uint32_t(of) == 0; }
  Type real_type() {
    if (coin(5)) return coin() ? Type::float16 : Type::bfloat16;
    return coin() ? Type::float32 : Type::float64;
  }
  /// Numbers in [−2, 2]; truths, three of four; whole numbers as far as the type has them.
  Tensor tensor(Type type, const std::vector<Index>& dims) {
    Tensor x(type, dims);
    for (Index i = 0; i < x.size(); ++i)
      x.set(i, type == Type::boolean ? double(!coin(4)) : double(engine_() % 4001) / 1000 - 2);
    return x;
  }

 private:
  std::mt19937 engine_;
};

struct Call {
  onnx::AttentionAttributes a;
  Tensor Q, K, V;
  std::optional<Tensor> mask, past_key, past_value, nonpad;
  Index batch, heads, kv_heads, queries, added, past = 0, keys, key_dim, value_dim;

  explicit Call(Random& r)
      : batch(r.from(1, 3)),
        heads(0),
        kv_heads(r.from(1, 3)),
        queries(r.coin(20) ? 0 : r.from(1, 7)),
        added(r.coin(20) ? 0 : r.from(1, 40)),
        key_dim(r.from(1, 9)),
        value_dim(r.from(1, 9)) {
    heads = kv_heads * r.from(1, 3);
    const bool flat = r.coin();  // rank 3
    const Type type = r.real_type();
    const Type value_type = r.coin(8) ? r.real_type() : type;
    const auto operand = [&](Type of, Index n, Index tokens, Index d) {
      return r.tensor(of, flat ? std::vector<Index>{batch, tokens, n * d}
                               : std::vector<Index>{batch, n, tokens, d});
    };
    Q = operand(type, heads, queries, key_dim);
    K = operand(type, kv_heads, added, key_dim);
    V = operand(value_type, kv_heads, added, value_dim);
    if (flat) a.q_num_heads = heads, a.kv_num_heads = kv_heads;
    if (r.coin(3)) {
      past = r.from(0, 12);
      past_key = r.tensor(type, {batch, kv_heads, past, key_dim});
      past_value = r.tensor(value_type, {batch, kv_heads, past, value_dim});
    }
    keys = past + added;
    if (!past_key && r.coin(3)) {
      nonpad = Tensor(Type::int64, {batch});
      for (Index b = 0; b < batch; ++b) nonpad->set(b, double(r.from(0, keys)));
    }
    if (!r.coin(3)) {
      const auto size = [&r](Index whole) { return r.coin() ? whole : Index(1); };
      std::vector<Index> dims = {size(batch), size(heads), size(queries),
                                 r.coin(3) ? r.from(0, keys) : keys};
      dims.erase(dims.begin(), dims.begin() + r.from(0, 3));  // ranks 4 to 1
      const Type types[] = {Type::boolean, Type::boolean, Type::boolean, type,       type, type,
                            Type::float32, Type::int8,    Type::float64, Type::int64};
      mask = r.tensor(types[r.from(0, 9)], dims);
      const bool is_real = mask->type == type || mask->type == Type::float32;
      if (is_real && mask->size() > 0 && r.coin()) mask->set(0, -INFINITY);
    }
    a.is_causal = r.coin();
    if (r.coin()) a.scale = 0.37;
    if (r.coin(3)) a.softcap = r.coin(4) ? -1 : 1.5;  // below 0: none
    if (r.coin(3)) a.left_window_size = r.from(0, 9);
    if (r.coin(3)) a.right_window_size = r.from(0, 9);
    if (r.coin(4)) a.softmax_precision = r.real_type();
    a.qk_matmul_output_mode = int(r.from(0, 3));
  }

  /// Element of an operand with this many heads, whatever its rank.
  static double element(const Tensor& x, Index n, Index b, Index h, Index i, Index c) {
    if (x.rank() == 4) return x.at(((b * n + h) * x.dim(2) + i) * x.dim(3) + c);
    const Index d = x.dim(2) / n;
    return x.at((b * x.dim(1) + i) * n * d + h * d + c);
  }
  double key(Index b, Index h, Index j, Index c) const {
    return j < past ? element(*past_key, kv_heads, b, h, j, c)
                    : element(K, kv_heads, b, h, j - past, c);
  }
  double value(Index b, Index h, Index j, Index c) const {
    return j < past ? element(*past_value, kv_heads, b, h, j, c)
                    : element(V, kv_heads, b, h, j - past, c);
  }
  /// What the mask adds to a pair.
  double added_by_mask(Index b, Index h, Index i, Index j) const {
    if (!mask) return 0;
    if (j >= mask->dim(-1)) return -INFINITY;
    const Index at[] = {b, h, i, j};
    Index offset = 0;
    for (Index n = 0; n < mask->rank(); ++n) {
      const Index size = mask->dim(n);
      offset = offset * size + (size == 1 ? 0 : at[4 - mask->rank() + n]);
    }
    if (mask->type == Type::boolean) return mask->at(offset) != 0 ? 0 : -INFINITY;
    return mask->at(offset);
  }
  bool visible(Index b, Index i, Index j) const {
    Index position = i + past;
    if (nonpad) {
      const Index valid = Index(nonpad->at(b));
      if (j >= valid) return false;
      position = i + valid - queries;
    }
    if (a.is_causal && j > position) return false;
    if (a.left_window_size >= 0 && j < position - a.left_window_size) return false;
    return a.right_window_size < 0 || j <= position + a.right_window_size;
  }

  /// The standard's formula for one row: what qk_matmul_output holds of it, and the row of Y.
  void row(Index b, Index h, Index i, std::vector<double>& qk, std::vector<double>& y) const {
    const Index group = heads / kv_heads;
    std::vector<double> p(static_cast<std::size_t>(keys));
    qk.assign(p.size(), 0);
    double largest = -INFINITY, sum = 0;
    for (Index j = 0; j < keys; ++j) {
      double s = 0;
      for (Index c = 0; c < key_dim; ++c)
        s += element(Q, heads, b, h, i, c) * key(b, h / group, j, c);
      s *= a.scale.value_or(1 / std::sqrt(double(key_dim)));
      double& shown = qk[std::size_t(j)];
      shown = s;
      if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
      if (a.qk_matmul_output_mode >= 1) shown = s;
      s = visible(b, i, j) ? s + added_by_mask(b, h, i, j) : -INFINITY;
      if (a.qk_matmul_output_mode >= 2) shown = s;
      p[std::size_t(j)] = s;
      largest = std::max(largest, s);
    }
    for (double& x : p) sum += x = largest == -INFINITY ? 0 : std::exp(x - largest);
    y.assign(std::size_t(value_dim), 0);
    for (Index j = 0; j < keys; ++j) {
      const double weight = sum == 0 ? 0 : p[std::size_t(j)] / sum;
      if (a.qk_matmul_output_mode == 3) qk[std::size_t(j)] = weight;
      for (Index c = 0; c < value_dim; ++c) y[std::size_t(c)] += weight * value(b, h / group, j, c);
    }
  }
};

TEST(OnnxAttention, FollowsTheStandardOverRandomAttributes) {
  Random random(11);
  for (int trial = 0; trial < 600; ++trial) {
    SCOPED_TRACE(trial);
    const Call call(random);
    const bool wants_qk = trial % 3 != 0;
    Tensor Y, present_key, present_value, qk;
    onnx::attention(
        call.a,
        {&call.Q, &call.K, &call.V, call.mask ? &*call.mask : nullptr,
         call.past_key ? &*call.past_key : nullptr, call.past_value ? &*call.past_value : nullptr,
         call.nonpad ? &*call.nonpad : nullptr},
        {&Y, &present_key, &present_value, wants_qk ? &qk : nullptr});
    ASSERT_EQ(Y.type, call.Q.type);
    ASSERT_EQ(Y.rank(), call.Q.rank());
    ASSERT_EQ(present_value.dims,
              (std::vector<Index>{call.batch, call.kv_heads, call.keys, call.value_dim}));
    const double tolerance = call.Q.type == Type::float64    ? 1e-12
                             : call.Q.type == Type::float32  ? 4e-6
                             : call.Q.type == Type::bfloat16 ? 0.04
                                                             : 0.005;
    const auto close = [&](double x, double e) {
      return x == e || std::abs(x - e) <= tolerance * std::max(1.0, std::abs(e) / 4);
    };
    std::vector<double> expected_qk, expected_y;
    for (Index b = 0; b < call.batch; ++b) {
      for (Index h = 0; h < call.heads; ++h) {
        for (Index i = 0; i < call.queries; ++i) {
          call.row(b, h, i, expected_qk, expected_y);
          for (Index c = 0; c < call.value_dim; ++c) {
            const double y = Call::element(Y, call.heads, b, h, i, c);
            ASSERT_TRUE(close(y, expected_y[std::size_t(c)]))
                << y << ", expected " << expected_y[std::size_t(c)];
          }
          for (Index j = 0; wants_qk && j < call.keys; ++j) {
            const double s = Call::element(qk, call.heads, b, h, i, j);
            ASSERT_TRUE(close(s, expected_qk[std::size_t(j)]))
                << s << ", expected " << expected_qk[std::size_t(j)] << ", mode "
                << call.a.qk_matmul_output_mode;
          }
        }
      }
      for (Index h = 0; h < call.kv_heads; ++h) {
        for (Index j = 0; j < call.keys; ++j) {
          ASSERT_EQ(Call::element(present_key, call.kv_heads, b, h, j, 0), call.key(b, h, j, 0));
          ASSERT_EQ(Call::element(present_value, call.kv_heads, b, h, j, 0),
                    call.value(b, h, j, 0));
        }
      }
    }
  }
}

TEST(OnnxSoftmax, TakesAnyAxisAndFlattensBeforeOpset13) {
  Random random(3);
  for (const Type type : {Type::float32, Type::float64, Type::float16}) {
    const Tensor X = random.tensor(type, {3, 4, 5});
    for (const int opset : {11, 13}) {
      for (Index axis = -3; axis < 3; ++axis) {
        const Index from = (axis + 3) % 3;
        // Elements of one vector: equal in all dimensions but the axis (and before 13 those behind).
        const auto vector_of = [&](Index n) {
          const Index i = n / 20, j = n / 5 % 4, k = n % 5;
          if (opset < 13) return from == 0 ? 0 : from == 1 ? i : n / 5;
          return from == 0 ? j * 5 + k : from == 1 ? i * 5 + k : n / 5;
        };
        const Tensor Y = onnx::softmax(X, axis, false, opset),
                     L = onnx::softmax(X, axis, true, opset);
        for (Index n = 0; n < X.size(); ++n) {
          double sum = 0;
          for (Index m = 0; m < X.size(); ++m) {
            if (vector_of(m) == vector_of(n)) sum += std::exp(X.at(m));
          }
          const double tolerance = type == Type::float16 ? 2e-3 : 1e-6;
          EXPECT_NEAR(Y.at(n), std::exp(X.at(n)) / sum, tolerance);
          EXPECT_NEAR(L.at(n), X.at(n) - std::log(sum), 2 * tolerance);
        }
      }
    }
  }
}

TEST(OnnxRotaryEmbedding, TurnsHeadsOfEitherRank) {
  // Quarter turns at position 1, none at 0: (x₀, x₁) → (−x₁, x₀).
  Tensor cosines(Type::float32, {2, 1}), sines(Type::float32, {2, 1}), ids(Type::int64, {1, 2});
  cosines.set(0, 1), sines.set(1, 1), ids.set(0, 1);  // the first token is at position 1
  for (const bool flat : {false, true}) {
    // One sequence, two heads, two tokens, four features of which two turn.
    Tensor X(Type::float16, flat ? std::vector<Index>{1, 2, 8} : std::vector<Index>{1, 2, 2, 4});
    for (Index n = 0; n < 16; ++n) X.set(n, double(n + 1));
    const Tensor Y = onnx::rotary_embedding(X, cosines, sines, &ids, true, 2, 2);
    ASSERT_EQ(Y.dims, X.dims);
    for (Index h = 0; h < 2; ++h) {
      const auto at = [&](const Tensor& t, Index i, Index c) {
        return Call::element(t, 2, 0, h, i, c);
      };
      EXPECT_EQ(at(Y, 0, 0), -at(X, 0, 1));
      EXPECT_EQ(at(Y, 0, 1), at(X, 0, 0));
      for (Index c = 0; c < 4; ++c) {
        EXPECT_EQ(at(Y, 1, c), at(X, 1, c));
        EXPECT_TRUE(c < 2 || at(Y, 0, c) == at(X, 0, c));
      }
    }
  }
}

TEST(OnnxRotaryEmbedding, FollowsTheStandardOverRandomAttributes) {
  Random random(5);
  for (int trial = 0; trial < 200; ++trial) {
    SCOPED_TRACE(trial);
    const Index batch = random.from(1, 3), heads = random.from(1, 3), tokens = random.from(0, 6),
                d = 2 * random.from(1, 6);
    const bool flat = random.coin(), interleaved = random.coin(), has_ids = random.coin();
    const Index named = random.coin() ? 0 : 2 * random.from(1, d / 2), n = named == 0 ? d : named;
    const Type type = random.real_type();
    const Tensor X = random.tensor(type, flat ? std::vector<Index>{batch, tokens, heads * d}
                                              : std::vector<Index>{batch, heads, tokens, d});
    const Index rows = random.from(1, 50);
    const std::vector<Index> of_cache =
        has_ids ? std::vector<Index>{rows, n / 2} : std::vector<Index>{batch, tokens, n / 2};
    const Tensor cosines = random.tensor(type, of_cache), sines = random.tensor(type, of_cache);
    Tensor ids(Type::int64, {batch, tokens});
    for (Index i = 0; i < ids.size(); ++i) ids.set(i, double(random.from(0, rows - 1)));

    const Tensor Y = onnx::rotary_embedding(X, cosines, sines, has_ids ? &ids : nullptr,
                                            interleaved, named, flat ? heads : 0);
    ASSERT_EQ(Y.dims, X.dims);
    ASSERT_EQ(Y.type, X.type);
    const double tolerance = type == Type::float64    ? 1e-14
                             : type == Type::float32  ? 2e-6
                             : type == Type::bfloat16 ? 0.04
                                                      : 0.005;
    for (Index b = 0; b < batch; ++b) {
      for (Index i = 0; i < tokens; ++i) {
        const Index row = has_ids ? Index(ids.at(b * tokens + i)) : b * tokens + i;
        for (Index h = 0; h < heads; ++h) {
          for (Index c = 0; c < d; ++c) {
            const auto x = [&](Index of) { return Call::element(X, heads, b, h, i, of); };
            double expected = x(c);
            if (c < n) {
              const Index pair = interleaved ? c / 2 : c % (n / 2);
              const bool second = interleaved ? c % 2 == 1 : c >= n / 2;
              const Index partner =
                  interleaved ? (second ? c - 1 : c + 1) : (second ? c - n / 2 : c + n / 2);
              const double cosine = cosines.at(row * n / 2 + pair),
                           sine = sines.at(row * n / 2 + pair);
              expected = x(c) * cosine + (second ? 1 : -1) * x(partner) * sine;
            }
            ASSERT_NEAR(Call::element(Y, heads, b, h, i, c), expected, tolerance);
          }
        }
      }
    }
  }
}

TEST(OnnxOperators, RefuseInWordsWhatTheStandardDoesNotAllow) {
  const auto attention_error = [](const std::vector<Index>& mask_dims, bool past_key_alone) {
    const Tensor x(Type::float32, {1, 1, 2, 2}), mask(Type::boolean, mask_dims);
    Tensor Y;
    return error_of([&] {
      onnx::attention({}, {&x, &x, &x, &mask, past_key_alone ? &x : nullptr}, {&Y});
    });
  };
  EXPECT_EQ(attention_error({2, 2}, true),
            "onnx: Attention: past_key and past_value come together");
  const std::string of_mask = "onnx: Attention: attn_mask has rank 1 to 4, and a column a key";
  EXPECT_EQ(attention_error({}, false), of_mask);
  EXPECT_EQ(attention_error({1, 1, 1, 2, 2}, false), of_mask);
  EXPECT_EQ(attention_error({2, 3}, false), of_mask);
  EXPECT_NE(attention_error({3, 2}, false), "nothing was refused");  // in the library's own words
  EXPECT_EQ(error_of([] {
              (void)onnx::softmax(Tensor(Type::float32, {2, 3}), 2, false, 13);
            }),
            "onnx: Softmax: the tensor has no such axis");
}

// ---- case files ---------------------------------------------------------------------------------

TEST(OnnxCaseFile, IsReadWithAbsentTensorsAndSpecialValues) {
  std::istringstream file(
      "# a comment\n\n"
      "op Attention opset 24\n"
      "attr scale float 0.25\n"
      "tensor in 0 Q float32 1 1 1 3\n"
      "nan -inf 1.5e-3\n"
      "tensor in 3 - none\n"
      "tensor out 0 Y bool 2\n"
      "1 0\n");
  const Case c = onnx::read_case(file);
  EXPECT_EQ(c.op, "Attention");
  EXPECT_EQ(c.opset, 24);
  EXPECT_EQ(c.number("scale", 1), 0.25);
  EXPECT_EQ(c.integer("is_causal", 7), 7);
  ASSERT_NE(c.input(0), nullptr);
  EXPECT_TRUE(std::isnan(c.input(0)->at(0)));
  EXPECT_EQ(c.input(0)->at(1), -INFINITY);
  EXPECT_EQ(c.input(0)->at(2), double(1.5e-3f));
  EXPECT_EQ(c.input(1), nullptr);
  EXPECT_EQ(c.input(3), nullptr);
  EXPECT_EQ(c.input(9), nullptr);
  ASSERT_TRUE(c.wants(0));
  EXPECT_EQ(c.outputs[0]->dims, std::vector<Index>{2});
}

TEST(OnnxCaseFile, IsRefusedInWordsWhereItIsNone) {
  const auto error = [](const std::string& text) {
    return error_of([&] {
      std::istringstream file(text);
      (void)onnx::run(onnx::read_case(file));
    });
  };
  EXPECT_EQ(error("tensor in 0 Q float32 2\n1\n"), "onnx: a tensor has too few values");
  EXPECT_EQ(error("tensor in 0 Q complex64 2\n1 2\n"), "onnx: no tensors of type complex64");
  EXPECT_EQ(error("model x\n"), "onnx: no line begins with model");
  EXPECT_EQ(error("op Conv opset 1\n"), "onnx: no operator Conv");
  EXPECT_EQ(error("op Softmax opset 13\ntensor out 0 y float32 1\n0\n"),
            "onnx: an input is missing");
  EXPECT_EQ(error("op Softmax opset 13\ntensor in 0 x int64 1\n1\ntensor out 0 y int64 1\n1\n"),
            "onnx: expected a tensor of floating-point numbers");
  EXPECT_EQ(error_of([] { (void)onnx::read_case(std::string("no such file")); }),
            "onnx: cannot read no such file");
}

}  // namespace
