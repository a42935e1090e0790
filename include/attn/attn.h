// attn/attn.h: the whole library; the headers in the order of the data flow, which is also the
// order to read them in.
// SPDX-License-Identifier: MIT
#pragma once

// clang-format off
#include "version.h"    //      the version, written once
#include "types.h"      //      vocabulary and the table of symbols
#include "layout.h"     //      heads, batches, strided views
#include "mask.h"       //   1  which query sees which key
#include "lanes.h"      //   2  what a score functor computes with
#include "score.h"      //   2  what happens to a score before the mask
#include "output.h"     //      where results go
#include "softmax.h"    //   3  softmax over matrices, and what is mergeable: (max, sum)
#include "rotary.h"     //      positions as rotations of queries and keys
#include "dropout.h"    // 3-4  weights left out at random, in training
#include "attention.h"  // 1-4  attention(...), ScaledDotProductAttention
#include "partial.h"    // 3-5  attention over part of the keys: merge(...), finish(...)
#include "attention_state.h"       // what a backward pass needs of a forward one
#include "gradient.h"   // 4-1  attention_backward(...), what it writes
#include "kv_cache_options.h"  //   the sizes of a key/value cache
#include "kv_cache.h"   // 1-4  keys and values kept from call to call
#include "residual.h"   //   5  Output = x + Output
#include "multi_head_options.h"    // 6  the sizes of a layer
#include "multi_head_weights.h"    // 6  its weights, plain matrices
#include "framework_weights.h"     //    from and to PyTorch and Keras
#include "initializers.h"          //    random weights
#include "multi_head_attention.h"  // 6  project, attend, project, add
#include "multi_head_state.h"      //    what the layer's backward pass needs of its forward pass
#include "multi_head_gradient.h"   // 6  mha.backward(...), the gradients of weights and inputs
#include "activation.h"            //    relu, gelu, silu and your own
#include "linear_weights.h"        //    the sizes and weights of a linear layer
#include "linear.h"                // 6  act(X·W + b) + residual
#include "linear_state.h"          //    what its backward pass needs of its forward pass
#include "linear_gradient.h"       // 6  linear.backward(...), the gradients of weights and input
#include "accumulate.h"            //    gradients added to what stands there
#include "parameters.h"            //    weights and gradients by name, and as one vector
#include "option_list.h"   //   several options as one value
#include "workspace.h"  //      scratch memory
#include "parallel.h"   //      several threads for one call
#include "native_bfloat16.h"       //    products of bfloat16 by the processor's own instruction
// clang-format on
