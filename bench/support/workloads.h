// bench/support/workloads.h: the named attention workloads, as data.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

namespace bench {

using Eigen::Index;

enum class Mask { kNone, kCausal, kBias, kKeyLengths };
enum class Storage { kFloat, kDouble, kBfloat16 };
/// Of a head's matrix, tokens × features: [batch, head, token, feature] or [batch, head, feature,
/// token] memory. The latter is that of column-major matrices, heads side by side in columns.
enum class Order { kRowMajor, kColumnMajor };

struct Workload {
  const char* name;
  Index batch, query_heads, key_heads, queries, keys, head_size;
  Mask mask;
  Storage storage;
  Index value_size = head_size;
  Order order = Order::kRowMajor;
};

// A row added here is a benchmark, on one thread and on two: any sizes; masks as serves() tells.
// Causal rows need as many queries as keys.
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

/// Masks and orders that the benchmark is compiled for with this storage: not all, or it would take
/// twice as long to compile.
constexpr bool serves(Storage storage, Mask mask) {
  if (storage == Storage::kBfloat16) return mask == Mask::kNone;
  if (storage == Storage::kDouble) return mask == Mask::kNone || mask == Mask::kCausal;
  return true;
}
constexpr bool serves(Storage storage, Order order) {
  return storage == Storage::kFloat || order == Order::kRowMajor;
}
constexpr bool serves_all_rows() {
  for (const Workload& w : kWorkloads) {
    if (!serves(w.storage, w.mask) || !serves(w.storage, w.order)) return false;
  }
  return true;
}
static_assert(serves_all_rows(), "serves() denies a row of kWorkloads its mask or its order");

/// A size or storage order that divides badly, and the nearest one that divides well.
struct OddWorkload {
  Workload odd, even;
};

/// pre1k with another length, other sizes of a key and of a value.
constexpr Workload like_pre1k(const char* name, Index length, Index key_size, Index value_size,
                              Order order = Order::kRowMajor) {
  return {name, 1, 8, 8, length, length, key_size, Mask::kNone, Storage::kFloat, value_size, order};
}
inline constexpr Workload kD64 = like_pre1k("d64", 1024, 64, 64);
inline constexpr Workload kD128 = like_pre1k("d128", 1024, 128, 128);
inline constexpr OddWorkload kOddWorkloads[] = {
    {like_pre1k("L1023", 1023, 64, 64), kD64},
    {like_pre1k("L1025", 1025, 64, 64), kD64},
    {like_pre1k("L333", 333, 64, 64), like_pre1k("L336", 336, 64, 64)},
    {like_pre1k("d59", 1024, 59, 59), kD64},
    {like_pre1k("d72", 1024, 72, 72), kD64},
    {like_pre1k("d80", 1024, 80, 80), kD64},
    {like_pre1k("d96", 1024, 96, 96), kD128},
    {like_pre1k("d160", 1024, 160, 160), kD128},
    {like_pre1k("d256", 1024, 256, 256), kD128},
    {like_pre1k("dk64_dv128", 1024, 64, 128), kD128},
    {like_pre1k("dk96_dv40", 1024, 96, 40), kD64},
    {like_pre1k("column_major", 1024, 64, 64, Order::kColumnMajor), kD64},
};

/// Where element (sequence, head, token, feature) lies, in elements.
struct Strides {
  Index sequence, head, token, feature;
};
constexpr Strides strides(const Workload& w, Index heads, Index tokens, Index features) {
  const Index head = tokens * features;
  if (w.order == Order::kColumnMajor) return {heads * head, head, 1, tokens};
  return {heads * head, head, features, 1};
}
constexpr Strides query_strides(const Workload& w) {
  return strides(w, w.query_heads, w.queries, w.head_size);
}
constexpr Strides key_strides(const Workload& w) {
  return strides(w, w.key_heads, w.keys, w.head_size);
}
constexpr Strides value_strides(const Workload& w) {
  return strides(w, w.key_heads, w.keys, w.value_size);
}
constexpr Strides output_strides(const Workload& w) {
  return strides(w, w.query_heads, w.queries, w.value_size);
}
constexpr Index output_size(const Workload& w) {
  return w.batch * w.query_heads * w.queries * w.value_size;
}

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
  return 2.0 * pairs * static_cast<double>(w.query_heads * (w.head_size + w.value_size));
}

/// Decoding reads each key and value for a single query: memory is the limit, not arithmetic.
constexpr bool is_bound_by_memory(const Workload& w) { return w.queries == 1; }

}  // namespace bench
