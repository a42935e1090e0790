// attn/call/kept_weights.h: the plain matrices that edit() of a layer shows, and when they are kept
// from one edit to the next.
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <utility>

#include "../base/config.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The plain weights of a layer beside its panels: none, until it is trained. From the first edit
/// behind a backward pass on they stay, so that a step of training neither unpacks nor allocates.
/// Copies of the layer begin without.
template <class Weights>
class KeptWeights {
 public:
  KeptWeights() = default;
  KeptWeights(const KeptWeights&) {}
  KeptWeights(KeptWeights&&) = default;
  KeptWeights& operator=(const KeptWeights&) = delete;
  KeptWeights& operator=(KeptWeights&&) = default;

  /// From the next edit on.
  void keep() { wanted_ = true; }
  /// The panels are written by another way.
  void forget() { kept_.reset(); }

  /// pack(weights) of those that are kept, or of unpack(). Where it throws they are lost, as they
  /// may be changed.
  template <class Unpack, class Pack>
  void edit(const Unpack& unpack, const Pack& pack) {
    std::unique_ptr<Weights> plain = std::move(kept_);
    if (plain == nullptr) plain = std::make_unique<Weights>(unpack());
    pack(*plain);
    if (wanted_) kept_ = std::move(plain);
  }

 private:
  std::unique_ptr<Weights> kept_;
  bool wanted_ = false;
};

/// In place of that where sizes are known to the compiler: weights are unpacked onto the stack.
template <class Weights>
struct UnkeptWeights {
  void keep() {}
  void forget() {}
  template <class Unpack, class Pack>
  void edit(const Unpack& unpack, const Pack& pack) {
    Weights plain = unpack();
    pack(plain);
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
