// SPDX-License-Identifier: MIT
/// \file
/// Family base of the biases that depend on the relative position only: mask(h, i, j) += b_h(pos_k(j) - pos_q(i)).
///
/// The base checks shapes and positions, cuts masks into tiles and gradients into heads, and leaves where each
/// value stands to `PreparedRelativeBias`; a module says what the values are.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/bias/logit_tile.hpp"
#include "posbias/bias/prepared_relative_bias.hpp"
#include "posbias/core/module.hpp"

namespace posbias {

/// `Derived` supplies
///   - `static constexpr std::string_view name`, `Index n_heads() const`, `static constexpr bool integers_only`;
///   - `void evaluate(std::span<const double> relative, Index head, Index heads, Scalar* values) const`: the bias
///     (heads, relative.size()), row-major, of heads [head, head + heads) at key minus query positions;
///   - `void evaluate_backward(relative, head, heads, const double* grad_values, Gradients&) const`: its adjoint.
///
/// Both look at each relative position by itself, so a value does not depend on what it is evaluated with.
template <class Derived, class Scalar_, class Parameters>
class RelativeBias : public Module<Derived, Parameters> {
  using Base = Module<Derived, Parameters>;

 public:
  using Scalar = Scalar_;
  using typename Base::Gradients;
  using Prepared = PreparedRelativeBias<Derived>;
  static constexpr bool integers_only = false;

  /// Adds the bias to an additive mask (B, *, NH, L1, L2). Queries and keys without a position get none. Cost: one
  /// pass over the mask, and L1+L2-1 evaluations a head at consecutive positions; a few times as many at other
  /// integers, one for each pair at reals and at integers far apart. Throws ShapeError, PositionError.
  template <WritableTensorOf<Scalar, 3> M>
  void mod_mask(M&& mask, const PairPositions& at = {}) const {
    modify("mod_mask", detail::view<3>(mask), at);
  }

  /// The same; q, k and v are only checked to belong to the mask.
  template <WritableTensorOf<Scalar, 3> M, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  void mod_mask(M&& mask, const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    check_content("mod_mask", "mask", mask, q, k, v);
    modify("mod_mask", detail::view<3>(mask), at);
  }

  /// Adjoint of `mod_mask`: grad_mask passes through, the parameters' gradients are summed along diagonals. Without
  /// a table it runs on the calling thread. Throws ShapeError, PositionError.
  template <TensorOf<Scalar, 3> M>
  void mod_mask_backward(const M& grad_mask, const PairPositions& at, Gradients& grads) const {
    backward(detail::view<3>(grad_mask), at, grads);
  }

  /// The same; nothing is added to grad_q, grad_k and grad_v.
  template <TensorOf<Scalar, 3> M, HeadsTensor GQ, HeadsTensor GK, HeadsTensor GV, HeadsTensor Q, HeadsTensor K,
            HeadsTensor V>
  void mod_mask_backward(const M& grad_mask, GQ&&, GK&&, GV&&, const Q& q, const K& k, const V& v,
                         const PairPositions& at, Gradients& grads) const {
    check_content("mod_mask_backward", "grad_mask", grad_mask, q, k, v);
    backward(detail::view<3>(grad_mask), at, grads);
  }

  /// The bias alone: (NH, L1, L2), positions shared by a batch.
  [[nodiscard]] Eigen::Tensor<Scalar, 3, Eigen::RowMajor> bias(Index queries, Index keys,
                                                               const PairPositions& at = {}) const {
    check_lengths("bias", queries, keys);
    Eigen::Tensor<Scalar, 3, Eigen::RowMajor> result(derived().n_heads(), queries, keys);
    std::fill_n(result.data(), result.size(), Scalar(0));
    modify("bias", detail::view<3>(result), at);
    return result;
  }

  /// The distinct values at default positions: (NH, L1+L2-1), with bias(h, i, j) = diagonals(h, j - i + L1 - 1).
  [[nodiscard]] Eigen::Tensor<Scalar, 2, Eigen::RowMajor> diagonals(Index queries, Index keys) const {
    check_lengths("diagonals", queries, keys);
    const Index width = std::max<Index>(queries + keys - 1, 0);
    std::vector<double> relative(static_cast<std::size_t>(width));
    for (std::size_t d = 0; d < relative.size(); ++d)
      relative[d] = static_cast<double>(static_cast<Index>(d) - (queries - 1));
    Eigen::Tensor<Scalar, 2, Eigen::RowMajor> result(derived().n_heads(), width);
    derived().evaluate(relative, 0, derived().n_heads(), result.data());
    return result;
  }

  /// The bias of `queries` by `keys` logits in each batch entry of shape `leading` (B, *), ready for tiles. Refers
  /// to this module and owns all else. Throws ShapeError, PositionError.
  [[nodiscard]] Prepared prepare(std::span<const Index> leading, Index queries, Index keys,
                                 const PairPositions& at = {}) const& {
    check_lengths("prepare", queries, keys);
    return prepare("prepare", detail::Leading(leading), queries, keys, at);
  }
  Prepared prepare(std::span<const Index> leading, Index queries, Index keys, const PairPositions& at = {}) && = delete;

