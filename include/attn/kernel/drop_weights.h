// attn/kernel/drop_weights.h: dropout between stages 3 and 4: weights that are dropped leave the
// sum over values, not l.
// SPDX-License-Identifier: MIT
#pragma once

#include "../types.h"
#include "online_softmax.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     p[i, j] = 0 for the dropped pairs of a strip and the visited runs of keys of one block
// PICTURE  a row by 32 keys at a time, which share their random words (base/keyed_bits.h)
// LIMIT    the integer operations of one hash for 32 keys, two multiplications among them, a load,
//          a select and a store a packet
// WHY      a pass of its own over p, which lies in L1: where nothing is dropped the softmax is the
//          same code, and it could share the hash of two packets only
// EDGES    whole 32 keys at absolute multiples: what lies beside a run in p may be anything and
//          remains unread; a block is whole 32 keys. Where hidden pairs are marked, dropped ones
//          are: what their values hold (NaN) does not reach the sum
template <class S, class Element, class Dropout, class Cursor>
ATTN_NOINLINE void drop_weights(const Dropout& dropout, Cursor cursor, int rows, Index block,
                                Runs runs, Hidden hidden, typename S::Scalar* p) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  using F = Factors<S, Element>;
  constexpr Index kKeys = 32;
  constexpr int kPackets = kKeys / S::width;
  static_assert(Size::key_block(0, 0) % kKeys == 0);
  const auto nothing = S::set(hidden == Hidden::marked ? hidden_weight<Scalar>() : Scalar(0));
  for (int i = 0; i < rows; ++i, cursor.next(), p += Size::score_stride) {
    const auto row = dropout.of(cursor.row);
    for (int n = 0; n < runs.count; ++n) {
      for (Index j = runs.first[n].begin / kKeys * kKeys; j < runs.first[n].end; j += kKeys) {
        typename S::Packet weights[std::size_t{kPackets}];
        ATTN_UNROLL
        for (int v = 0; v < kPackets; ++v) weights[v] = F::load_weights(p, j + v * S::width);
        row.template keep<S>(block + j, weights, nothing);
        ATTN_UNROLL
        for (int v = 0; v < kPackets; ++v) F::store_weights(p, j + v * S::width, weights[v]);
      }
    }
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
