// attn/mpi/deal.h: which rows of a sequence are which rank's: blocks, dealt to and fro.
// SPDX-License-Identifier: MIT
//
//   ranks 0 1 2, 8 blocks     block  0 1 2 | 3 4 5 | 6 7    a causal row costs what lies before
//                             rank   0 1 2 | 2 1 0 | 0 1    it: so all have early rows and late ones
#pragma once

#include <algorithm>
#include <exception>
#include <limits>
#include <vector>

#include "../base/check.h"
#include "../base/sizes.h"
#include "../base/traits.h"
#include "alike.h"
#include "ranks.h"
#include "row_messages.h"

namespace attn {
inline namespace ATTN_ABI {
namespace mpi {

/// block(n): the length of the blocks that deal() makes.
struct Block {
  Index rows;
};
/// Blocks of n rows: the last one may be shorter. Windows and documents fetch fewer keys where
/// blocks are long, a causal mask is shared out more evenly where they are short.
inline Block block(Index n) { return {n}; }

/// The rows of one sequence, dealt to ranks: block k belongs to rank k mod P going, and to rank
/// P − 1 − (k mod P) coming back, in turns. A rank's rows are its blocks', one below the other.
///
/// Semantics  made by Ranks::deal(tokens[, block(n)]), without a message; n by default such that
///            each rank has two blocks. Any number of tokens: 0, fewer than ranks, one that divides
///            by nothing. A rank may have no rows
class Dealt {
 public:
  /// Requires   tokens ≥ 0, block ≥ 1, no more blocks than an int counts: ranks tell each other
  ///            which they see   (std::invalid_argument otherwise)
  Dealt(const Ranks& ranks, Index tokens, Index block) : ranks_(ranks), tokens_(tokens) {
    detail::check_size("attn::mpi::Ranks::deal", "tokens", tokens, 0);
    detail::check_size("attn::mpi::Ranks::deal", "block", block, 1);
    block_ =
        std::min(block, std::max<Index>(tokens, 1));  // what is longer is the same, and adds up
    check_blocks();
    offsets_.push_back(0);
    for (Index k = 0; k < blocks(); ++k) {
      if (owner(k) != ranks.rank()) continue;
      own_.push_back(k);
      offsets_.push_back(offsets_.back() + length(k));
    }
  }

  const Ranks& ranks() const { return ranks_; }
  Index tokens() const { return tokens_; }        ///< of the whole sequence
  Index rows() const { return offsets_.back(); }  ///< of them, this rank's
  Index block() const { return block_; }          ///< of them, a block's
  Index blocks() const { return tokens_ / block_ + (tokens_ % block_ != 0); }  ///< of all ranks
  Index begin(Index k) const { return k * block_; }  ///< the first token of block k
  Index length(Index k) const { return std::min(block_, tokens_ - begin(k)); }
  Index block_of(Index token) const { return token / block_; }
  int owner(Index k) const {
    const Index ranks = ranks_.size(), place = k % ranks;
    return int(k / ranks % 2 == 0 ? place : ranks - 1 - place);
  }
  /// This rank's blocks, ascending, and where each begins among its rows (one entry more).
  const std::vector<Index>& own() const { return own_; }
  const std::vector<Index>& offsets() const { return offsets_; }

  /// This rank's rows of a matrix that it has whole.
  ///
  /// Shapes     X [tokens, n]  →  [rows(), n]   (std::invalid_argument otherwise)
  template <class Matrix>
  auto local(const Matrix& X) const {
    static_assert(detail::is_dense_v<Matrix>,
                  "attn::mpi: local(X) takes a dense Eigen matrix, a row for each token");
    if (X.rows() != tokens_) {
      detail::fail(detail::text("attn::mpi::Dealt::local: the matrix has ", X.rows(),
                                " rows, needs ", tokens_, " (one for each token)"));
    }
    AllRows<Matrix> mine(rows(), X.cols());
    for (std::size_t n = 0; n < own_.size(); ++n)
      mine.middleRows(offsets_[n], length(own_[n])) = X.middleRows(begin(own_[n]), length(own_[n]));
    return mine;
  }

  /// The rows of all ranks as one matrix, on rank `root`; elsewhere a matrix without rows. Called
  /// by all ranks.
  ///
  /// Shapes     Y [rows(), n] on each rank  →  [tokens, n] on the root
  /// Requires   those rows; the same n, root and size of a scalar everywhere
  ///            (std::invalid_argument otherwise; RankFailed where another rank was refused)
  template <class Matrix>
  auto gather(const Matrix& Y, int root) const {
    static_assert(detail::is_dense_v<Matrix>,
                  "attn::mpi: gather(Y, root) takes a dense Eigen matrix, this rank's rows");
    using Scalar = typename Matrix::Scalar;
    using Rows = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    AllRows<Matrix> all;
    Rows mine, whole;  // as messages are: row after row
    detail::RowMessages messages(ranks_.comm());
    detail::Alike alike("attn::mpi::Dealt::gather");
    std::exception_ptr failure;
    try {
      check_gather(Y.rows(), root);
      alike.add("tokens", tokens_)
          .add("tokens of a block", block_)
          .add("root", root)
          .add("columns", Y.cols())
          .add("bytes of a scalar", Index(sizeof(Scalar)));
      mine = Y;
      const bool here = ranks_.rank() == root;
      whole.resize(here ? tokens_ : 0, Y.cols());
      all.resize(whole.rows(), whole.cols());
      messages.reserve(own_.size() + (here ? std::size_t(blocks()) : 0));
    } catch (...) {
      failure = std::current_exception();
    }
    ranks_.agree(failure);
    alike.check(ranks_);
    for (std::size_t n = 0; n < own_.size(); ++n)
      messages.send(mine.data() + offsets_[n] * mine.cols(), length(own_[n]) * mine.cols(), root,
                    0);
    if (ranks_.rank() == root) {
      for (Index k = 0; k < blocks(); ++k)
        messages.receive(whole.data() + begin(k) * mine.cols(), length(k) * mine.cols(), owner(k),
                         0);
    }
    messages.wait();
    all = whole;
    return all;
  }

 private:
  template <class Matrix>
  using AllRows = Eigen::Matrix<typename Matrix::Scalar, Eigen::Dynamic, Eigen::Dynamic,
                                Matrix::IsRowMajor ? Eigen::RowMajor : Eigen::ColMajor>;

  void check_blocks() const {
    constexpr Index most = std::numeric_limits<int>::max();
    if (blocks() > most) {
      detail::fail(detail::text("attn::mpi::Ranks::deal: ", tokens_, " tokens are ", blocks(),
                                " blocks of ", block_, ", needs at most ", most,
                                ": longer ones, block(n)"));
    }
  }
  void check_gather(Index has, int root) const {
    using detail::fail, detail::text;
    if (root < 0 || root >= ranks_.size()) {
      fail(text("attn::mpi::Dealt::gather: root is ", root, ", needs a rank from 0 to ",
                ranks_.size() - 1));
    }
    if (has != rows()) {
      fail(text("attn::mpi::Dealt::gather: the matrix has ", has, " rows, needs ", rows(),
                " (those of this rank)"));
    }
  }

  Ranks ranks_;
  Index tokens_, block_;
  std::vector<Index> own_, offsets_;
};

inline Dealt Ranks::deal(Index tokens) const {
  const Index pieces = 2 * Index(size());
  return deal(tokens, block(std::max<Index>(1, tokens / pieces + (tokens % pieces != 0))));
}
inline Dealt Ranks::deal(Index tokens, const Block& block) const {
  return Dealt(*this, tokens, block.rows);
}

}  // namespace mpi
}  // namespace ATTN_ABI
}  // namespace attn
