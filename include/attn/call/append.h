// attn/call/append.h: one append to a cache: everything checked, then written. Plumbing of
// kv_cache.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/cache_append.h"
#include "../kernel/rotate_row.h"
#include "cache_source.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class Storage, class Key, class Value, class... Options>
constexpr void check_append_types() {
  static_assert(is_operand_v<Key> && is_operand_v<Value>,
                "attn::KeyValueCache::append: key and value are Eigen matrices, heads(X, n) of "
                "them, or strided views (bhld, blhd, lbhd)");
  static_assert((is_of_kind_v<Options, BatchOption, CacheSequencesOption, RotaryOption> && ...),
                "attn::KeyValueCache::append: takes sequences(), sequence_length(), "
                "cache_sequences() and rotary()");
  static_assert(count_v<RotaryOption, Options...> <= 1 && count_v<BatchOption, Options...> <= 1 &&
                    count_v<CacheSequencesOption, Options...> <= 1,
                "attn::KeyValueCache::append: an option is given twice");
  using Scalar = kernel::cache_compute_t<Storage>;
  static_assert(
      std::is_same_v<Scalar, compute_t<typename operand_traits<bare_t<Key>>::Scalar>> &&
          std::is_same_v<Scalar, compute_t<typename operand_traits<bare_t<Value>>::Scalar>>,
      "attn::KeyValueCache::append: key and value compute in another scalar than the cache: cast "
      "them");
}

/// Refuses keys or values that are not shaped as the cache's.
inline void check_appended(const char* function, const char* name, const TensorExtent& has,
                           Index heads, Index features) {
  if (has.heads != heads || has.features != features) {
    fail(text(function, ": ", name, " has ", has.heads, " heads of ", has.features,
              " features, the cache ", heads, " of ", features));
  }
}

/// Refuses a sequence chosen twice, in one pass: each is marked, then all marks are taken away.
template <class Memory>
void check_apart(const char* function, const IndexList& chosen, const Memory& memory) {
  Index twice = -1;
  for (Index b = 0; b < chosen.size(); ++b) {
    Index& mark = memory.sequence(chosen[b]).chosen;
    if (mark != 0) twice = chosen[b];
    mark = 1;
  }
  for (Index b = 0; b < chosen.size(); ++b) memory.sequence(chosen[b]).chosen = 0;
  if (twice >= 0) fail(text(function, ": cache_sequences names sequence ", twice, " twice"));
}

/// Keys go into the cache as they are.
struct UnturnedKeys {
  Index piece(Index tokens) const { return tokens; }
  void begin(Index, Index, Index) const {}
  template <class T>
  kernel::Source<T> operator()(const kernel::Source<T>& keys, Index) const {
    return keys;
  }
};
/// Keys are turned on their way in, a piece of tokens at a time.
template <class Storage, class Angles, class Lengths>
class TurnedKeys {
  using Scalar = kernel::cache_compute_t<Storage>;
  using Memory = kernel::CacheMemory<Storage>;

 public:
  /// `lengths`: the tokens that a sequence of the call holds before.
  TurnedKeys(const char* function, const Memory& memory, const Rotary<Angles>& option,
             const Tokens& tokens, const Lengths& lengths)
      : memory_(memory),
        option_(option),
        positions_(function, "key", option.angles, tokens,
                   option.has_ids ? &option.key_ids : nullptr, lengths),
        turn_{option.pairs, option.checked_dims(function, memory.layout().key_dim), {}, {}} {
    turn_.key = {memory.angles(), turn_.dims, false};
  }

