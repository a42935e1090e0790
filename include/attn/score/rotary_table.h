// attn/score/rotary_table.h: what rotary.h makes: the option, its positions, and the table of
// cosines and sines of a call.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "../base/call_shape.h"
#include "../base/asked.h"
#include "../base/simd.h"
#include "../base/sizes.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The cosines and sines of rows. A row of the table is n angles twice, n = dims rounded up to
/// whole packets:
///   half_split    cos(α₀) cos(α₁) … cos(α_{dims/2−1})     then   sin(α₀) sin(α₁) … sin(α_{dims/2−1})
///   interleaved   cos(α₀) cos(α₀) cos(α₁) cos(α₁) …       then  −sin(α₀) sin(α₀) −sin(α₁) sin(α₁) …
template <class Scalar>
struct RotaryTable {
  Scalar* rows = nullptr;
  Index dims = 0;
  bool by_token = false;  ///< a row for each token of the call; else for each row of a sequence

  static constexpr Index half_of_row(Index dims) {
    constexpr Index width = Simd<Scalar>::width;
    return (dims + width - 1) / width * width;
  }
  static constexpr Index size(Index rows, Index dims) { return rows * 2 * half_of_row(dims); }
  Scalar* at(Index row) const { return rows + size(row, dims); }
  const Scalar* of(Index token, Index row) const { return at(by_token ? token : row); }

  void write(pairing pairs, Index row, Index pair, const Scalar& cosine, const Scalar& sine) const {
    Scalar *cosines = at(row), *sines = cosines + half_of_row(dims);
    if (pairs == pairing::half_split) {
      cosines[pair] = cosine;
      sines[pair] = sine;
    } else {
      cosines[2 * pair] = cosines[2 * pair + 1] = cosine;
      sines[2 * pair] = -sine;
      sines[2 * pair + 1] = sine;
    }
  }
};

/// The rotation of a call as the engine sees it.
template <class Scalar>
struct Rotation {
  pairing pairs;
  Index dims;  ///< features of each head that turn, the first ones; even
  RotaryTable<Scalar> query, key;
};

/// The positions of consecutive rows: listed from an entry on, or counted from the first.
struct RowPositions {
  const IndexList* ids;
  Index first;
  Index operator()(Index row) const { return ids != nullptr ? (*ids)[first + row] : first + row; }
};

/// Angles position · base^(−2i / dims) of the pairs i < dims / 2.
struct AnglesOfBase {
  /// Angles are products in double.
  static constexpr long long kMostPosition = 1LL << std::numeric_limits<double>::digits;
  double base = 10000;

  void check(const char* function) const {
    if (!is_finite(base) || !(base > 0) || !is_finite(double(kMostPosition) / base)) {
      fail(text(function, ": rotary: the base is ", number_text(base),
                ", needs a finite number above zero under which all angles are finite"));
    }
  }
  Index dims(Index key_dim) const { return key_dim; }
  template <class Visit>
  void visit_memory(const Visit&) const {}
  void check_position(const char* function, const char* name, Index position) const {
    const long long wide = position;  // an Index of 32 bits cannot be beyond
    if (wide < -kMostPosition || wide > kMostPosition) {
      fail(text(function, ": rotary: ", name, " position ", position, " is beyond the ",
                kMostPosition, " that a double counts to, either way"));
    }
  }

  /// Fills `rows` rows. The angle of position 32a + b is turned out of those of 32a and b by one
  /// complex product, as a sine costs some twenty times as much. It depends on the position alone,
  /// and so do its bits.
  template <class Scalar>
  void fill(const RotaryTable<Scalar>& table, pairing pairs, Index rows,
            const RowPositions& positions) const {
    using Angle = std::conditional_t<std::is_same_v<Scalar, long double>, long double, double>;
    using std::cos, std::sin, std::pow;
    constexpr Index kStep = 32;
    for (Index pair = 0; pair < table.dims / 2; ++pair) {
      const Angle frequency = pow(Angle(base), Angle(-2 * pair) / Angle(table.dims));
      Angle low_cos[kStep], low_sin[kStep], high_cos = 1, high_sin = 0;
      bool known[kStep] = {};
      Index high = 0;
      for (Index r = 0; r < rows; ++r) {
        const Index position = positions(r), low = position & (kStep - 1);
        if (!known[low]) {
          low_cos[low] = cos(Angle(low) * frequency);
          low_sin[low] = sin(Angle(low) * frequency);
          known[low] = true;
        }
        if (position - low != high) {
          high = position - low;
          high_cos = cos(Angle(high) * frequency);
          high_sin = sin(Angle(high) * frequency);
        }
        const Angle minus = -(high_sin * low_sin[low]), cross = high_cos * low_sin[low];
        table.write(pairs, r, pair, Scalar(add_product(high_cos, low_cos[low], minus)),
                    Scalar(add_product(high_sin, low_cos[low], cross)));
      }
    }
  }

