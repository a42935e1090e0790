// examples/11_dispatch/attend.h: what the program calls, declared as anything else.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Attention of one head. (Into a Ref: a matrix is allocated by one side alone.)
void attend(const Matrix& Q, const Matrix& K, const Matrix& V, Eigen::Ref<Matrix> Y);

/// The one that attend() is running with.
const char* instruction_set();
