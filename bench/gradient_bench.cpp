// bench/gradient_bench.cpp: forward and backward pass of attention together, beside the same by hand
// in Eigen; on two threads beside one; dropout in the forward pass.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "support/gradient_by_hand.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/row.h"
#include "support/threads.h"
#include "support/workloads.h"

namespace bench {
namespace {

/// A workload whose gradients are wanted.
struct Lesson {
  Workload w;
  double drop = 0;  ///< probability of dropout
};

// clang-format off
constexpr Lesson kLessons[] = {
    // name            B  Hq Hkv   Lq    Lk    d
    {{"bwd1k",         1,  8,  8, 1024, 1024,  64, Mask::kNone,   Storage::kFloat}},
    {{"bwd1kc",        1,  8,  8, 1024, 1024,  64, Mask::kCausal, Storage::kFloat}},
    {{"bwd_d128c",     1,  8,  8, 1024, 1024, 128, Mask::kCausal, Storage::kFloat}},
    {{"bwd_enc128",    8, 12, 12,  128,  128,  64, Mask::kNone,   Storage::kFloat}},
    {{"bwd_long4kc",   1,  1,  1, 4096, 4096,  64, Mask::kCausal, Storage::kFloat}},
    {{"bwd_bias1k",    1,  8,  8, 1024, 1024,  64, Mask::kBias,   Storage::kFloat}},
    {{"bwd_drop1k",    1,  8,  8, 1024, 1024,  64, Mask::kNone,   Storage::kFloat}, 0.1},
};
// clang-format on

constexpr Lesson kDropped = {{"drop1k", 1, 8, 8, 1024, 1024, 64, Mask::kNone, Storage::kFloat},
                             0.1};
constexpr std::uint64_t kSeed = 42;

/// Of a pass: the forward one alone, or both. The backward pass has five products, of each of which
/// the forward one has two.
enum class Passes { kForward, kBoth };
double flops(const Workload& w, Passes passes) {
  return bench::flops(w) * (passes == Passes::kBoth ? 3.5 : 1);
}

/// A lesson's operands, and the passes over them by the library and by hand.
class Subject {
 public:
  explicit Subject(const Lesson& lesson)
      : w_(lesson.w),
        drop_(attn::dropout(lesson.drop, kSeed)),
        x_(lesson.w, 1),
        dy_(output_size(lesson.w)),
        bias_(lesson.w.mask == Mask::kBias ? lesson.w.queries : 0, lesson.w.keys),
        by_library_(lesson.w),
        by_hand_(lesson.w),
        hand_(lesson.w) {
    Uniform uniform(3);
    fill(bias_, uniform);
    fill(dy_, uniform);
    if (lesson.drop > 0) draw_kept(lesson.drop);
  }

  /// By n threads.
  void library(Passes passes, int n) {
    if (!kept_.of_head.empty()) return pass(passes, n, attn::options(drop_), attn::options());
    switch (w_.mask) {
      case Mask::kCausal:
        return pass(passes, n, attn::options(attn::causal()), attn::options());
      case Mask::kBias:
        return pass(passes, n, attn::options(attn::bias(bias_)),
                    attn::options(attn::dbias(by_library_.bias)));
      default:
        return pass(passes, n, attn::options(), attn::options());
    }
  }
  /// The same without dropout, or without the gradient of the bias.
  void without_option(Passes passes, int n) {
    if (w_.mask == Mask::kBias) {
      pass(passes, n, attn::options(attn::bias(bias_)), attn::options());
    } else {
      pass(passes, n, attn::options(), attn::options());
    }
  }
  bool has_option() const { return !kept_.of_head.empty() || w_.mask == Mask::kBias; }
  void by_hand(Passes passes) {
    hand_.forward(x_.q, x_.k, x_.v, bias_, kept_, by_hand_);
    if (passes == Passes::kBoth) hand_.backward(x_.q, x_.k, x_.v, dy_, kept_, by_hand_);
  }

  /// Largest errors of all that the library gives and of all that is computed by hand.
  struct Errors {
    double library, by_hand;
  };
  Errors errors(Passes passes, int n) {
    library(passes, n);
    by_hand(passes);
    Gradients<double> exact(w_);
    const auto wide = [](const auto& x) { return x.template cast<double>().eval(); };
    const auto q = wide(x_.q), k = wide(x_.k), v = wide(x_.v);
    GradientByHand<double> reference(w_);
    reference.forward(q, k, v, wide(bias_), kept_, exact);
    reference.backward(q, k, v, wide(dy_), kept_, exact);
    return {error(by_library_, exact, passes), error(by_hand_, exact, passes)};
  }