 private:
  static double add_product(double a, double b, double c) {
    if constexpr (kHardwareFma) return std::fma(a, b, c);
    return a * b + c;
  }
  static long double add_product(long double a, long double b, long double c) { return a * b + c; }
};

/// Cosines and sines that the caller brings: row p for position p, a column for each pair.
template <class Cosines, class Sines>
struct GivenAngles {
  Cosines cosines;
  Sines sines;

  void check(const char* function) const {
    const auto c = cosines.view();
    const auto s = sines.view();
    if (c.rows != s.rows || c.cols != s.cols) {
      fail(text(function, ": rotary: the cosines are ", shape_text(c.rows, c.cols), ", the sines ",
                shape_text(s.rows, s.cols), "; both need one shape"));
    }
  }
  Index dims(Index) const { return 2 * cosines.view().cols; }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    visit("the cosines", memory(cosines));
    visit("the sines", memory(sines));
  }
  void check_position(const char* function, const char* name, Index position) const {
    const Index rows = cosines.view().rows;
    if (position < 0 || position >= rows) {
      fail(text(function, ": rotary: ", name, " position ", position, " is not among the ", rows,
                " rows of cosines and sines"));
    }
  }
  template <class Scalar>
  void fill(const RotaryTable<Scalar>& table, pairing pairs, Index rows,
            const RowPositions& positions) const {
    const auto c = cosines.view();
    const auto s = sines.view();
    for (Index r = 0; r < rows; ++r) {
      const Index position = positions(r);
      for (Index pair = 0; pair < table.dims / 2; ++pair)
        table.write(pairs, r, pair, Scalar(c(position, pair)), Scalar(s(position, pair)));
    }
  }

 private:
  template <class Held>
  static TensorView<const typename Held::Scalar> memory(const Held& held) {
    const auto m = held.view();
    return {m.data, 1, 1, m.rows, m.cols, 0, 0, m.row_stride, m.col_stride};
  }
};

/// The positions of all rows of one operand, and how its table is laid out.
template <class Offset>
class OperandPositions {
 public:
  /// ids: explicit positions, or null: row + offset(sequence), as in the call.
  template <class Angles>
  OperandPositions(const char* function, const char* name, const Angles& angles,
                   const Tokens& tokens, const IndexList* ids, const Offset& offset)
      : tokens_(tokens), ids_(ids), offset_(offset) {
    const Index longest = tokens.longest(), total = tokens.total();
    if (ids != nullptr) {
      by_token_ = ids->size() != longest;
      if (by_token_ && ids->size() != total) {
        fail(text(function, ": rotary: ", ids->size(), " positions for the ", total, " rows of ",
                  name, "; needs one for each",
                  longest == total ? std::string()
                                   : text(", or ", longest, " that serve every sequence")));
      }
      for (Index r = 0; r < ids->size(); ++r) angles.check_position(function, name, (*ids)[r]);
      return;
    }
    for (Index b = 0; b < tokens.sequences; ++b) {
      by_token_ |= offset(b) != offset(0);
      if (tokens.length(b) == 0) continue;
      angles.check_position(function, name, offset(b));
      angles.check_position(function, name, offset(b) + tokens.length(b) - 1);
    }
  }

  Index rows() const { return by_token_ ? tokens_.total() : tokens_.longest(); }

  /// The positions of the rows `row`, row + 1, … of a sequence.
  RowPositions from(Index sequence, Index row) const {
    if (ids_ == nullptr) return {nullptr, offset_(sequence) + row};
    return {ids_, (by_token_ ? tokens_.begin(sequence) : 0) + row};
  }

  template <class Scalar, class Angles>
  RotaryTable<Scalar> table(const Angles& angles, pairing pairs, Index dims, Scalar* memory) const {
    const RotaryTable<Scalar> whole{memory, dims, by_token_};
    if (ids_ != nullptr) {
      angles.fill(whole, pairs, rows(), {ids_, 0});
    } else if (!by_token_) {
      if (rows() > 0) angles.fill(whole, pairs, rows(), {nullptr, offset_(0)});
    } else {
      for (Index b = 0; b < tokens_.sequences; ++b) {
        const RotaryTable<Scalar> part{whole.at(tokens_.begin(b)), dims, true};
        angles.fill(part, pairs, tokens_.length(b), {nullptr, offset_(b)});
      }
    }
    return whole;
  }

 private:
  const Tokens& tokens_;
  const IndexList* ids_;
  const Offset& offset_;
  bool by_token_ = false;
};

