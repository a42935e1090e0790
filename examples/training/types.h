// examples/training/types.h: the words that all blocks share.
// SPDX-License-Identifier: MIT
//
// A block is weights, their gradients, and what its backward pass needs of the forward one:
//
//   Y = block.forward(X, …);               // keeps what backward() reads
//   dX = block.backward(X, dY, …);         // the same operands once more; fills the gradients
//
// There is no tape and no graph: a model calls its blocks in order, and backwards in the opposite
// order. Results lie in the block until its next call.
#pragma once

#include <attn/attn.h>

namespace training {

using Eigen::Index;
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Scalar>
using Row = Eigen::Matrix<Scalar, 1, Eigen::Dynamic>;

}  // namespace training
