// SPDX-License-Identifier: MIT
/// \file
/// A whole attention layer that knows where its tokens are relative to each other, in one coordinate or several: words of
/// a text, boxes on a page. It is edspdf's RelativeAttention; the terms are those of DeBERTa (He et al., 2020, arXiv
/// 2006.03654).
///
///     q, k, v = linear maps of queries, keys and values           K, Q = maps of a table of relative positions
///     c2c = q_i·k_j        c2p = q_i·K[index(i, j)]        p2c = k_j·Q[index(i, j)]
///     logit(i, j) = (c2c + c2p + p2c) / sqrt(H · number of terms) + base_attn + bias
///     pooled(i) = sum over j of softmax(logit(i, ·))(j) · v_j
///
///     index = relative position, key minus query, + n_positions / 2, held within [0, n_positions)
///
/// With several coordinates each has its own index and its own features of a head, H / n_coordinates of them; their
/// products are summed.
///
/// Shapes: queries (B, *, L1, query_size), keys (B, *, L2, key_size), values (B, *, L2, value_size), pooled (B, *, L1,
/// size), logits (B, *, L1, L2, n_additional_heads + n_heads), additional heads first. Any layout. Queries and keys may be
/// one tensor, and so may their gradients, which are added to.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "posbias/core/checks.hpp"
#include "posbias/core/parameter_owner.hpp"
#include "posbias/core/tensor_copies.hpp"
#include "posbias/core/view.hpp"
#include "posbias/layers/relative_attention_call.hpp"
#include "posbias/layers/relative_attention_passes.hpp"

namespace posbias {

/// What `RelativeAttention` returns.
template <class Scalar, int Rank, int Layout>
struct RelativeAttentionResult {
  Eigen::Tensor<Scalar, Rank, Layout> pooled;      ///< (B, *, L1, size); nothing without values
  Eigen::Tensor<Scalar, Rank + 1, Layout> logits;  ///< (B, *, L1, L2, heads), before mask and softmax
};

/// The layer. Parameters: "position_embedding" (n_positions, position_size), starting normal; "position_key_proj.weight"
/// and "position_query_proj.weight" (n_coordinates, position_size / n_coordinates, heads·H / n_coordinates), uniform in
/// ±1/sqrt(inputs), and their ".bias" (n_coordinates, heads·H / n_coordinates), 0; "bias" (heads), 0;
/// "content_key_proj.weight" (heads·H, key_size), "content_query_proj.weight" (heads·H, query_size),
/// "content_value_proj.weight" (size, value_size) and their ".bias", uniform in ±1/sqrt(inputs). What is shared appears
/// once, under the name of the keys'.
template <class Scalar_>
class RelativeAttention : public ParameterOwner<RelativeAttention<Scalar_>, RelativeAttentionParameters<Scalar_>> {
  using Base = ParameterOwner<RelativeAttention, RelativeAttentionParameters<Scalar_>>;

 public:
  using Scalar = Scalar_;                    ///< of its tensors and parameters
  using Options = RelativeAttentionOptions;  ///< what it is made from
  using Call = RelativeAttentionCall;        ///< what a call may be given
  using typename Base::Gradients;
  static_assert(detail::is_float_or_double<Scalar>, "posbias: modules and tensors are of float or double");
  /// What a call returns: of the rank and layout of the queries.
  template <class Q>
  using Result = RelativeAttentionResult<detail::ScalarOf<Q>, detail::Traits<Q>::rank, detail::Traits<Q>::layout>;
  static constexpr std::string_view name = "RelativeAttention";  ///< in messages

  /// Throws OptionError.
  explicit RelativeAttention(const Options& options, std::uint64_t seed = 0);

  /// With defaults in the place of sizes that were 0.
  [[nodiscard]] const Options& options() const { return options_; }
  /// Additional heads and those that are pooled.
  [[nodiscard]] Index heads() const { return options_.n_additional_heads + options_.n_heads; }