struct RotaryOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1,
                  "attn: two rotary rotations in one call: name both operands' positions in one, "
                  "rotary(...).positions(query_ids, key_ids)");
  }
};
/// rotary(…).
template <class Angles>
struct Rotary : option_base {
  using Kind = RotaryOption;
  using Position = ReadsPositions;
  pairing pairs;
  Angles angles;
  OptionalSize asked_dims;  ///< else all of the head, or twice the columns of given cosines
  IndexList query_ids, key_ids;
  bool has_ids = false;

  Rotary(pairing p, Angles a) : pairs(p), angles(std::move(a)) {}

  /// The first n features of each head turn, the others stay.
  [[nodiscard]] Rotary dims(Index n) const {
    Rotary changed = *this;
    changed.asked_dims = n;
    return changed;
  }
  /// Explicit positions, one for each row of queries and keys alike, or as many as the longest
  /// sequence has rows, for all.
  template <class Ids = std::initializer_list<Index>>
  [[nodiscard]] Rotary positions(Ids&& ids) const {
    Rotary changed = *this;
    changed.query_ids = changed.key_ids = IndexList(std::forward<Ids>(ids));
    changed.has_ids = true;
    return changed;
  }
  /// The same where queries and keys are at positions of their own.
  template <class Ids = std::initializer_list<Index>, class KeyIds = std::initializer_list<Index>>
  [[nodiscard]] Rotary positions(Ids&& of_queries, KeyIds&& of_keys) const {
    Rotary changed = *this;
    changed.query_ids = IndexList(std::forward<Ids>(of_queries));
    changed.key_ids = IndexList(std::forward<KeyIds>(of_keys));
    changed.has_ids = true;
    return changed;
  }

  template <class Visit>
  void visit_memory(const Visit& visit) const {
    angles.visit_memory(visit);
  }
  /// How many of a head's features turn; refuses what cannot.
  Index checked_dims(const char* function, Index features) const {
    angles.check(function);
    const Index n = asked_dims.value_or(angles.dims(features));
    if (n < 2 || n % 2 != 0 || n > features) {
      fail(text(function, ": rotary: a head has ", features, " features, ", n,
                " are to turn, two by two: needs an even number from 2 to ", features,
                ", as .dims(n) says it"));
    }
    if (angles.dims(n) != n) {
      fail(text(function, ": rotary: the cosines have ", angles.dims(n) / 2, " columns, ", n,
                " features that turn need ", n / 2));
    }
    return n;
  }
};

/// The rotation of a call's queries once its shape is known: checked, with the size of its table.
/// All there is to turn where keys are a cache's, turned already.
template <class Scalar, class Angles, class Offset>
class QueryRotation {
 public:
  QueryRotation(const CallShape& shape, const Rotary<Angles>& option, const Offset& offset)
      : option_(option),
        dims_(option.checked_dims(shape.function, shape.key_dim)),
        query_(shape.function, "query", option.angles, shape.queries,
               option.has_ids ? &option.query_ids : nullptr, offset) {}

  Index scalars() const { return RotaryTable<Scalar>::size(query_.rows(), dims_); }
  /// Fills `memory`, scalars() of them, on a packet's boundary.
  Rotation<Scalar> fill(Scalar* memory) const {
    Rotation<Scalar> rotation{option_.pairs, dims_, {}, {}};
    rotation.query = query_.table(option_.angles, option_.pairs, dims_, memory);
    return rotation;
  }

 protected:
  const Rotary<Angles>& option_;
  Index dims_;

 private:
  OperandPositions<Offset> query_;
};

/// The same of queries and keys; these are counted from 0.
template <class Scalar, class Angles, class Offset>
class FullRotation : public QueryRotation<Scalar, Angles, Offset> {
  using Queries = QueryRotation<Scalar, Angles, Offset>;
  using Queries::dims_, Queries::option_;

 public:
  FullRotation(const CallShape& shape, const Rotary<Angles>& option, const Offset& offset)
      : Queries(shape, option, offset),
        key_(shape.function, "key", option.angles, shape.keys,
             option.has_ids ? &option.key_ids : nullptr, kFromStart) {}

  Index scalars() const {
    return Queries::scalars() + RotaryTable<Scalar>::size(key_.rows(), dims_);
  }
  Rotation<Scalar> fill(Scalar* memory) const {
    Rotation<Scalar> rotation = Queries::fill(memory);
    rotation.key = key_.table(option_.angles, option_.pairs, dims_, memory + Queries::scalars());
    return rotation;
  }

 private:
  struct FromStart {
    Index operator()(Index) const { return 0; }
  };
  static constexpr FromStart kFromStart{};

  OperandPositions<FromStart> key_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
