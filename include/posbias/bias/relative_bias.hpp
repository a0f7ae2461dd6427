// SPDX-License-Identifier: MIT
/// \file
/// Family base of the biases that depend on the relative position only: mask(h, i, j) += b_h(pos_k(j) - pos_q(i)).
///
/// The base checks shapes and positions. `TabulatedBias` maps each logit to its offset; the module computes the value of an
/// offset.
#pragma once

#include <algorithm>
#include <concepts>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/checked_positions.hpp"
#include "posbias/core/checks.hpp"
#include "posbias/core/module.hpp"
#include "posbias/tile/column_major_bias.hpp"
#include "posbias/tile/mask_loop.hpp"
#include "posbias/tile/tabulated_bias.hpp"

namespace posbias {

/// What a module of the family supplies to be added to logits.
template <class M, class Scalar>
concept RelativeBiasModule = requires(const M& m, std::span<const double> relative, Index head, Index heads,
                                      Scalar* values) {
  { m.n_heads() } -> std::convertible_to<Index>;
  m.evaluate(relative, head, heads, values);
};

/// `Derived` supplies
///   - `static constexpr std::string_view name`, `Index n_heads() const`, `static constexpr bool integers_only`;
///   - `void evaluate(std::span<const double> relative, Index head, Index heads, Scalar* values) const`: the bias
///     (heads, relative.size()), row-major, of heads [head, head + heads) at key minus query positions;
///   - `void evaluate_backward(relative, head, heads, const double* grad_values, Gradients&) const`: its adjoint;
///     both may take a `const Executor&` behind these, if there is work in them for several threads;
///   - `bool hides() const`, if the bias may be -inf, which hides a key: no other bias has to look for it.
///
/// Both look at each relative position by itself, so a value does not depend on what it is evaluated with.
template <class Derived, class Scalar_, class Parameters = NoParameters>
class RelativeBias : public Module<Derived, Parameters> {
  using Base = Module<Derived, Parameters>;

 public:
  using Scalar = Scalar_;  ///< of its tensors and parameters
  using typename Base::Gradients;
  static_assert(detail::is_float_or_double<Scalar>, "posbias: modules and tensors are of float or double");
  using Prepared = TabulatedBias<Derived>;      ///< what adds itself to tiles
  static constexpr bool integers_only = false;  ///< positions may be reals

  /// Whether the bias may be -inf.
  [[nodiscard]] bool hides() const { return false; }

  /// Adds the bias to an additive mask (B, *, NH, L1, L2). Queries and keys without a position get none. Cost: one
  /// pass over the mask, and one evaluation a head for each distinct relative position: L1+L2-1 at consecutive ones.
  /// Other than in a narrow range of integers they are found in a pass over all pairs, on the calling thread; where
  /// they are more than 4·(L1+L2), it is one evaluation a pair. Throws ShapeError, PositionError.
  template <WritableStoredTensorOf<Scalar, 3> M>
  void mod_mask(M&& mask, const PairPositions& at = {}) const {
    plan<Write::add>(hook_of("mod_mask", at), mask, at, {})();
  }

  /// The same; q, k and v are only checked to belong to the mask.
  template <WritableStoredTensorOf<Scalar, 3> M, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  void mod_mask(M&& mask, const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    plan_mod_mask(mask, q, k, v, at)();
  }

  /// `mod_mask`, checked, to be called (see `Module`); or, with `Write::assign`, in one pass what it makes of zeros: what is
  /// in the mask does not matter.
  template <Write how = Write::add, WritableStoredTensorOf<Scalar, 3> M, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
  [[nodiscard]] auto plan_mod_mask(M&& mask, const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    const detail::StridedShape<3> shapes[] = {detail::view<3>(q), detail::view<3>(k), detail::view<3>(v)};
    return plan<how>(hook_of("mod_mask", at), mask, at, shapes);
  }

