// attn/mpi/row_messages.h: rows of contiguous memory on their way between ranks.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "../types.h"
#include "c_api.h"  // MPI itself

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// `count` times a type of `bytes` bytes as one type, whatever the count.
/// WHY  MPI counts by int, and some implementations multiply in it: a message is one element of a
///      type that is built of counts of at most `most`
inline MPI_Datatype repeated(Index count, MPI_Datatype of, Index bytes, Index most) {
  MPI_Datatype type = MPI_DATATYPE_NULL;
  if (count <= most) {
    MPI_Type_contiguous(int(count), of, &type);
    return type;
  }
  MPI_Datatype piece = MPI_DATATYPE_NULL;
  MPI_Type_contiguous(int(most), of, &piece);
  const Index pieces = count / most, rest = count % most;
  MPI_Datatype parts[2] = {repeated(pieces, piece, bytes * most, most), of};
  MPI_Type_free(&piece);
  int counts[2] = {1, int(rest)};
  MPI_Aint places[2] = {0, MPI_Aint(pieces * most * bytes)};
  MPI_Type_create_struct(rest > 0 ? 2 : 1, counts, places, parts, &type);
  MPI_Type_free(&parts[0]);
  return type;
}

/// Messages that are under way together.
class RowMessages {
 public:
  /// `most`: the largest count that MPI is given.
  explicit RowMessages(MPI_Comm comm, Index most = std::numeric_limits<int>::max())
      : comm_(comm), most_(most) {}
  RowMessages(const RowMessages&) = delete;
  RowMessages& operator=(const RowMessages&) = delete;

  /// Room for as many: send() and receive() then take no memory.
  void reserve(std::size_t messages) { requests_.reserve(messages); }

  template <class T>
  void send(const T* from, Index numbers, int rank, int tag) {
    const Typed message(numbers * Index(sizeof(T)), most_);
    MPI_Isend(from, message.count, message.type, rank, tag, comm_, &next());
  }
  template <class T>
  void receive(T* to, Index numbers, int rank, int tag) {
    const Typed message(numbers * Index(sizeof(T)), most_);
    MPI_Irecv(to, message.count, message.type, rank, tag, comm_, &next());
  }
  void wait() {
    const Index all = Index(requests_.size());
    for (Index n = 0; n < all; n += most_)
      MPI_Waitall(int(std::min(most_, all - n)), requests_.data() + n, MPI_STATUSES_IGNORE);
    requests_.clear();
  }

 private:
  struct Typed {
    int count = 1;
    MPI_Datatype type = MPI_BYTE;
    Typed(Index bytes, Index most) {
      if (bytes <= most) {
        count = int(bytes);
      } else {
        type = repeated(bytes, MPI_BYTE, 1, most);
        MPI_Type_commit(&type);
      }
    }
    Typed(const Typed&) = delete;
    Typed& operator=(const Typed&) = delete;
    /// (Messages under way keep theirs.)
    ~Typed() {
      if (type != MPI_BYTE) MPI_Type_free(&type);
    }
  };
  MPI_Request& next() {
    requests_.push_back(MPI_REQUEST_NULL);
    return requests_.back();
  }

  MPI_Comm comm_;
  Index most_;
  std::vector<MPI_Request> requests_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
