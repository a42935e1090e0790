// tests/chunks_test.cpp: the chunks that a call is cut into hold every row of every sequence and head once.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/kernel/chunks.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace {

using attn::Index;

TEST(Chunks, HoldEveryRowOnce) {
  for (const std::vector<Index>& lengths :
       {std::vector<Index>{5}, {8}, {16}, {1}, {0}, {0, 7, 0, 8, 24}, {3, 0, 0}, {9, 16, 1}}) {
    std::vector<Index> ends = {0};
    for (const Index length : lengths) ends.push_back(ends.back() + length);
    const attn::detail::IndexList offsets(ends);
    for (const Index group : {1, 2, 3}) {
      for (const Index chunk_rows : {1, 4, 8, 100}) {
        constexpr Index kv_heads = 2;
        attn::detail::CallShape shape;
        shape.kv_heads = kv_heads;
        shape.heads = group * kv_heads;
        shape.queries.sequences = Index(lengths.size());
        shape.queries.offsets = &offsets;

        std::vector<std::vector<int>> seen;  // of each sequence and head
        for (const Index length : lengths) {
          for (Index head = 0; head < kv_heads; ++head)
            seen.emplace_back(std::size_t(length * group), 0);
        }
        attn::kernel::ChunkWalk walk(shape, chunk_rows, kv_heads);
        Index count = 0;
        for (; walk.seek(count); ++count) {
          const attn::kernel::Chunk chunk = walk.chunk();
          auto& rows = seen[std::size_t(chunk.sequence * kv_heads + chunk.kv_head)];
          ASSERT_TRUE(0 <= chunk.begin && chunk.begin < chunk.end &&
                      chunk.end <= Index(rows.size()) && chunk.end - chunk.begin <= chunk_rows)
              << chunk.begin << " to " << chunk.end << " of " << rows.size();
          EXPECT_EQ(chunk.begin % chunk_rows, 0);
          for (Index r = chunk.begin; r < chunk.end; ++r) ++rows[std::size_t(r)];
        }
        EXPECT_EQ(count, attn::kernel::chunks_of(shape, chunk_rows, kv_heads));
        for (const auto& rows : seen) EXPECT_EQ(rows, std::vector<int>(rows.size(), 1));
      }
    }
  }
}

}  // namespace
