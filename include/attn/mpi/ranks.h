// attn/mpi/ranks.h: the processes that share a call, and how they agree that all went well.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "../types.h"
#include "c_api.h"  // MPI itself

namespace attn {
inline namespace ATTN_ABI {
namespace mpi {

/// Thrown on every rank but the one that failed.
struct RankFailed : std::runtime_error {
  int rank;          ///< the one that failed, the first where there are several
  std::string text;  ///< of its own exception
  RankFailed(int r, const std::string& t)
      : std::runtime_error("attn::mpi: rank " + std::to_string(r) + " failed: " + t),
        rank(r),
        text(t) {}
};

class Dealt;  // deal.h
struct Block;

/// The ranks of a communicator, which share calls: each makes the same ones, in the same order.
///
/// Semantics  made by all ranks together, once. Messages go by a communicator of its own, so that
///            none is taken for the program's; copies share it. All copies are gone, or left alone,
///            when MPI ends; what an exception destroys on its way is left to MPI. An error of MPI
///            itself ends the job
class Ranks {
 public:
  explicit Ranks(MPI_Comm comm) : comm_(std::make_shared<const Communicator>(comm)) {
    MPI_Comm_rank(comm_->handle, &rank_);
    MPI_Comm_size(comm_->handle, &size_);
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm comm() const { return comm_->handle; }

  /// How `tokens` rows are shared by the ranks (deal.h), in blocks of this length or as suits them.
  Dealt deal(Index tokens) const;
  Dealt deal(Index tokens, const Block& block) const;

  /// Called by all ranks, with the exception that one has caught, or null. Returns where all are
  /// well; else every rank throws, the failing one its own exception, the others RankFailed.
  /// (Where several fail, each throws its own.)
  void agree(const std::exception_ptr& failure) const {
    int mine = failure ? rank_ : size_, first = size_;
    MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, comm());
    if (first == size_) return;
    std::array<char, 512> text{};  // no memory is asked for: it may be what has run out
    if (first == rank_) describe(failure, text);
    MPI_Bcast(text.data(), int(text.size()), MPI_CHAR, first, comm());
    if (failure) std::rethrow_exception(failure);
    throw RankFailed(first, text.data());
  }

 private:
  struct Communicator {
    MPI_Comm handle = MPI_COMM_NULL;
    explicit Communicator(MPI_Comm comm) {
      MPI_Comm_dup(comm, &handle);
      // What MPI itself cannot do ends the job: nothing here could go on without its messages.
      MPI_Comm_set_errhandler(handle, MPI_ERRORS_ARE_FATAL);
    }
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;
    /// (While an exception leaves, other ranks may be anywhere: freeing takes all of them.)
    ~Communicator() {
      int over = 0;
      MPI_Finalized(&over);
      if (over == 0 && std::uncaught_exceptions() == 0) {
        MPI_Comm gone = handle;
        MPI_Comm_free(&gone);
      }
    }
  };

  static void describe(const std::exception_ptr& failure, std::array<char, 512>& text) {
    const char* words = "an exception that is no std::exception";
    const auto copy = [&](const char* from) {
      std::memcpy(text.data(), from, std::min(std::strlen(from), text.size() - 1));
    };
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      copy(error.what());
    } catch (...) {
      copy(words);
    }
  }

  std::shared_ptr<const Communicator> comm_;
  int rank_ = 0, size_ = 1;
};

}  // namespace mpi
}  // namespace ATTN_ABI
}  // namespace attn
