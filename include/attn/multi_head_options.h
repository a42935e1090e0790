// attn/multi_head_options.h: the sizes of a multi-head attention layer.
// SPDX-License-Identifier: MIT
#pragma once

#include "base/sizes.h"
#include "types.h"

namespace attn {
inline namespace ATTN_ABI {

/// The sizes of a layer: d_model features in and out and a number of heads, by default of d_model /
/// heads features each.
///
/// Requires   positive sizes, heads a multiple of kv_heads; without key_dim() and value_dim(),
///            d_model a multiple of heads (std::invalid_argument from the layer otherwise)
/// Semantics  what is not set follows from what is: value_dim from key_dim, value_features from
///            key_features, those and output_features from d_model. No biases, as in Vaswani et al.
///            2017, unless biases(), in_bias() or out_bias() asks for them
class MultiHeadOptions {
 public:
  constexpr MultiHeadOptions(Index d_model, Index heads) : d_model_(d_model), heads_(heads) {}

  /// Features of each head's queries and keys, d_k.
  [[nodiscard]] constexpr MultiHeadOptions key_dim(Index n) const {
    return with(&MultiHeadOptions::key_dim_, n);
  }
  /// Features of each head's values, d_v.
  [[nodiscard]] constexpr MultiHeadOptions value_dim(Index n) const {
    return with(&MultiHeadOptions::value_dim_, n);
  }
  /// Features of the key input (and the value input, unless that is set): cross-attention to
  /// something wider or narrower.
  [[nodiscard]] constexpr MultiHeadOptions key_features(Index n) const {
    return with(&MultiHeadOptions::key_features_, n);
  }
  [[nodiscard]] constexpr MultiHeadOptions value_features(Index n) const {
    return with(&MultiHeadOptions::value_features_, n);
  }
  [[nodiscard]] constexpr MultiHeadOptions output_features(Index n) const {
    return with(&MultiHeadOptions::output_features_, n);
  }
  /// Grouped queries: key/value heads, each read by heads / kv_heads query heads.
  [[nodiscard]] constexpr MultiHeadOptions kv_heads(Index n) const {
    return with(&MultiHeadOptions::kv_heads_, n);
  }
  /// A bias for each of the query, key and value projections.
  [[nodiscard]] constexpr MultiHeadOptions in_bias() const {
    return with_bias(&MultiHeadOptions::in_bias_);
  }
  /// A bias for the output projection.
  [[nodiscard]] constexpr MultiHeadOptions out_bias() const {
    return with_bias(&MultiHeadOptions::out_bias_);
  }
  /// Both: a bias for each of the four projections.
  [[nodiscard]] constexpr MultiHeadOptions biases() const { return in_bias().out_bias(); }

  constexpr Index d_model() const { return d_model_; }
  constexpr Index heads() const { return heads_; }
  constexpr Index kv_heads() const { return kv_heads_.value_or(heads_); }
  constexpr Index key_dim() const { return key_dim_.value_or(heads_ > 0 ? d_model_ / heads_ : 0); }
  constexpr Index value_dim() const { return value_dim_.value_or(key_dim()); }
  constexpr Index key_features() const { return key_features_.value_or(d_model_); }
  constexpr Index value_features() const { return value_features_.value_or(key_features()); }
  constexpr Index output_features() const { return output_features_.value_or(d_model_); }
  constexpr bool has_in_bias() const { return in_bias_; }
  constexpr bool has_out_bias() const { return out_bias_; }

  /// Refuses sizes that make no layer.
  void check(const char* function) const {
    const auto positive = [&](const char* name, Index n) {
      detail::check_size(function, name, n, 1);
    };
    positive("d_model", d_model_);
    positive("heads", heads_);
    positive("kv_heads", kv_heads());
    if (heads_ % kv_heads() != 0) {
      detail::fail(detail::text(function, ": ", heads_, " heads, needs a multiple of the ",
                                kv_heads(), " key/value heads"));
    }
    if (!key_dim_.given() && d_model_ % heads_ != 0) {
      detail::fail(detail::text(function, ": d_model is ", d_model_, ", needs a multiple of the ",
                                heads_, " heads, or key_dim(n)"));
    }
    positive("key_dim", key_dim());
    positive("value_dim", value_dim());
    positive("key_features", key_features());
    positive("value_features", value_features());
    positive("output_features", output_features());
    const auto countable = [&](const char* names, auto... sizes) {
      detail::check_product(function, names, sizes...);
    };
    countable("d_model x heads x key_dim", d_model_, heads_, key_dim());
    countable("key_features x kv_heads x key_dim", key_features(), kv_heads(), key_dim());
    countable("value_features x kv_heads x value_dim", value_features(), kv_heads(), value_dim());
    countable("output_features x heads x value_dim", output_features(), heads_, value_dim());
  }

 private:
  // Two functions and no template: clang 13 misses the definition of a constexpr template that is
  // called above it.
  constexpr MultiHeadOptions with(detail::OptionalSize MultiHeadOptions::*member, Index n) const {
    MultiHeadOptions changed = *this;
    changed.*member = n;
    return changed;
  }
  constexpr MultiHeadOptions with_bias(bool MultiHeadOptions::*member) const {
    MultiHeadOptions changed = *this;
    changed.*member = true;
    return changed;
  }

  Index d_model_, heads_;
  detail::OptionalSize kv_heads_, key_dim_, value_dim_;
  detail::OptionalSize key_features_, value_features_, output_features_;
  bool in_bias_ = false, out_bias_ = false;
};

/// The sizes that a layer's scratch depends on, for reserve(): rows of all sequences together, and
/// of the longest.
struct LayerShape {
  Index queries = 0, keys = 0;  ///< of the longest sequence
  Index sequences = 1;
  int workers = 1;        ///< as in parallel(workers) or on(pool)
  Index rotary_dims = 0;  ///< features of each head that turn, with rotary()
  Index split_keys = 0;   ///< as in split_keys(chunk)
};

}  // namespace ATTN_ABI
}  // namespace attn
