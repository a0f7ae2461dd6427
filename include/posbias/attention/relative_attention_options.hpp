// SPDX-License-Identifier: MIT
/// \file
/// What RelativeAttention is made with.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

#include "posbias/core/attention_terms.hpp"
#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"

namespace posbias {

/// Options of `RelativeAttention`. A size of 0 takes its default.
struct RelativeAttentionOptions {
  Index size = 0;                    ///< features of what is pooled, and the default of other sizes; required
  Index n_heads = 0;                 ///< heads that are pooled; required
  Index query_size = 0;              ///< features of queries; default size
  Index key_size = 0;                ///< features of keys; default size
  Index value_size = 0;              ///< features of values; default key_size
  Index head_size = 0;               ///< features of a head, H; default key_size / n_heads
  Index n_positions = 0;             ///< rows of the table of relative positions; default none
  Index position_size = 0;           ///< features of the table; default size
  double dropout_p = 0;              ///< probability that an attention weight is dropped, in calls with a seed
  bool same_key_query_proj = false;  ///< queries are projected as keys are, content and positions
  bool same_positional_key_query_proj = false;  ///< positions are projected to queries as to keys
  Index n_coordinates = 1;                      ///< coordinates of a position
  bool head_bias = true;                        ///< learn a number for each head to add to its logits
  bool do_pooling = true;                       ///< there are values
  AttentionTerms mode = {c2c, p2c, c2p};        ///< the terms; those with positions only where they are given
  Index n_additional_heads = 0;                 ///< heads that have logits only
  bool learn_position_embedding = true;         ///< otherwise the gradient of the table is 0
};

namespace detail {

/// The options with defaults filled in. Throws OptionError, naming `layer`.
inline RelativeAttentionOptions completed(std::string_view layer, RelativeAttentionOptions o) {
  const auto reject_option = [&](const auto&... parts) { fail<OptionError>(layer, ": ", parts...); };
  const auto require = [&](std::string_view option, Index value, Index least) {
    constexpr Index most = (std::numeric_limits<std::int32_t>::max)();  // so that no product of two overflows
    if (value < least) reject_option(option, " = ", value, "; it must be at least ", least);
    if (value > most) reject_option(option, " = ", value, "; it must be at most ", most);
  };
  const auto fill = [&](std::string_view option, Index& value, Index otherwise) {
    require(option, value, 0);
    if (value == 0) value = otherwise;
  };
  const auto divides = [&](std::string_view divisor, Index by, std::string_view option, Index value) {
    if (value % by != 0) reject_option(option, " = ", value, "; it must be a multiple of ", divisor, " = ", by);
  };
  require("size", o.size, 1);
  require("n_heads", o.n_heads, 1);
  require("n_additional_heads", o.n_additional_heads, 0);
  require("n_coordinates", o.n_coordinates, 1);
  require("n_positions", o.n_positions, 0);
  fill("query_size", o.query_size, o.size);
  fill("key_size", o.key_size, o.size);
  fill("value_size", o.value_size, o.key_size);
  if (o.head_size == 0) divides("n_heads", o.n_heads, "key_size", o.key_size);
  fill("head_size", o.head_size, o.key_size / o.n_heads);
  if (o.do_pooling) divides("n_heads", o.n_heads, "size", o.size);
  if (o.same_key_query_proj && o.query_size != o.key_size)
    reject_option("same_key_query_proj needs query_size = key_size; they are ", o.query_size, " and ", o.key_size);
  if (o.n_positions == 0) {
    if (o.position_size != 0)
      reject_option("position_size = ", o.position_size, "; there is no table: n_positions = 0");
    if (!o.mode.contains(c2c)) reject_option("mode has no term that can be computed: no c2c, and n_positions = 0");
  } else {
    if (!o.mode.contains(c2c) && !o.mode.contains(c2p) && !o.mode.contains(p2c)) reject_option("mode has no term");
    fill("position_size", o.position_size, o.size);
    divides("n_coordinates", o.n_coordinates, "position_size", o.position_size);
    divides("n_coordinates", o.n_coordinates, "head_size", o.head_size);
  }
  if (!(o.dropout_p >= 0 && o.dropout_p < 1))
    reject_option("dropout_p = ", o.dropout_p, "; it must be at least 0 and below 1");
  return o;
}

}  // namespace detail
}  // namespace posbias