  /// Adjoint of `mod_mask`: grad_mask passes through, the parameters' gradients are summed along diagonals. Without
  /// a table it runs on the calling thread. Throws ShapeError, PositionError.
  template <StoredTensorOf<Scalar, 3> M>
  void mod_mask_backward(const M& grad_mask, const PairPositions& at, Gradients& grads) const {
    plan_backward(grad_mask, at, grads, {})();
  }

  /// The same; nothing is added to grad_q, grad_k and grad_v.
  template <StoredTensorOf<Scalar, 3> M, HeadsTensor GQ, HeadsTensor GK, HeadsTensor GV, HeadsTensor Q, HeadsTensor K,
            HeadsTensor V>
  void mod_mask_backward(const M& grad_mask, GQ&&, GK&&, GV&&, const Q& q, const K& k, const V& v,
                         const PairPositions& at, Gradients& grads) const {
    plan_mod_mask_backward(grad_mask, q, k, v, q, k, v, at, grads)();
  }

  /// `mod_mask_backward`, checked, to be called.
  template <StoredTensorOf<Scalar, 3> M, HeadsTensor GQ, HeadsTensor GK, HeadsTensor GV, HeadsTensor Q, HeadsTensor K,
            HeadsTensor V>
  [[nodiscard]] auto plan_mod_mask_backward(const M& grad_mask, GQ&&, GK&&, GV&&, const Q& q, const K& k, const V& v,
                                            const PairPositions& at, Gradients& grads) const {
    const detail::StridedShape<3> shapes[] = {detail::view<3>(q), detail::view<3>(k), detail::view<3>(v)};
    return plan_backward(grad_mask, at, grads, shapes);
  }

  /// The bias alone: (NH, L1, L2), positions shared by a batch; `bias<Eigen::ColMajor>` in Eigen's default layout.
  template <int Layout = Eigen::RowMajor>
  [[nodiscard]] Eigen::Tensor<Scalar, 3, Layout> bias(Index queries, Index keys, const PairPositions& at = {}) const {
    check_lengths(hook_of("bias", at), queries, keys);
    Eigen::Tensor<Scalar, 3, Layout> result(derived().n_heads(), queries, keys);
    plan<Write::assign>(hook_of("bias", at), result, at, {})();
    return result;
  }

  /// The distinct values at default positions: (NH, L1+L2-1), with bias(h, i, j) = diagonals(h, j - i + L1 - 1); in
  /// either layout, as `bias`.
  template <int Layout = Eigen::RowMajor>
  [[nodiscard]] Eigen::Tensor<Scalar, 2, Layout> diagonals(Index queries, Index keys) const {
    check_lengths({Derived::name, "diagonals"}, queries, keys);
    const Index width = std::max<Index>(queries + keys - 1, 0);
    std::vector<double> relative(static_cast<std::size_t>(width));
    for (std::size_t d = 0; d < relative.size(); ++d)
      relative[d] = static_cast<double>(static_cast<Index>(d) - (queries - 1));
    Eigen::Tensor<Scalar, 2, Eigen::RowMajor> result(derived().n_heads(), width);
    evaluate_heads(relative, 0, derived().n_heads(), result.data());
    if constexpr (Layout == Eigen::RowMajor)
      return result;
    else
      return result.swap_layout().shuffle(Eigen::array<int, 2>{1, 0});
  }

  /// The bias of the logits of q and k, ready for tiles. Refers to this module and to who runs the executor's tasks,
  /// and owns all else. Throws ShapeError, PositionError.
  template <HeadsTensor Q, HeadsTensor K>
  [[nodiscard]] Prepared prepare(const Q& q, const K& k, const PairPositions& at = {}) const& {
    return prepared(detail::view<3>(q), detail::view<3>(k), at);
  }
  template <HeadsTensor Q, HeadsTensor K>
  Prepared prepare(const Q& q, const K& k, const PairPositions& at = {}) && = delete;

