// bench/support/workloads.h: the named attention workloads, as data.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

namespace bench {

using Eigen::Index;

enum class Mask { kNone, kCausal, kBias, kKeyLengths };
enum class Storage { kFloat, kDouble, kBfloat16 };

struct Workload {
  const char* name;
  Index batch, query_heads, key_heads, queries, keys, head_size;
  Mask mask;
  Storage storage;
};

// A row added here is a benchmark: any sizes, and any mask with any storage. Causal rows need as
// many queries as keys.
// clang-format off
inline constexpr Workload kWorkloads[] = {
    // name            B  Hq Hkv   Lq    Lk    d
    {"tiny",           1,  4,  4,   16,   16,  16, Mask::kNone,       Storage::kFloat},
    {"enc128",         8, 12, 12,  128,  128,  64, Mask::kNone,       Storage::kFloat},
    {"pre1k",          1,  8,  8, 1024, 1024,  64, Mask::kNone,       Storage::kFloat},
    {"pre1kc",         1,  8,  8, 1024, 1024,  64, Mask::kCausal,     Storage::kFloat},
    {"bias1k",         1,  8,  8, 1024, 1024,  64, Mask::kBias,       Storage::kFloat},
    {"d128c",          1,  8,  8, 1024, 1024, 128, Mask::kCausal,     Storage::kFloat},
    {"long4k",         1,  4,  4, 4096, 4096,  64, Mask::kNone,       Storage::kFloat},
    {"long4kc",        1,  4,  4, 4096, 4096,  64, Mask::kCausal,     Storage::kFloat},
    {"pad512",         8, 12, 12,  512,  512,  64, Mask::kKeyLengths, Storage::kFloat},
    {"dec4k",          1, 32, 32,    1, 4096, 128, Mask::kNone,       Storage::kFloat},
    {"gqa4k",          1, 32,  8,    1, 4096, 128, Mask::kNone,       Storage::kFloat},
    {"bf1k",           1,  8,  8, 1024, 1024,  64, Mask::kNone,       Storage::kBfloat16},
    {"pre1k_double",   1,  8,  8, 1024, 1024,  64, Mask::kNone,       Storage::kDouble},
    {"pre1kc_double",  1,  8,  8, 1024, 1024,  64, Mask::kCausal,     Storage::kDouble},
};
// clang-format on

/// Valid keys of sequence b: all, or B/B, (B-1)/B, ..., 1/B of them (pad512: 512, 448, ..., 64).
constexpr Index key_length(const Workload& w, Index b) {
  return w.mask == Mask::kKeyLengths ? w.keys * (w.batch - b) / w.batch : w.keys;
}

/// Keys that query i of sequence b sees. They are the first ones under each of these masks.
constexpr Index visible_keys(const Workload& w, Index b, Index i) {
  return w.mask == Mask::kCausal ? i + 1 : key_length(w, b);
}

/// Two products, each with one multiplication and one addition for each unmasked pair and feature.
constexpr double flops(const Workload& w) {
  double pairs = 0;
  for (Index b = 0; b < w.batch; ++b) {
    for (Index i = 0; i < w.queries; ++i) pairs += static_cast<double>(visible_keys(w, b, i));
  }
  return 4.0 * pairs * static_cast<double>(w.query_heads * w.head_size);
}

/// Decoding reads each key and value for a single query: memory is the limit, not arithmetic.
constexpr bool is_bound_by_memory(const Workload& w) { return w.queries == 1; }

}  // namespace bench
