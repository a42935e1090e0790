// examples/onnx_attention/main.cpp: the library as the kernel of another runtime: runs case files of the ONNX standard's operators
// and prints how far the results are from what they expect.
// SPDX-License-Identifier: MIT
#include <cstdio>
#include <exception>

#include "operators.h"

int main(int count, char** paths) {
  if (count < 2) std::puts("usage: onnx_attention CASE.txt...");
  bool all = true;
  for (int n = 1; n < count; ++n) {
    try {
      const onnx::Case c = onnx::read_case(paths[n]);
      const auto results = onnx::run(c);
      std::printf("%s (%s, opset %d)\n", paths[n], c.op.c_str(), c.opset);
      for (std::size_t i = 0; i < results.size(); ++i) {
        if (!results[i]) continue;
        const onnx::Difference d = onnx::compare(*results[i], *c.outputs[i], 1e-3, 1e-7);
        std::printf("  output %zu: largest error %.2g%s\n", i, d.largest,
                    d.within ? "" : "  (too much)");
        all = all && d.within;
      }
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", paths[n], error.what());
      all = false;
    }
  }
  return all ? 0 : 1;
}