  /// Gives the table its values: (n_positions, position_size). Throws ShapeError.
  template <StoredTensorOf<Scalar, 2> T>
  void set_position_embedding(const T& values) {
    const Index rows = options_.n_positions, columns = options_.position_size;
    const auto given = detail::view<0>(values).leading;
    if (given != detail::BatchShape(std::array{rows, columns}))
      detail::fail<ShapeError>(name, "::set_position_embedding: values has shape ", given.shape(),
                               "; n_positions = ", rows, ", position_size = ", columns);
    auto& table = this->parameters_.table;
    detail::for_each_row_major(values, [&](Index i, Scalar value) { table->embedding.data()[i] = value; });
  }

  /// Pooled values and logits, in the layout of the queries. Cost: the projections; 2·H multiplications and additions for
  /// each head and pair, and as many for each token and row of the table that it or its neighbours read, for queries and
  /// for keys; a look-up or two for each head, pair and coordinate. Memory: the rows that are read, projected, and for
  /// some batch entries at a time projected keys and values and the products of keys with these rows. Bitwise the same
  /// for any number of threads and, without dropout, which goes by the place in the call, for some of the queries or of
  /// the batch by themselves. Throws ShapeError, OptionError, PositionError.
  template <StoredTensorOf<Scalar, 2> Q, StoredTensorOf<Scalar, 2> K, StoredTensorOf<Scalar, 2> V>
  [[nodiscard]] Result<Q> operator()(const Q& queries, const K& keys, const V& values, const Call& call = {}) const {
    constexpr int rank = detail::Traits<Q>::rank;
    const Views views = checked("forward", call, rows(queries), rows(keys), rows(values));
    Result<Q> result{make<Q, rank>(pooled_shape(views)), make<Q, rank + 1>(logits_shape(views))};
    compute(views, rows(result.pooled), pairs(result.logits));
    return result;
  }

  /// Logits alone.
  template <StoredTensorOf<Scalar, 2> Q, StoredTensorOf<Scalar, 2> K>
  [[nodiscard]] auto operator()(const Q& queries, const K& keys, const Call& call = {}) const {
    const Views views = checked("forward", call, rows(queries), rows(keys));
    auto logits = make<Q, detail::Traits<Q>::rank + 1>(logits_shape(views));
    compute(views, {}, pairs(logits));
    return logits;
  }

  /// The same, written to tensors that are there.
  template <WritableStoredTensorOf<Scalar, 2> P, WritableStoredTensorOf<Scalar, 3> A, StoredTensorOf<Scalar, 2> Q,
            StoredTensorOf<Scalar, 2> K, StoredTensorOf<Scalar, 2> V>
  void forward(P&& pooled, A&& logits, const Q& queries, const K& keys, const V& values, const Call& call = {}) const {
    constexpr std::string_view hook = "forward";
    const Views views = checked(hook, call, rows(queries), rows(keys), rows(values));
    check_shape(hook, "pooled", rows(pooled), pooled_shape(views));
    check_shape(hook, "logits", pairs(logits), logits_shape(views));
    check_writable(
        hook, {"pooled", rows(pooled)}, call,
        {{"logits", pairs(logits)}, {"queries", views.queries}, {"keys", views.keys}, {"values", *views.values}});
    check_writable(hook, {"logits", pairs(logits)}, call,
                   {{"queries", views.queries}, {"keys", views.keys}, {"values", *views.values}});
    compute(views, rows(pooled), pairs(logits));
  }
  /// The same without values: logits only, which are written.
  template <WritableStoredTensorOf<Scalar, 3> A, StoredTensorOf<Scalar, 2> Q, StoredTensorOf<Scalar, 2> K>
  void forward(A&& logits, const Q& queries, const K& keys, const Call& call = {}) const {
    constexpr std::string_view hook = "forward";
    const Views views = checked(hook, call, rows(queries), rows(keys));
    check_shape(hook, "logits", pairs(logits), logits_shape(views));
    check_writable(hook, {"logits", pairs(logits)}, call, {{"queries", views.queries}, {"keys", views.keys}});
    compute(views, {}, pairs(logits));
  }