  /// The same, of `queries` by `keys` logits in each batch entry of shape `leading` (B, *).
  [[nodiscard]] Prepared prepare(std::span<const Index> leading, Index queries, Index keys,
                                 const PairPositions& at = {}) const& {
    const detail::Hook hook = hook_of("prepare", at);
    check_lengths(hook, queries, keys);
    return Prepared(derived(), locations(hook, detail::BatchShape(leading), queries, keys, at), at.executor);
  }
  Prepared prepare(std::span<const Index> leading, Index queries, Index keys, const PairPositions& at = {}) && = delete;

  /// `evaluate`, over the executor if the module takes one.
  void evaluate_heads(std::span<const double> relative, Index head, Index heads, Scalar* values,
                      const Executor& executor = {}) const {
    static_assert(RelativeBiasModule<Derived, Scalar>,
                  "posbias: a module of RelativeBias needs evaluate(relative, head, heads, values) const");
    if constexpr (requires { derived().evaluate(relative, head, heads, values, executor); })
      derived().evaluate(relative, head, heads, values, executor);
    else if constexpr (RelativeBiasModule<Derived, Scalar>)
      derived().evaluate(relative, head, heads, values);
  }
  /// Adjoint of `evaluate_heads`: adds to `grads`.
  void evaluate_heads_backward(std::span<const double> relative, Index head, Index heads, const double* grad_values,
                               Gradients& grads, const Executor& executor = {}) const {
    if constexpr (requires { derived().evaluate_backward(relative, head, heads, grad_values, grads, executor); })
      derived().evaluate_backward(relative, head, heads, grad_values, grads, executor);
    else
      derived().evaluate_backward(relative, head, heads, grad_values, grads);
  }

 protected:
  using Base::Base;
  using Base::derived;
  using Base::hook_of;

 private:
  void check_heads(const detail::Hook& hook, std::string_view argument, Index heads) const {
    detail::check_heads(hook, argument, heads, derived().n_heads());
  }

  [[nodiscard]] static CheckedPairPositions locations(const detail::Hook& hook, const detail::BatchShape& leading,
                                                      Index queries, Index keys, const PairPositions& at) {
    CheckedPairPositions result(hook, at, leading, queries, keys);
    if constexpr (Derived::integers_only) result.require_integers(hook, at);
    return result;
  }

  using View = detail::TensorView<Scalar, 3>;
  using ConstView = detail::TensorView<const Scalar, 3>;
  /// Of q, k and v, or none.
  using Shapes = std::span<const detail::StridedShape<3>>;

  /// Where the tokens of a mask are, or of its gradient; checks all that it is given with.
  template <class S>
  [[nodiscard]] CheckedPairPositions checked(const detail::Hook& hook, std::string_view argument,
                                             const detail::TensorView<S, 3>& mask, const PairPositions& at,
                                             Shapes qkv) const {
    if (!qkv.empty()) detail::check_mask_fits(hook, argument, mask, qkv[0], qkv[1], qkv[2]);
    check_heads(hook, argument, mask.shape[0]);
    if constexpr (!std::is_const_v<S>) detail::check_apart(hook, {argument, mask});
    return locations(hook, mask.leading, mask.shape[1], mask.shape[2], at);
  }
  [[nodiscard]] CheckedPairPositions checked_backward(const ConstView& grad_mask, const PairPositions& at,
                                                      const Gradients& grads, Shapes qkv) const {
    CheckedPairPositions result = checked(hook_of("mod_mask_backward", at), "grad_mask", grad_mask, at, qkv);
    this->check_gradients("mod_mask_backward", grads);
    return result;
  }

  template <Write how, class M>
  [[nodiscard]] auto plan(const detail::Hook& hook, M& mask, const PairPositions& at, Shapes qkv) const {
    const View view = detail::view<3>(mask);
    return [this, view, where = checked(hook, "mask", view, at, qkv), executor = at.executor] {
      modify<how>(view, where, executor);
    };
  }
  template <class M>
  [[nodiscard]] auto plan_backward(const M& grad_mask, const PairPositions& at, Gradients& grads, Shapes qkv) const {
    const ConstView view = detail::view<3>(grad_mask);
    return [this, view, where = checked_backward(view, at, grads, qkv), executor = at.executor, &grads] {
      backward(view, where, executor, grads);
    };
  }

