// SPDX-License-Identifier: MIT
// What is compiled for each instruction set, as others see it.
#include <Eigen/Core>
#include <stdexcept>
#include <vector>

/// Thrown by one side, caught by the other.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// The standard library's templates are compiled on both sides too.
inline float last(const std::vector<float>& x) {
  std::vector<float> y = x;
  y.push_back(x.back());
  return y[y.size() - 1];
}

const char* instruction_set();
/// "started", by an object at namespace scope.
const char* started();
void softmax(const Eigen::MatrixXf& X, Eigen::Ref<Eigen::MatrixXf> Y);
float sum(const std::vector<float>& x);
