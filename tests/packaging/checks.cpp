// SPDX-License-Identifier: MIT
// What checks shapes, outputs and memory, and what options are made of: none of it knows the engine, so what
// uses these alone compiles as fast as Eigen does.
#include <attn/call/lift.h>
#include <attn/call/output_memory.h>
#include <attn/call/overlap.h>
#include <attn/call/shape.h>
#include <attn/mask.h>
#include <attn/score.h>

#include <cstdio>
#include <exception>

int main() {
  using namespace attn::detail;
  const attn::TensorExtent query{1, 1, 4, 8}, key{1, 1, 4, 9};
  try {
    call_shape("attention", {query, true}, {key, true}, {key, true}, Batch{});
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 0;
  }
  return 1;
}