 private:
  void draw_kept(double rate) {
    kept_.scale = 1 / (1 - std::round(rate * 65536) / 65536);
    for (Index n = 0; n < w_.batch * w_.query_heads; ++n) {
      RowMatrix<float>& kept = kept_.of_head.emplace_back(w_.queries, w_.keys);
      attn::At at{};
      at.sequence = n / w_.query_heads;
      at.head = n % w_.query_heads;
      for (at.query = 0; at.query < w_.queries; ++at.query) {
        for (at.key = 0; at.key < w_.keys; ++at.key)
          kept(at.query, at.key) = attn::keeps(drop_, at) ? 1.0f : 0.0f;
      }
    }
  }

  template <class Options, class Outputs>
  void pass(Passes passes, int n, const Options& options, const Outputs& outputs) {
    if (n == 1) {
      run(passes, options, outputs);
    } else {
      run(passes, options, outputs, threads(n));
    }
  }
  template <class Options, class Outputs, class... Threads>
  void run(Passes passes, const Options& options, const Outputs& outputs,
           const Threads&... threads) {
    const auto view = [&](auto& all, Index tokens, Index features) {
      return attn::bhld(all.data(), w_.batch, w_.query_heads, tokens, features);
    };
    const auto q = view(x_.q, w_.queries, w_.head_size), k = view(x_.k, w_.keys, w_.head_size),
               v = view(x_.v, w_.keys, w_.value_size);
    if (passes == Passes::kForward) {
      attend_(q, k, v, attn::into(view(by_library_.y, w_.queries, w_.value_size)), options,
              threads...);
      return;
    }
    attend_(q, k, v, attn::into(view(by_library_.y, w_.queries, w_.value_size)), options,
            attn::save_state(state_), threads...);
    attend_.backward(q, k, v, view(dy_, w_.queries, w_.value_size), state_, options, outputs,
                     attn::dquery(view(by_library_.query, w_.queries, w_.head_size)),
                     attn::dkey(view(by_library_.key, w_.keys, w_.head_size)),
                     attn::dvalue(view(by_library_.value, w_.keys, w_.value_size)), threads...);
  }

  static double error(const Gradients<float>& x, const Gradients<double>& exact, Passes passes) {
    double worst = 0;
    const auto see = [&](const auto& a, const auto& b) {
      for (Index i = 0; i < a.size(); ++i) {
        const double off = std::abs(static_cast<double>(a.data()[i]) - b.data()[i]);
        if (!(off <= worst)) worst = off;
      }
    };
    see(x.y, exact.y);
    if (passes == Passes::kForward) return worst;
    see(x.query, exact.query);
    see(x.key, exact.key);
    see(x.value, exact.value);
    see(x.bias, exact.bias);
    return worst;
  }

  Workload w_;
  attn::detail::Dropout drop_;
  Operands<float> x_;
  Gradients<float>::Array dy_;
  RowMatrix<float> bias_;
  KeptPairs kept_;
  Gradients<float> by_library_, by_hand_;
  GradientByHand<float> hand_;
  attn::AttentionState<float> state_;
  attn::ScaledDotProductAttention<float> attend_;
};

/// On one thread, in turn with the formula by hand, with the forward pass alone and, where there is
/// an option, with the same passes without it.
void measure(benchmark::State& state, const Lesson& lesson, Passes passes) {
  Subject subject(lesson);
  auto& counters = state.counters;
  const Subject::Errors errors = subject.errors(passes, 1);
  counters["max_err"] = errors.library;
  counters["textbook_max_err"] = errors.by_hand;

  std::optional<Units<std::function<void()>>> forward, plain;
  if (passes == Passes::kBoth) forward.emplace([&] { subject.library(Passes::kForward, 1); });
  if (subject.has_option()) plain.emplace([&] { subject.without_option(passes, 1); });
  const double all = flops(lesson.w, passes);
  const double seconds = measure_beside(
      state, all, [&] { subject.library(passes, 1); }, [&] { subject.by_hand(passes); },
      [&] {
        if (forward) forward->sample();
        if (plain) plain->sample();
      });
  if (forward)
    report_forward(forward->per_call(), flops(lesson.w, Passes::kForward), seconds, all, counters);
  if (plain) counters["over_plain"] = seconds / plain->per_call().min();
}

/// On n threads, in turn with one.
void measure(benchmark::State& state, const Lesson& lesson, Passes passes, int n) {
  Subject subject(lesson);
  state.counters["max_err"] = subject.errors(passes, n).library;
  measure_threads(state, flops(lesson.w, passes), n,
                  [&](int workers) { subject.library(passes, workers); });
}

void add(const Lesson& lesson, Passes passes) {
  for (const int n : {1, 2}) {
    const std::string name = std::string(passes == Passes::kBoth ? "gradient/" : "attention/") +
                             lesson.w.name + "/threads:" + std::to_string(n);
    add_row(name, [&lesson, passes, n](benchmark::State& state) {
      if (n == 1) {
        measure(state, lesson, passes);
      } else {
        measure(state, lesson, passes, n);
      }
    });
  }
}

const bool registered = [] {
  for (const Lesson& lesson : kLessons) add(lesson, Passes::kBoth);
  add(kDropped, Passes::kForward);
  return true;
}();

}  // namespace
}  // namespace bench