  /// Adjoint, where nothing but pooled was used. Adds to all gradients; the logits are those that forward returned, the
  /// rest is as forward was given it. Cost: 10·H multiplications and additions for each head and pair, and twice forward's
  /// for projections and the table. Memory: all projected content, and for each thread the keys of a head and their
  /// products with the table. Heads run in parallel. Bitwise the same for any number of threads. Throws as forward does.
  template <WritableStoredTensorOf<Scalar, 2> GQ, WritableStoredTensorOf<Scalar, 2> GK,
            WritableStoredTensorOf<Scalar, 2> GV, StoredTensorOf<Scalar, 2> GP, StoredTensorOf<Scalar, 3> A,
            StoredTensorOf<Scalar, 2> Q, StoredTensorOf<Scalar, 2> K, StoredTensorOf<Scalar, 2> V>
  void backward(GQ&& grad_queries, GK&& grad_keys, GV&& grad_values, const GP& grad_pooled, const A& logits,
                const Q& queries, const K& keys, const V& values, const Call& call, Gradients& grads) const {
    const Views views = checked("backward", call, rows(queries), rows(keys), rows(values));
    differentiate(views, call,
                  {.grad_pooled = rows(grad_pooled),
                   .logits = pairs(logits),
                   .queries = rows(grad_queries),
                   .keys = rows(grad_keys),
                   .values = rows(grad_values)},
                  grads);
  }

  /// The same, where the logits were used too: grad_logits becomes the gradient of what was added to logits, base_attn.
  template <WritableStoredTensorOf<Scalar, 2> GQ, WritableStoredTensorOf<Scalar, 2> GK,
            WritableStoredTensorOf<Scalar, 2> GV, StoredTensorOf<Scalar, 2> GP, WritableStoredTensorOf<Scalar, 3> GA,
            StoredTensorOf<Scalar, 3> A, StoredTensorOf<Scalar, 2> Q, StoredTensorOf<Scalar, 2> K,
            StoredTensorOf<Scalar, 2> V>
  void backward(GQ&& grad_queries, GK&& grad_keys, GV&& grad_values, const GP& grad_pooled, GA&& grad_logits,
                const A& logits, const Q& queries, const K& keys, const V& values, const Call& call,
                Gradients& grads) const {
    const Views views = checked("backward", call, rows(queries), rows(keys), rows(values));
    differentiate(views, call,
                  {.grad_pooled = rows(grad_pooled),
                   .logits = pairs(logits),
                   .grad_logits = pairs(grad_logits),
                   .grad_base = pairs(grad_logits),
                   .queries = rows(grad_queries),
                   .keys = rows(grad_keys),
                   .values = rows(grad_values)},
                  grads);
  }

  /// The same, where there were logits only. Their gradient is that of base_attn too.
  template <WritableStoredTensorOf<Scalar, 2> GQ, WritableStoredTensorOf<Scalar, 2> GK, StoredTensorOf<Scalar, 3> GA,
            StoredTensorOf<Scalar, 2> Q, StoredTensorOf<Scalar, 2> K>
  void backward(GQ&& grad_queries, GK&& grad_keys, const GA& grad_logits, const Q& queries, const K& keys,
                const Call& call, Gradients& grads) const {
    const Views views = checked("backward", call, rows(queries), rows(keys));
    differentiate(views, call,
                  {.grad_logits = pairs(grad_logits), .queries = rows(grad_queries), .keys = rows(grad_keys)}, grads);
  }

 private:
  using Views = detail::RelativeAttentionViews<Scalar>;
  using Tokens = detail::TensorView<const Scalar, 2>;
  using Shape = detail::BatchShape;

  /// A tensor as (B, *, tokens, features), or as (B, *, L1, L2, heads).
  template <class T>
  static auto rows(T&& tensor) {
    return detail::view<2>(tensor);
  }
  template <class T>
  static auto pairs(T&& tensor) {
    return detail::view<3>(tensor);
  }