  /// The hooks, past the tensors.
  template <Write how>
  void modify(const View& mask, const CheckedPairPositions& where, const Executor& executor) const;
  void backward(const ConstView& grad_mask, const CheckedPairPositions& where, const Executor& executor,
                Gradients& grads) const;
  [[nodiscard]] Prepared prepared(const detail::StridedShape<3>& q, const detail::StridedShape<3>& k,
                                  const PairPositions& at) const;

  /// Zeros come first where the bias does not write all.
  template <Write how>
  static void write(const View& mask, const auto& prepared, const Executor& executor) {
    if constexpr (how == Write::assign) {
      if (prepared.covers_all()) return detail::add_to_mask<how>(mask, prepared, executor);
      detail::fill_zero(mask);
    }
    detail::add_to_mask(mask, prepared, executor);
  }

  void check_lengths(const detail::Hook& function, Index queries, Index keys) const;
};

template <class Derived, class Scalar, class Parameters>
template <Write how>
void RelativeBias<Derived, Scalar, Parameters>::modify(const View& mask, const CheckedPairPositions& where,
                                                       const Executor& executor) const {
  if (detail::is_whole_column_major(mask)) {
    const detail::ColumnMajorBias<Derived> prepared(derived(), where, mask.batches(), executor);
    if (prepared.tabulated()) return write<how>(mask, prepared, executor);
  }
  write<how>(mask, Prepared(derived(), where, executor), executor);
}

template <class Derived, class Scalar, class Parameters>
void RelativeBias<Derived, Scalar, Parameters>::backward(const ConstView& grad_mask, const CheckedPairPositions& where,
                                                         const Executor& executor, Gradients& grads) const {
  if (!this->has_parameters()) return;
  const Prepared prepared(derived(), where, executor);
  auto sums = prepared.accumulator();
  bool accumulated = false;
  if (detail::is_whole_column_major(grad_mask)) {
    const detail::ColumnMajorBias<Derived> by_columns(derived(), where, grad_mask.batches(), executor);
    accumulated = by_columns.accumulates();
    if (accumulated) by_columns.accumulate(grad_mask, sums.sums, executor);
  }
  if (!accumulated) detail::accumulate_mask(grad_mask, prepared, sums, executor);
  prepared.finish(sums, grads);
}

template <class Derived, class Scalar, class Parameters>
auto RelativeBias<Derived, Scalar, Parameters>::prepared(const detail::StridedShape<3>& q,
                                                         const detail::StridedShape<3>& k,
                                                         const PairPositions& at) const -> Prepared {
  const detail::Hook hook = hook_of("prepare", at);
  const detail::AttentionShape shape = detail::attention_shape(hook, q, k, k);
  check_heads(hook, "q", shape.heads);
  return Prepared(derived(), locations(hook, shape.leading, shape.queries, shape.keys, at), at.executor);
}

template <class Derived, class Scalar, class Parameters>
void RelativeBias<Derived, Scalar, Parameters>::check_lengths(const detail::Hook& function, Index queries,
                                                              Index keys) const {
  const auto reject = [&](std::string_view why) {
    detail::fail<ShapeError>(function, ": L1 = ", queries, ", L2 = ", keys, why);
  };
  if (queries < 0 || keys < 0) reject("; lengths must not be negative");
  constexpr double most = 0x1p60;  // values whose number still fits an Index, with room to add
  const auto size = [](Index length) { return static_cast<double>(std::max<Index>(length, 1)); };
  if (size(derived().n_heads()) * size(queries) * size(keys) > most) reject("; no tensor can be so large");
}

}  // namespace posbias
