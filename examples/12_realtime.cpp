// examples/12_realtime.cpp: attention in an audio callback: sizes that the compiler knows, no allocation, and how long the
// slowest of a million calls takes.
// SPDX-License-Identifier: MIT

// All memory that the program takes is counted: operator new below, and what Eigen takes past it, which Eigen asserts to be
// allowed; the assertion counts instead, in builds with NDEBUG too.
namespace {
long allocations = 0;
}
#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(allowed) ((allowed) ? (void)0 : (void)++allocations)

#include <attn/attn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

void* operator new(std::size_t bytes, std::align_val_t alignment) {
  ++allocations;
  const auto line = static_cast<std::size_t>(alignment);
  void* memory = std::malloc(bytes + line + sizeof(void*));
  if (memory == nullptr) throw std::bad_alloc();
  const auto behind = reinterpret_cast<std::uintptr_t>(memory) + sizeof(void*);
  const auto start = reinterpret_cast<void**>((behind + line - 1) / line * line);
  start[-1] = memory;  // what is to be freed
  return start;
}
void* operator new(std::size_t bytes) { return operator new(bytes, std::align_val_t(16)); }
void operator delete(void* start, std::align_val_t) noexcept {
  if (start != nullptr) std::free(static_cast<void**>(start)[-1]);
}
void operator delete(void* start) noexcept { operator delete(start, std::align_val_t(16)); }
void operator delete(void* start, std::size_t) noexcept { operator delete(start); }
void operator delete(void* start, std::size_t, std::align_val_t) noexcept {
  operator delete(start);
}

namespace {

/// An effect on a stream of samples, 64 at a time: 8 frames of 8 samples, which attend to themselves and to the 8 frames before.
/// Its matrices would be trained; here they are random.
class Effect {
 public:
  static constexpr int kSamples = 64;

  Effect() : query_(Square::Random()), key_(Square::Random()), value_(Square::Random() / 8) {
    keys_.setZero(), values_.setZero();
  }
  /// What the audio thread calls. It takes no lock and no memory, and throws nothing: all sizes are right by their types.
  void process(const float* in, float* out) noexcept {
    const Eigen::Map<const Square> X(in);
    keys_.topRows<8>() = keys_.bottomRows<8>().eval();
    values_.topRows<8>() = values_.bottomRows<8>().eval();
    keys_.bottomRows<8>().noalias() = X.lazyProduct(key_);
    values_.bottomRows<8>().noalias() = X.lazyProduct(value_);
    const Square Q = X.lazyProduct(query_);
    Eigen::Map<Square> Y(out);
    attn::attention(Q, keys_, values_, attn::into(Y), attn::residual(X));  // out = in + attention
  }

 private:
  using Square = Eigen::Matrix<float, 8, 8, Eigen::RowMajor>;
  using Frames = Eigen::Matrix<float, 16, 8, Eigen::RowMajor>;
  Square query_, key_, value_;
  Frames keys_, values_;
};

}  // namespace

int main() {
  constexpr std::size_t kCalls = 1000000;
  Effect effect;
  std::vector<float> in(Effect::kSamples), out(Effect::kSamples), taken(kCalls);
  std::mt19937 engine(1);
  std::uniform_real_distribution<float> noise(-1, 1);
  for (float& sample : in) sample = noise(engine);

  // Both kinds of counting see something: vectors take memory by operator new, matrices past it.
  const long of_vectors = allocations;
  Eigen::internal::set_is_malloc_allowed(false);
  const Eigen::MatrixXf matrix = Eigen::MatrixXf::Constant(8, 8, in[0]);
  const bool all_seen = of_vectors > 0 && allocations > of_vectors;

  using Clock = std::chrono::steady_clock;
  float sum = matrix.sum();
  const long before = allocations;
  for (float& microseconds : taken) {
    in[std::size_t(&microseconds - taken.data()) % in.size()] = out[0] / 2;
    const auto start = Clock::now();
    effect.process(in.data(), out.data());
    microseconds = std::chrono::duration<float, std::micro>(Clock::now() - start).count();
    sum += out[0];
  }
  const long allocated = allocations - before;

  std::sort(taken.begin(), taken.end());
  std::printf("%zu calls of %d samples; at 48 kHz one is due every 1333 us\n", kCalls,
              Effect::kSamples);
  for (const double share : {0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999})
    std::printf("  %7.3f %%  within %8.2f us\n", 100 * share,
                taken[std::size_t(share * double(kCalls - 1))]);
  std::printf("  the slowest     %8.2f us\nallocations: %ld\n", taken.back(), allocated);
  return all_seen && allocated == 0 && std::isfinite(sum) ? 0 : 1;
}