  template <class Q, int Rank>
  static Eigen::Tensor<detail::ScalarOf<Q>, Rank, detail::Traits<Q>::layout> make(const Shape& shape) {
    Eigen::array<Index, static_cast<std::size_t>(Rank)> sizes;
    std::ranges::copy(shape.shape(), sizes.begin());
    return Eigen::Tensor<detail::ScalarOf<Q>, Rank, detail::Traits<Q>::layout>(sizes);
  }

  [[nodiscard]] static Shape with(Shape shape, std::initializer_list<Index> sizes) {
    for (const Index size : sizes) shape.sizes[shape.rank++] = size;
    return shape;
  }
  [[nodiscard]] Shape pooled_shape(const Views& views) const {
    return with(views.queries.leading, {views.queries.shape[0], options_.size});
  }
  [[nodiscard]] Shape logits_shape(const Views& views) const {
    return with(views.queries.leading, {views.queries.shape[0], views.keys.shape[0], heads()});
  }

  template <class View>
  static void check_shape(std::string_view hook, std::string_view argument, const View& view, const Shape& wanted) {
    if (const Shape given = view.whole_shape(); given != wanted)
      detail::fail<ShapeError>(name, "::", hook, ": ", argument, " has shape ", given.shape(), "; it needs ",
                               wanted.shape());
  }

  static void check_writable(std::string_view hook, const detail::NamedRegion& written, const Call& call,
                             std::initializer_list<detail::NamedRegion> others) {
    detail::check_apart({name, hook}, written,
                        {{"mask", call.mask},
                         {"relative_positions", call.relative_positions},
                         {"no_position_mask", call.no_position_mask},
                         {"base_attn", call.base_attn}});
    detail::check_apart({name, hook}, written, others);
  }

  [[nodiscard]] Views checked(std::string_view hook, const Call& call, const Tokens& queries, const Tokens& keys,
                              const std::optional<Tokens>& values = {}) const;

  /// Whether there is a query with a key. If not, there may be no memory to point to either.
  [[nodiscard]] bool any_pair(const Views& views) const { return logits_shape(views).count() > 0; }

  /// Writes logits and, if there are values, pooled, which are zeros without keys.
  void compute(const Views& views, const detail::TensorView<Scalar, 2>& pooled,
               const detail::TensorView<Scalar, 3>& logits) const;

  void differentiate(const Views& views, const Call& call,
                     const detail::RelativeAttentionGradientViews<Scalar>& gradients, Gradients& grads) const;

