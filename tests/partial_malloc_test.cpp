// tests/partial_malloc_test.cpp: states of parts that are filled, merged and finished again take no memory.
// SPDX-License-Identifier: MIT
// build: -Og
#include "support/allocations.h"

#include <attn/attn.h>

#include <algorithm>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::uniform;

TEST(PartialMemory, IsTakenByTheFirstCallAlone) {
  const MatrixXf Q = uniform<float>(9, 4 * 8, 1), K = uniform<float>(600, 2 * 8, 2),
                 V = uniform<float>(600, 2 * 5, 3);
  attn::ScaledDotProductAttention<float> sdpa;
  attn::Workspace<float> workspace;
  attn::Partial<float> part, merged;
  MatrixXf Y, l;
  const auto decode = [&] {
    merged.clear();
    for (const Index first : {0, 256, 512}) {
      const Index keys = std::min<Index>(256, 600 - first);
      sdpa(attn::heads(Q, 4), attn::heads(K.middleRows(first, keys), 2),
           attn::heads(V.middleRows(first, keys), 2), attn::causal_from(591 - first),
           attn::save_partial(part));
      merged.merge(part);
    }
    attn::finish(merged, attn::into(Y), attn::save_logsumexp(l), attn::use(workspace));
  };
  decode();
  const MatrixXf expected = Y;
  EXPECT_EQ(support::allocations_in(decode), 0);
  EXPECT_TRUE(support::same_bits(Y, expected));
}

}  // namespace
