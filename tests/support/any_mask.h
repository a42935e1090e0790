// tests/support/any_mask.h: a mask whose type does not tell which it is, so that compositions can be drawn at run time. It
// expects of whoever asks it what the Mask concept promises (masks.h): rows that are there, and keys that are.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>

namespace support {

/// What the engine asks of a bound mask, behind virtual functions; for float.
class BoundAnyMask : public attn::mask_base {
 public:
  using Lanes = attn::detail::Simd<float>;

  template <class Bound>
  explicit BoundAnyMask(Bound bound) : asked_(std::make_shared<Of<Bound>>(std::move(bound))) {}

  bool operator()(const attn::QueryRow& row, attn::Index key) const { return asked_->at(row, key); }
  attn::KeyRange keys(const attn::QueryRows& rows) const {
    expect_some(rows);
    return asked_->keys(rows);
  }
  attn::KeyRange full_keys(const attn::QueryRows& rows) const {
    expect_some(rows);
    return asked_->full_keys(rows);
  }
  attn::detail::Cover cover(const attn::QueryRows& rows, attn::KeyRange range) const {
    expect_some(rows);
    EXPECT_TRUE(0 <= range.begin && range.begin < range.end && range.end <= rows.keys)
        << range.begin << " to " << range.end << " of " << rows.keys;
    return asked_->cover(rows, range);
  }
  template <class S>
  typename S::Mask lanes(const attn::QueryRow& row, attn::Index key) const {
    EXPECT_TRUE(0 <= key && key < row.keys) << key << " of " << row.keys;
    alignas(64) float flags[Lanes::width];
    asked_->lanes(row, key, flags);
    return S::less(S::set(0.f), S::load(flags));
  }

 private:
  static void expect_some(const attn::QueryRows& rows) {
    EXPECT_LT(rows.begin, rows.end);
    EXPECT_LT(rows.head_begin, rows.head_end);
  }
  struct Asked {
    virtual ~Asked() = default;
    virtual bool at(const attn::QueryRow&, attn::Index) const = 0;
    virtual attn::KeyRange keys(const attn::QueryRows&) const = 0;
    virtual attn::KeyRange full_keys(const attn::QueryRows&) const = 0;
    virtual attn::detail::Cover cover(const attn::QueryRows&, attn::KeyRange) const = 0;
    virtual void lanes(const attn::QueryRow&, attn::Index, float*) const = 0;
  };
  template <class Bound>
  struct Of final : Asked {
    Bound bound;
    explicit Of(Bound b) : bound(std::move(b)) {}
    bool at(const attn::QueryRow& row, attn::Index key) const override { return bound(row, key); }
    attn::KeyRange keys(const attn::QueryRows& rows) const override { return bound.keys(rows); }
    attn::KeyRange full_keys(const attn::QueryRows& rows) const override {
      return bound.full_keys(rows);
    }
    attn::detail::Cover cover(const attn::QueryRows& rows, attn::KeyRange range) const override {
      return attn::detail::cover(bound, rows, range);
    }
    void lanes(const attn::QueryRow& row, attn::Index key, float* flags) const override {
      const auto seen = bound.template lanes<Lanes>(row, key);
      Lanes::store(flags, Lanes::select(seen, Lanes::set(1.f), Lanes::set(0.f)));
    }
  };
  std::shared_ptr<const Asked> asked_;
};

class AnyMask : public attn::mask_base {
 public:
  template <class Mask>
  explicit AnyMask(Mask mask) : option_(std::make_shared<Of<Mask>>(std::move(mask))) {}

  BoundAnyMask bind(const attn::detail::CallShape& shape) const { return option_->bind(shape); }

 private:
  struct Option {
    virtual ~Option() = default;
    virtual BoundAnyMask bind(const attn::detail::CallShape&) const = 0;
  };
  template <class Mask>
  struct Of final : Option {
    Mask mask;
    explicit Of(Mask m) : mask(std::move(m)) {}
    BoundAnyMask bind(const attn::detail::CallShape& shape) const override {
      return BoundAnyMask(mask.bind(shape));
    }
  };
  std::shared_ptr<const Option> option_;
};

}  // namespace support