  Options options_;
};

namespace detail {

/// A call with the tensors that it reads in the layer's scalar.
template <class Scalar>
RelativeAttentionViews<Scalar> native_inputs(const RelativeAttentionViews<Scalar>& views,
                                             NativeCopies<Scalar>& native) {
  RelativeAttentionViews<Scalar> inputs = views;
  inputs.queries = native(views.queries);
  inputs.keys = native(views.keys);
  inputs.values = native(views.values);
  return inputs;
}

}  // namespace detail

template <class Scalar>
RelativeAttention<Scalar>::RelativeAttention(const Options& options, std::uint64_t seed)
    : options_(detail::completed(name, options)) {
  auto& parameters = this->parameters_;
  detail::Random random(seed);
  const Index outputs = heads() * options_.head_size;
  parameters.key.start(options_.key_size, outputs, random);
  if (!options_.same_key_query_proj) parameters.query.emplace().start(options_.query_size, outputs, random);
  if (options_.do_pooling) parameters.value.emplace().start(options_.value_size, options_.size, random);
  if (options_.head_bias) std::fill_n(parameters.bias.emplace(heads()).data(), heads(), Scalar(0));
  if (options_.n_positions > 0) {
    const bool same = options_.same_key_query_proj || options_.same_positional_key_query_proj;
    auto& table = parameters.table.emplace();
    table.start({options_.n_positions, options_.position_size, options_.n_coordinates, outputs, same}, random);
    table.learn_embedding = options_.learn_position_embedding;
  }
}

template <class Scalar>
auto RelativeAttention<Scalar>::checked(std::string_view hook, const Call& call, const Tokens& queries,
                                        const Tokens& keys, const std::optional<Tokens>& values) const -> Views {
  return detail::checked_call({name, hook}, options_, this->parameters_, call, queries, keys, values);
}

template <class Scalar>
void RelativeAttention<Scalar>::compute(const Views& views, const detail::TensorView<Scalar, 2>& pooled,
                                        const detail::TensorView<Scalar, 3>& logits) const {
  if (!any_pair(views)) {
    if (views.values) detail::fill_zero(pooled);
    return;
  }
  detail::NativeCopies<Scalar> native;
  const Views inputs = detail::native_inputs(views, native);
  detail::RelativeAttentionForward<Scalar>(inputs, native(pooled), native(logits)).run();
  native.write_back();
}

template <class Scalar>
void RelativeAttention<Scalar>::differentiate(const Views& views, const Call& call,
                                              const detail::RelativeAttentionGradientViews<Scalar>& gradients,
                                              Gradients& grads) const {
  constexpr std::string_view hook = "backward";
  this->check_gradients(hook, grads);
  const auto check = [&](std::string_view argument, const auto& view, const Shape& wanted) {
    if (view) check_shape(hook, argument, *view, wanted);
  };
  check("grad_queries", &gradients.queries, views.queries.whole_shape());
  check("grad_keys", &gradients.keys, views.keys.whole_shape());
  if (views.values) check("grad_values", gradients.values, views.values->whole_shape());
  check("grad_pooled", gradients.grad_pooled, pooled_shape(views));
  check("grad_logits", gradients.grad_logits, logits_shape(views));
  check("logits", gradients.logits, logits_shape(views));
  const auto check_apart_from_inputs = [&](const detail::NamedRegion& written) {
    const auto apart_from = [&](std::string_view of_other, const auto& other) {
      if (other) check_writable(hook, written, call, {{of_other, *other}});
    };
    check_writable(hook, written, call, {{"queries", views.queries}, {"keys", views.keys}});
    apart_from("values", views.values);
    apart_from("grad_pooled", gradients.grad_pooled);
    apart_from("logits", gradients.logits);
  };
  const auto check_gradient_apart = [&](const detail::NamedRegion& written) {
    check_apart_from_inputs(written);
    if (gradients.grad_logits) check_writable(hook, written, call, {{"grad_logits", *gradients.grad_logits}});
  };
  check_gradient_apart({"grad_queries", gradients.queries});
  check_gradient_apart({"grad_keys", gradients.keys});
  if (gradients.values) check_gradient_apart({"grad_values", *gradients.values});
  if (gradients.grad_base) check_apart_from_inputs({"grad_logits", *gradients.grad_base});
  const auto check_one_or_apart = [&](std::string_view argument, const auto& written, std::string_view of_other,
                                      const auto& other) {
    if (!detail::same_tensor(written, other))
      detail::check_apart({name, hook}, {argument, written}, {{of_other, other}});
  };
  check_one_or_apart("grad_queries", gradients.queries, "grad_keys", gradients.keys);
  if (gradients.values) {
    check_one_or_apart("grad_queries", gradients.queries, "grad_values", *gradients.values);
    check_one_or_apart("grad_keys", gradients.keys, "grad_values", *gradients.values);
  }
  if (!any_pair(views)) return;
  detail::NativeCopies<Scalar> native;
  const Views inputs = detail::native_inputs(views, native);
  detail::RelativeAttentionBackward<Scalar>(inputs, {.grad_pooled = native(gradients.grad_pooled),
                                                     .logits = native(gradients.logits),
                                                     .grad_logits = native(gradients.grad_logits),
                                                     .grad_base = native(gradients.grad_base),
                                                     .queries = native(gradients.queries),
                                                     .keys = native(gradients.keys),
                                                     .values = native(gradients.values)})
      .run(grads);
  native.write_back();
}

}  // namespace posbias
