// SPDX-License-Identifier: MIT
/// \file
/// A call of RelativeAttention, as it is made and as it is checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/attention/relative_attention_options.hpp"
#include "posbias/attention/relative_attention_parameters.hpp"
#include "posbias/attention/relative_index.hpp"
#include "posbias/core/attention_terms.hpp"
#include "posbias/core/error.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/optional_tensor.hpp"
#include "posbias/core/positions.hpp"
#include "posbias/core/tensor_view.hpp"
#include "posbias/kernel/dropout.hpp"

namespace posbias {

/// What a call of `RelativeAttention` may be given beside content. Tensors are borrowed and must outlive it, unless they
/// are temporaries or moved in, which it keeps.
struct RelativeAttentionCall {
  /// True where a query may attend: (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, n_heads). Masked keys have logits of
  /// -10000 in the softmax, so that a query whose keys are all masked attends to all alike; logits are returned as they
  /// were before. Here and below B, *, L1 and heads may be 1 for all. Default: all true.
  OptionalTensor<bool> mask{};
  /// Relative positions, or else the positions of queries and keys for each coordinate; tokens without a position have no
  /// positional terms. Default: none, and no positional terms at all.
  RelativePositions relative_positions{};
  /// Where queries and keys are in each coordinate, in the place of relative positions.
  std::vector<PairPositions> positions{};
  /// True where a pair has no positional terms.
  PairFlags no_position_mask{};
  /// Numbers to add to logits: (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, heads). Their gradient is that of the logits,
  /// to be summed where one stands for many.
  OptionalTensor<float, double, Eigen::bfloat16, Eigen::half> base_attn{};
  /// Of dropout: the same seed drops the weights at the same places, in backward too, and in another layer. 0, for
  /// inference, drops none.
  std::uint64_t seed = 0;
  Executor executor{};  ///< who runs the tasks; default that of `positions`
};

namespace detail {

/// One call, checked.
template <class Scalar>
struct RelativeAttentionViews {
  const RelativeAttentionParameters<Scalar>& parameters;
  Index heads, additional_heads;  // all, and those of them that are not pooled
  bool c2c, c2p, p2c;             // the terms of this call
  TensorView<const Scalar, 2> queries, keys;
  std::optional<TensorView<const Scalar, 2>> values;  // none: nothing is pooled
  Dropout dropout;
  Executor executor;
  std::optional<RelativeIndex> index{};                                      // if c2p or p2c
  OptionalView<3, bool> mask{};                                              // (L1, L2, pooled heads)
  OptionalView<3, float, double, Eigen::bfloat16, Eigen::half> base_attn{};  // (L1, L2, heads)

  [[nodiscard]] Index head_size() const { return parameters.key.outputs() / heads; }
  [[nodiscard]] Index pooled_heads() const { return heads - additional_heads; }
  [[nodiscard]] bool pools(Index head) const { return values && head >= additional_heads; }
  /// Whether a pair may be hidden, and so have a weight of 0 beside whatever is in memory.
  [[nodiscard]] bool hides() const { return mask.given() || base_attn.given(); }
  /// Features of a head of the values, if there are any.
  [[nodiscard]] Index value_size() const { return values ? parameters.value->outputs() / pooled_heads() : 0; }
  [[nodiscard]] Index coordinates() const { return index ? parameters.table->key.groups() : 0; }
};

/// Fits the mask and base_attn of a call.
template <class Scalar>
void fit_logits(const Hook& hook, const RelativeAttentionCall& call, RelativeAttentionViews<Scalar>& views) {
  const Leading& leading = views.queries.leading;
  const Index L1 = views.queries.shape[0], L2 = views.keys.shape[0];
  const auto fit = [&](std::string_view argument, auto from, Index of_heads, auto& to) {
    UntypedView<0>& entries = from.entries;
    const Leading given = entries.leading;
    if (given.rank == leading.rank + 1) insert_dimension(entries, leading.rank);                // (L2): any query
    if (entries.leading.rank == leading.rank + 2) insert_dimension(entries, leading.rank + 2);  // any head
    to.entries.leading = leading;
    to.entries.shape = {L1, L2, of_heads};
    if (!broadcast(from, {true, false, true}, to))
      fail<ShapeError>(hook, ": ", argument, " has shape ", given.shape(),
                       "; (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, heads) is needed, with B, * = ", leading.shape(),
                       ", L1 = ", L1, ", L2 = ", L2, ", heads = ", of_heads);
  };
  fit("mask", call.mask.view(), views.pooled_heads(), views.mask);
  fit("base_attn", call.base_attn.view(), views.heads, views.base_attn);
}

/// Throws ShapeError, OptionError, PositionError, naming `hook`.
template <class Scalar>
RelativeAttentionViews<Scalar> checked_call(const Hook& hook, const RelativeAttentionOptions& options,
                                            const RelativeAttentionParameters<Scalar>& parameters,
                                            const RelativeAttentionCall& call,
                                            const TensorView<const Scalar, 2>& queries,
                                            const TensorView<const Scalar, 2>& keys,
                                            const std::optional<TensorView<const Scalar, 2>>& values) {
  using Tokens = TensorView<const Scalar, 2>;
  const auto reject = [&](const auto&... parts) { fail<OptionError>(hook, ": ", parts...); };
  const auto check_tokens = [&](std::string_view argument, const Tokens& tokens, std::string_view option, Index size) {
    if (tokens.leading != queries.leading || tokens.shape[1] != size)
      fail<ShapeError>(hook, ": ", argument, " has shape ", tokens.whole_shape().shape(), "; (B, *, L, ", option,
                       ") is needed, with B, * = ", queries.leading.shape(), ", ", option, " = ", size);
  };
  check_tokens("queries", queries, "query_size", options.query_size);
  check_tokens("keys", keys, "key_size", options.key_size);
  if (values) {
    if (!options.do_pooling) reject("values are given; do_pooling = false");
    check_tokens("values", *values, "value_size", options.value_size);
    if (values->shape[0] != keys.shape[0])
      fail<ShapeError>(hook, ": values has ", values->shape[0], " tokens; keys has ", keys.shape[0]);
  }
  if (call.relative_positions.given() && !call.positions.empty())
    fail<PositionError>(hook, ": relative_positions and positions are both given; give one");
  const bool located = call.relative_positions.given() || !call.positions.empty();
  if (located && !parameters.table) reject("relative positions are given; there is no table: n_positions = 0");
  if (!located && !options.mode.contains(c2c))
    reject("no relative positions are given; mode has no term that can do without");

  RelativeAttentionViews<Scalar> views{.parameters = parameters,
                                       .heads = options.n_additional_heads + options.n_heads,
                                       .additional_heads = options.n_additional_heads,
                                       .c2c = options.mode.contains(c2c),
                                       .c2p = located && options.mode.contains(c2p),
                                       .p2c = located && options.mode.contains(p2c),
                                       .queries = queries,
                                       .keys = keys,
                                       .values = values,
                                       .dropout = Dropout(options.dropout_p, call.seed),
                                       .executor = call.executor};
  for (const PairPositions& at : call.positions)
    if (views.executor.serial()) views.executor = at.executor;
  const auto disabled = fit_pairs(hook, call.no_position_mask, queries.leading, queries.shape[0], keys.shape[0]);
  if (located) {
    RelativeIndex index(hook, call.relative_positions, call.positions, disabled,
                        {queries.leading, queries.shape[0], keys.shape[0], options.n_coordinates, options.n_positions});
    if (views.c2p || views.p2c) views.index = std::move(index);
  }
  fit_logits(hook, call, views);
  return views;
}

}  // namespace detail
}  // namespace posbias