 protected:
  using Base::Base;
  using Base::derived;

 private:
  [[nodiscard]] Prepared prepare(std::string_view hook, const detail::Leading& leading, Index queries, Index keys,
                                 const PairPositions& at) const {
    PairLocations locations(Derived::name, hook, at, leading, queries, keys);
    if constexpr (Derived::integers_only) {
      locations.q.require_integers(Derived::name, hook, at.q_k.given() ? "q_k" : "q");
      locations.k.require_integers(Derived::name, hook, at.q_k.given() ? "q_k" : "k");
    }
    return Prepared(derived(), std::move(locations));
  }

  void modify(std::string_view hook, const detail::TensorView<Scalar, 3>& mask, const PairPositions& at) const {
    check_heads(hook, "mask", mask.shape[0]);
    const Prepared prepared = prepare(hook, mask.leading, mask.shape[1], mask.shape[2], at);
    constexpr Index queries_per_task = 64;
    const Index blocks = (mask.shape[1] + queries_per_task - 1) / queries_per_task;
    at.executor.parallel_for(mask.batches() * blocks, [&](Index task) {
      const Index query = task % blocks * queries_per_task;
      for_each_tile(mask, task / blocks, 0, mask.shape[0], query, std::min(queries_per_task, mask.shape[1] - query),
                    [&](const LogitTile<Scalar>& tile) { prepared.add_to(tile); });
    });
  }

  void backward(const detail::TensorView<const Scalar, 3>& grad_mask, const PairPositions& at, Gradients& grads) const {
    check_heads("mod_mask_backward", "grad_mask", grad_mask.shape[0]);
    this->check_gradients("mod_mask_backward", grads);
    const Prepared prepared =
        prepare("mod_mask_backward", grad_mask.leading, grad_mask.shape[1], grad_mask.shape[2], at);
    if (!this->has_parameters()) return;
    auto sums = prepared.accumulator();
    // Each head has its own part of the table; each sum runs over the batch in order, on one thread.
    const Index heads_per_task = prepared.tabulated() ? 1 : grad_mask.shape[0];
    at.executor.parallel_for(grad_mask.shape[0] / heads_per_task, [&](Index task) {
      for (Index n = 0; n < grad_mask.batches(); ++n)
        for_each_tile(grad_mask, n, task * heads_per_task, heads_per_task, 0, grad_mask.shape[1],
                      [&](const LogitTile<const Scalar>& tile) { prepared.accumulate(tile, sums); });
    });
    prepared.finish(sums, grads);
  }

  /// Cuts some heads and queries of a batch entry into tiles: whole rows where keys are neighbours in memory,
  /// narrow columns where they are far apart.
  template <class S, class Visit>
  static void for_each_tile(const detail::TensorView<S, 3>& logits, Index n, Index head, Index heads, Index query,
                            Index queries, const Visit& visit) {
    const auto [head_stride, query_stride, key_stride] = logits.strides;
    const Index all_keys = logits.shape[2];
    const Index keys_per_tile = key_stride > query_stride ? 8 : std::max<Index>(all_keys, 1);
    for (Index key = 0; key < all_keys; key += keys_per_tile)
      visit(LogitTile<S>{logits.batch(n) + head * head_stride + query * query_stride + key * key_stride, head_stride,
                         query_stride, key_stride, n, head, heads, query, queries, key,
                         std::min(keys_per_tile, all_keys - key)});
  }

  void check_heads(std::string_view hook, std::string_view argument, Index heads) const {
    if (heads != derived().n_heads())
      detail::fail<ShapeError>(Derived::name, "::", hook, ": ", argument, " has ", heads,
                               " heads; n_heads = ", derived().n_heads());
  }

  template <class M, class Q, class K, class V>
  static void check_content(std::string_view hook, std::string_view argument, const M& mask, const Q& q, const K& k,
                            const V& v) {
    const detail::AttentionShape shape = detail::attention_shape(Derived::name, hook, q, k, v);
    const auto logits = detail::view<3>(mask);
    if (!(shape == detail::AttentionShape{logits.leading, logits.shape[0], logits.shape[1], logits.shape[2]}))
      detail::fail<ShapeError>(Derived::name, "::", hook, ": ", argument, " has shape ", detail::shape_of(mask),
                               "; q of shape ", detail::shape_of(q), " and k of shape ", detail::shape_of(k),
                               " need (B, *, NH, L1, L2)");
  }

  void check_lengths(std::string_view function, Index queries, Index keys) const {
    const auto reject = [&](std::string_view why) {
      detail::fail<ShapeError>(Derived::name, "::", function, ": L1 = ", queries, ", L2 = ", keys, why);
    };
    if (queries < 0 || keys < 0) reject("; lengths must not be negative");
    constexpr double most = 0x1p60;  // values whose number still fits an Index, with room to add
    const auto size = [](Index length) { return static_cast<double>(std::max<Index>(length, 1)); };
    if (size(derived().n_heads()) * size(queries) * size(keys) > most) reject("; no tensor can be so large");
  }
};

}  // namespace posbias
