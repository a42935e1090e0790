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

template <class T>
using is_append_option =
    std::bool_constant<is_batch<T>::value || is_cache_sequences<T>::value || is_rotary<T>::value ||
                       std::is_same_v<T, option_base>>;  // which says nothing

template <class Storage, class Key, class Value, class... Options>
constexpr void check_append_types() {
  static_assert(is_operand_v<Key> && is_operand_v<Value>,
                "attn::KeyValueCache::append: key and value are Eigen matrices, heads(X, n) of "
                "them, or strided views (bhld, blhd, lbhd)");
  static_assert((is_append_option<bare_t<Options>>::value && ...),
                "attn::KeyValueCache::append: takes sequences(), sequence_length(), "
                "cache_sequences() and rotary()");
  static_assert(count_v<is_rotary, Options...> <= 1 && count_v<is_batch, Options...> <= 1 &&
                    count_v<is_cache_sequences, Options...> <= 1,
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

template <class Storage, class Key, class Value, class... Options>
void append_to(const kernel::CacheStore& store, Key&& K, Value&& V, const Options&... options) {
  static constexpr const char* function = "attn::KeyValueCache::append";
  check_append_types<Storage, Key, Value, Options...>();
  using Memory = kernel::CacheMemory<Storage>;
  const Memory memory(store.layout(), store.memory());
  const kernel::CacheLayout& layout = memory.layout();
  check_holds(function, layout);
  const auto key_held = lift(std::forward<Key>(K));
  const auto value_held = lift(std::forward<Value>(V));
  const auto key =
      split_heads(read_only(key_held.view(function, "key")), key_held.kStacked, layout.key_dim);
  const auto value = split_heads(read_only(value_held.view(function, "value")), value_held.kStacked,
                                 layout.value_dim);
  const NoOption none{};
  const Batch batch = batch_of(function, options...);

  // What is given fits together, and into the cache.
  check_appended(function, "key", key.extent(), layout.kv_heads, layout.key_dim);
  check_appended(function, "value", value.extent(), layout.kv_heads, layout.value_dim);
  if (batch.query_offsets != batch.key_offsets || batch.query_length != batch.key_length) {
    fail(text(function,
              ": the batch names rows of queries and of keys: write sequences(offsets) "
              "or sequence_length(n)"));
  }
  const Tokens tokens = tokens_of(function, "key", key.extent(), key_held.kStacked,
                                  batch.query_offsets, batch.query_length);
  const Tokens of_values = tokens_of(function, "value", value.extent(), value_held.kStacked,
                                     batch.query_offsets, batch.query_length);
  if (of_values.sequences != tokens.sequences || of_values.total() != tokens.total()) {
    fail(text(function, ": value has ", of_values.total(), " rows in ", of_values.sequences,
              " sequences, key has ", tokens.total(), " in ", tokens.sequences,
              "; both need one row per key"));
  }
  const IndexList* const chosen = chosen_list(options...);
  check_chosen(function, "key", tokens.sequences, chosen, layout.sequences);
  const auto sequence_of = [&](Index b) {
    return chosen_sequence(function, chosen, b, layout.sequences);
  };
  const Index turned = turned_code(function, layout.key_dim, options...);
  for (Index b = 0; b < tokens.sequences; ++b) {
    const kernel::CacheSequence& state = memory.sequence(sequence_of(b));
    if (tokens.length(b) > layout.room(state)) {
      fail(layout.window == 0
               ? text(function, ": ", tokens.length(b), " tokens for sequence ", sequence_of(b),
                      ", which holds ", state.length, " of at most ", layout.capacity)
               : text(function, ": ", tokens.length(b), " tokens for sequence ", sequence_of(b),
                      " of a ring that takes ", layout.room(state),
                      " at a time: feed longer inputs in chunks"));
    }
    if (state.length > 0 && state.turned != turned) {
      fail(text(function, ": called ", turned_text(turned), ", sequence ", sequence_of(b),
                " was appended ", turned_text(state.turned), " before"));
    }
  }
  if (chosen != nullptr) check_apart(function, *chosen, memory);
  const auto length_of = [&](Index b) { return memory.sequence(sequence_of(b)).length; };
  const auto rotation = [&] {
    if constexpr (count_v<is_rotary, Options...> == 1) {
      const auto& option = pick<is_rotary>(none, options...);
      return OperandPositions<decltype(length_of)>(function, "key", option.angles, tokens,
                                                   option.has_ids ? &option.key_ids : nullptr,
                                                   length_of);
    } else {
      return none;
    }
  }();

  Outputs outputs(function);
  outputs.add("the cache", cache_memory(store));
  const auto keep_apart = [&](const char* name, const auto& input) {
    outputs.keep_from(name, input);
  };
  keep_apart("key", key);
  keep_apart("value", value);
  (visit_tables(options, keep_apart), ...);

  // Nothing is refused any more, and nothing below throws.
  const auto keys = place(key, key_held.kStacked, tokens);
  const auto values = place(value, value_held.kStacked, of_values);
  const kernel::CacheWriter<Storage> writer(memory);
  for (Index b = 0; b < tokens.sequences; ++b) {
    const Index sequence = sequence_of(b), length = length_of(b), count = tokens.length(b);
    for (Index done = 0, part = 0; done < count; done += part) {
      part = count - done;
      if constexpr (count_v<is_rotary, Options...> == 1)
        part = std::min(part, kernel::CacheLayout::piece);
      const auto source = [&](const auto& operand, Index head) {
        using T = std::remove_pointer_t<decltype(operand.view.data)>;
        return kernel::Source<T>{operand.row(b, head, done), operand.view.token_stride,
                                 operand.view.feature_stride};
      };
      if constexpr (count_v<is_rotary, Options...> == 1) {
        using Scalar = kernel::cache_compute_t<Storage>;
        const auto& option = pick<is_rotary>(none, options...);
        kernel::Rotation<Scalar> turn{option.pairs, turned / 2, {}, {}};
        turn.key = {memory.angles(), turn.dims, false};
        option.angles.fill(turn.key, option.pairs, part, rotation.from(b, done));
        for (Index head = 0; head < layout.kv_heads; ++head) {
          const auto from = source(keys, head);
          for (Index t = 0; t < part; ++t) {
            kernel::rotate_row<Simd<Scalar>>(turn, turn.key.at(t), from.token(t),
                                             from.feature_stride, layout.key_dim,
                                             memory.turned() + t * layout.depth);
          }
          writer.append(layout.of_head(sequence, head), length + done, part,
                        kernel::Source<const Scalar>{memory.turned(), layout.depth, 1},
                        source(values, head));
        }
      } else {
        for (Index head = 0; head < layout.kv_heads; ++head) {
          writer.append(layout.of_head(sequence, head), length + done, part, source(keys, head),
                        source(values, head));
        }
      }
    }
    kernel::CacheSequence& state = memory.sequence(sequence);
    if (count > 0 && length == 0) state.turned = turned;
    state.length += count;
    state.written = std::max(state.written, state.length);
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