  Index piece(Index tokens) const { return std::min(tokens, kernel::CacheLayout::piece); }
  /// The angles of `count` tokens of a sequence, from token `first` of those that are appended on.
  void begin(Index sequence, Index first, Index count) const {
    option_.angles.fill(turn_.key, option_.pairs, count, positions_.from(sequence, first));
  }
  template <class T>
  kernel::Source<const Scalar> operator()(const kernel::Source<T>& keys, Index count) const {
    const kernel::CacheLayout& layout = memory_.layout();
    for (Index t = 0; t < count; ++t) {
      kernel::rotate_row<Simd<Scalar>>(turn_, turn_.key.at(t), keys.token(t), keys.feature_stride,
                                       layout.key_dim, memory_.turned() + t * layout.depth);
    }
    return {memory_.turned(), layout.depth, 1};
  }

 private:
  const Memory& memory_;
  const Rotary<Angles>& option_;
  OperandPositions<Lengths> positions_;
  Rotation<Scalar> turn_;
};

/// What is appended to a cache: checked against it when made, then written.
template <class Storage, class Key, class Value>
class CacheAppend {
  using Memory = kernel::CacheMemory<Storage>;

 public:
  static constexpr const char* kFunction = "attn::KeyValueCache::append";

  template <class Asked>
  CacheAppend(const kernel::CacheStore& store, const GivenRows<Key>& key,
              const GivenRows<Value>& value, const Batch& batch, const Asked& asked)
      : memory_(store.layout(), store.memory()), chosen_(chosen_list(asked)) {
    check_holds(kFunction, layout());
    key_.view = split_heads(key.view, key.stacked, layout().key_dim);
    value_.view = split_heads(value.view, value.stacked, layout().value_dim);
    check_appended(kFunction, "key", key_.view.extent(), layout().kv_heads, layout().key_dim);
    check_appended(kFunction, "value", value_.view.extent(), layout().kv_heads, layout().value_dim);
    key_ = place(key_.view, key.stacked, tokens_of("key", key_.view, key.stacked, batch));
    value_ =
        place(value_.view, value.stacked, tokens_of("value", value_.view, value.stacked, batch));
    check_tokens();
    turned_ = turned_code(kFunction, layout().key_dim, asked);
    for (Index b = 0; b < tokens().sequences; ++b) check_room(b);
    if (chosen_ != nullptr) check_apart(kFunction, *chosen_, memory_);
  }
  CacheAppend(const CacheAppend&) = delete;

  const Memory& memory() const { return memory_; }
  const Tokens& tokens() const { return key_.tokens; }
  /// Tokens that the sequence holds to which sequence b of the call is appended.
  Index length_before(Index b) const { return state(b).length; }
  /// Refuses what shares memory with the cache.
  template <class Asked>
  void check_overlap(const kernel::CacheStore& store, const Asked& asked) const {
    Outputs outputs(kFunction);
    outputs.add("the cache", cache_memory(store));
    outputs.keep_from("key", key_.view);
    outputs.keep_from("value", value_.view);
    asked.each([&](const auto& option) {
      option.visit_memory(
          [&](const char* name, const auto& input) { outputs.keep_from(name, input); });
    });
  }

  /// `keys`: UnturnedKeys or TurnedKeys. Nothing is refused any more, and nothing throws.
  template <class Keys>
  void write(const Keys& keys) const {
    const kernel::CacheWriter<Storage> writer(memory_);
    for (Index b = 0; b < tokens().sequences; ++b) {
      const Index sequence = sequence_of(b), length = length_before(b), count = tokens().length(b);
      for (Index done = 0, part = 0; done < count; done += part) {
        part = keys.piece(count - done);
        keys.begin(b, done, part);
        for (Index head = 0; head < layout().kv_heads; ++head) {
          writer.append(layout().of_head(sequence, head), length + done, part,
                        keys(source(key_, b, head, done), part), source(value_, b, head, done));
        }
      }
      kernel::CacheSequence& held = state(b);
      if (count > 0 && length == 0) held.turned = turned_;
      held.length += count;
      held.written = std::max(held.written, held.length);
    }
  }

