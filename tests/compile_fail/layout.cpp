// SPDX-License-Identifier: MIT
// Tensors that are no operands (layout.h).
//
// expect 1: a tensor operand has rank 4
// expect 2: the tensor is a temporary and would be gone before the call: pass a variable or a TensorMap
// expect 3: the output is const
#include <attn/attn.h>

#include <unsupported/Eigen/CXX11/Tensor>

using Tensor3 = Eigen::Tensor<float, 3>;
using Tensor4 = Eigen::Tensor<float, 4>;

void call(Tensor3& three, Tensor4& four, const Tensor4& const_four, Tensor4& out) {
#if CASE == 1
  attn::attention(attn::bhld(three), attn::bhld(four), attn::bhld(four),
                  attn::into(attn::bhld(out)));
#else
  attn::attention(attn::bhld(four), attn::bhld(four), attn::bhld(four),
                  attn::into(attn::bhld(out)));
#endif
#if CASE == 2
  attn::attention(attn::bhld(Tensor4(1, 1, 2, 2)), attn::bhld(four), attn::bhld(four),
                  attn::into(attn::bhld(out)));
#else
  attn::attention(attn::bhld(Eigen::TensorMap<Tensor4>(four.data(), 1, 1, 2, 2)),
                  attn::bhld(const_four), attn::bhld(four), attn::into(attn::bhld(out)));
#endif
#if CASE == 3
  attn::attention(attn::bhld(four), attn::bhld(four), attn::bhld(four),
                  attn::into(attn::bhld(const_four)));
#else
  attn::attention(attn::bhld(const_four), attn::bhld(const_four), attn::bhld(const_four),
                  attn::into(attn::bhld(out)));
#endif
}
