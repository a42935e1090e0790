// attn/mpi/dealt_shape.h: the shapes of a call on rows that are dealt to ranks.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/call_shape.h"
#include "deal.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The shapes of a call: of this rank's rows, each block a sequence over all keys; of the whole
/// sequence, which options speak of; and of this rank's rows as they are given.
struct DealtShape {
  IndexList offsets;
  CallShape whole, local, own;

  DealtShape(const mpi::Dealt& dealt, const CallShape& given) : offsets(dealt.offsets()) {
    check_rows(given, "query", given.queries.total(), dealt.rows());
    check_rows(given, "key", given.keys.total(), dealt.rows());
    whole = local = own = given;
    whole.queries = whole.keys = {1, dealt.tokens(), nullptr};
    local.queries = {Index(dealt.own().size()), 0, &offsets};
    local.keys = whole.keys;
    local.shared_keys = true;
  }
  DealtShape(const DealtShape&) = delete;  // refers to its own offsets

  /// What ranks have to call with alike, so that none waits for messages that never come.
  Alike& compared(const mpi::Dealt& dealt, Alike& alike) const {
    return alike.add("tokens", dealt.tokens())
        .add("tokens of a block", dealt.block())
        .add("query heads", whole.heads)
        .add("key/value heads", whole.kv_heads)
        .add("features of keys", whole.key_dim)
        .add("features of values", whole.value_dim);
  }

 private:
  static void check_rows(const CallShape& shape, const char* name, Index has, Index needs) {
    if (has != needs) {
      fail(text(shape.function, ": ", name, " has ", has, " rows, needs ", needs,
                " (those of this rank)"));
    }
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