 private:
  const kernel::CacheLayout& layout() const { return memory_.layout(); }
  Index sequence_of(Index b) const {
    return chosen_sequence(kFunction, chosen_, b, layout().sequences);
  }
  kernel::CacheSequence& state(Index b) const { return memory_.sequence(sequence_of(b)); }

  template <class T>
  static Tokens tokens_of(const char* name, const TensorView<T>& view, bool stacked,
                          const Batch& batch) {
    if (batch.query_offsets != batch.key_offsets || batch.query_length != batch.key_length) {
      fail(text(kFunction,
                ": the batch names rows of queries and of keys: write sequences(offsets) "
                "or sequence_length(n)"));
    }
    return detail::tokens_of(kFunction, name, view.extent(), stacked, batch.query_offsets,
                             batch.query_length);
  }
  void check_tokens() const {
    const Tokens &keys = key_.tokens, &values = value_.tokens;
    if (values.sequences != keys.sequences || values.total() != keys.total()) {
      fail(text(kFunction, ": value has ", values.total(), " rows in ", values.sequences,
                " sequences, key has ", keys.total(), " in ", keys.sequences,
                "; both need one row per key"));
    }
    check_chosen(kFunction, "key", keys.sequences, chosen_, layout().sequences);
  }
  void check_room(Index b) const {
    const kernel::CacheSequence& held = state(b);
    const Index count = tokens().length(b), room = layout().room(held);
    if (count > room) {
      fail(layout().window == 0
               ? text(kFunction, ": ", count, " tokens for sequence ", sequence_of(b),
                      ", which holds ", held.length, " of at most ", layout().capacity)
               : text(kFunction, ": ", count, " tokens for sequence ", sequence_of(b),
                      " of a ring that takes ", room, " at a time: feed longer inputs in chunks"));
    }
    if (held.length > 0 && held.turned != turned_) {
      fail(text(kFunction, ": called ", turned_text(turned_), ", sequence ", sequence_of(b),
                " was appended ", turned_text(held.turned), " before"));
    }
  }

  template <class T>
  static kernel::Source<T> source(const Operand<T>& operand, Index b, Index head, Index token) {
    return {operand.row(b, head, token), operand.view.token_stride, operand.view.feature_stride};
  }

  Memory memory_;
  const IndexList* chosen_;
  Operand<Key> key_{};
  Operand<Value> value_{};
  Index turned_ = 0;  ///< how the call turns keys
};

/// Appends; of the options of a call it reads those that an append may be given.
template <class Storage, class Key, class Value, class Asked>
void append_to(const kernel::CacheStore& store, const GivenRows<Key>& key,
               const GivenRows<Value>& value, const Batch& batch, const Asked& asked) {
  using Append = CacheAppend<Storage, Key, Value>;
  const Append append(store, key, value, batch, asked);
  if constexpr (Asked::template has<RotaryOption>()) {
    const auto& option = asked.template get<RotaryOption>();
    const auto lengths = [&](Index b) { return append.length_before(b); };
    const TurnedKeys<Storage, bare_t<decltype(option.angles)>, decltype(lengths)> turned(
        Append::kFunction, append.memory(), option, append.tokens(), lengths);
    append.check_overlap(store, asked);
    append.write(turned);
  } else {
    append.check_overlap(store, asked);
    append.write(UnturnedKeys{});
  }
}

/// The same of operands and options as they are given.
template <class Storage, class Key, class Value, class... Options>
void append_given(const kernel::CacheStore& store, Key&& K, Value&& V, const Options&... options) {
  static constexpr const char* function = "attn::KeyValueCache::append";
  check_append_types<Storage, Key, Value, Options...>();
  check_holds(function, store.layout());
  const Asked asked(options...);
  const auto key = lift(std::forward<Key>(K));
  const auto value = lift(std::forward<Value>(V));
  const auto keys = given_rows(function, "key", key);
  const auto values = given_rows(function, "value", value);
  append_to<Storage>(store, keys, values, batch_of(function, asked), asked);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
