// SPDX-License-Identifier: MIT
/// \file
/// Family base of the biases that look at content: mask(h, i, j) += a score of q(i), k(j) and the relative position.
///
/// The base checks shapes and positions and cuts masks into tiles; a module says what is added to a tile.
#pragma once

#include <string_view>
#include <utility>

#include "posbias/core/checked_positions.hpp"
#include "posbias/core/checks.hpp"
#include "posbias/core/module.hpp"
#include "posbias/core/tensor_copies.hpp"
#include "posbias/tile/mask_loop.hpp"

namespace posbias {

/// `Derived` supplies
///   - `static constexpr std::string_view name`, and `head_dim_option`, what it calls the features of a head;
///   - `Index n_heads() const`, `Index head_dim() const`;
///   - `static constexpr bool integers_only`, if positions must be integers;
///   - `static constexpr bool depends_on_keys`: whether k has a gradient;
///   - `using Prepared`, and `Prepared prepared(const View& q, const View& k, CheckedPairPositions, const Executor&) const`: the bias
///     at given positions, ready for tiles (see `Module::prepare`); it may refer to the module and to the tensors, and keep
///     the executor.
template <class Derived, class Scalar_, class Parameters = NoParameters>
class ContentBias : public Module<Derived, Parameters> {
  using Base = Module<Derived, Parameters>;

 public:
  using Scalar = Scalar_;  ///< of its tensors and parameters
  using typename Base::Gradients;
  static_assert(detail::is_float_or_double<Scalar>, "posbias: modules and tensors are of float or double");
  static constexpr bool integers_only = false;  ///< positions may be reals

  /// Adds the bias of q and k, as `mod_qkv` left them, to an additive mask (B, *, NH, L1, L2). Queries and keys without a
  /// position get none. Throws ShapeError, PositionError.
  template <WritableStoredTensorOf<Scalar, 3> M, StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K,
            StoredTensorOf<Scalar, 3> V>
  void mod_mask(M&& mask, const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    plan_mod_mask(mask, q, k, v, at)();
  }

  /// Adjoint of `mod_mask`: grad_mask passes through, what q and k contributed is added to grad_q and grad_k. Throws
  /// ShapeError, PositionError.
  template <StoredTensorOf<Scalar, 3> M, WritableStoredTensorOf<Scalar, 3> GQ, WritableStoredTensorOf<Scalar, 3> GK,
            HeadsTensor GV, StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, StoredTensorOf<Scalar, 3> V>
  void mod_mask_backward(const M& grad_mask, GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q, const K& k, const V& v,
                         const PairPositions& at, Gradients& grads) const {
    plan_mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, q, k, v, at, grads)();
  }

  /// The bias of the logits of q and k, ready for tiles. Refers to this module, to q, to k and to who runs the executor's
  /// tasks, and owns all else. Throws ShapeError, PositionError.
  template <StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K>
  [[nodiscard]] auto prepare(const Q& q, const K& k, const PairPositions& at = {}) const& {
    const detail::Hook hook = hook_of("prepare", at);
    const Inputs inputs = views(q, k, k);
    return derived().prepared(inputs.q, inputs.k,
                              locations(hook, check_queries(hook, inputs.q, inputs.k, inputs.v), at), at.executor);
  }
  template <HeadsTensor Q, HeadsTensor K>
  void prepare(const Q& q, const K& k, const PairPositions& at = {}) && = delete;
  template <class S, int Rank, int Layout, class I, HeadsTensor K>
  void prepare(const Eigen::Tensor<S, Rank, Layout, I>&& q, const K& k, const PairPositions& = {}) const& = delete;
  template <HeadsTensor Q, class S, int Rank, int Layout, class I>
  void prepare(const Q& q, const Eigen::Tensor<S, Rank, Layout, I>&& k, const PairPositions& = {}) const& = delete;

  /// `mod_mask`, checked, to be called (see `Module`).
  template <WritableStoredTensorOf<Scalar, 3> M, StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K,
            StoredTensorOf<Scalar, 3> V>
  [[nodiscard]] auto plan_mod_mask(M&& mask, const Q& q, const K& k, const V& v, const PairPositions& at = {}) const {
    const View to = detail::view<3>(mask);
    const Inputs inputs = views(q, k, v);
    return [this, to, inputs, where = checked_mod_mask(to, inputs, at), executor = at.executor] {
      add(to, inputs, where, executor);
    };
  }
  /// `mod_mask_backward`, checked, to be called.
  template <StoredTensorOf<Scalar, 3> M, WritableStoredTensorOf<Scalar, 3> GQ, WritableStoredTensorOf<Scalar, 3> GK,
            HeadsTensor GV, StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, StoredTensorOf<Scalar, 3> V>
  [[nodiscard]] auto plan_mod_mask_backward(const M& grad_mask, GQ&& grad_q, GK&& grad_k, GV&& grad_v, const Q& q,
                                            const K& k, const V& v, const PairPositions& at, Gradients& grads) const {
    const ConstView from = detail::view<3>(grad_mask);
    const View to_q = detail::view<3>(grad_q), to_k = detail::view<3>(grad_k);
    const Inputs inputs = views(q, k, v);
    return [this, from, to_q, to_k, inputs,
            where = checked_backward(from, to_q, to_k, detail::view<3>(grad_v), inputs, at, grads),
            executor = at.executor, &grads] { backward(from, to_q, to_k, inputs, where, executor, grads); };
  }

 protected:
  using Base::Base;
  using Base::derived;
  using Base::hook_of;
  using View = detail::TensorView<Scalar, 3>;             ///< a mask, or q, k or v, to be written
  using ConstView = detail::TensorView<const Scalar, 3>;  ///< the same, to be read
  using Shape = detail::StridedShape<3>;                  ///< its sizes and strides
  using Inputs = detail::AttentionInputs<const Scalar>;   ///< views of q, k and v

  /// The tensors as views.
  template <class Q, class K, class V>
  [[nodiscard]] static Inputs views(const Q& q, const K& k, const V& v) {
    return {detail::view<3>(q), detail::view<3>(k), detail::view<3>(v)};
  }

  /// Throws ShapeError unless q, k and v are an attention of the module's heads and features.
  detail::AttentionShape check_queries(const detail::Hook& hook, const Shape& q, const Shape& k, const Shape& v) const;

 private:
  /// The hooks, past the tensors.
  void add(const View& mask, const Inputs& inputs, const CheckedPairPositions& where, const Executor& executor) const;
  void backward(const ConstView& grad_mask, const View& grad_q, const View& grad_k, const Inputs& inputs,
                const CheckedPairPositions& where, const Executor& executor, Gradients& grads) const;

  [[nodiscard]] CheckedPairPositions locations(const detail::Hook& hook, const detail::AttentionShape& shape,
                                               const PairPositions& at) const;
  [[nodiscard]] CheckedPairPositions checked(const detail::Hook& hook, std::string_view argument, const Shape& mask,
                                             const Inputs& inputs, const PairPositions& at) const;
  [[nodiscard]] CheckedPairPositions checked_mod_mask(const ConstView& mask, const Inputs& inputs,
                                                      const PairPositions& at) const;
  [[nodiscard]] CheckedPairPositions checked_backward(const ConstView& grad_mask, const ConstView& grad_q,
                                                      const ConstView& grad_k, const Shape& grad_v,
                                                      const Inputs& inputs, const PairPositions& at,
                                                      const Gradients& grads) const;
};

template <class Derived, class Scalar, class Parameters>
void ContentBias<Derived, Scalar, Parameters>::add(const View& mask, const Inputs& inputs,
                                                   const CheckedPairPositions& where, const Executor& executor) const {
  detail::add_to_mask(mask, derived().prepared(inputs.q, inputs.k, where, executor), executor);
}

template <class Derived, class Scalar, class Parameters>
void ContentBias<Derived, Scalar, Parameters>::backward(const ConstView& grad_mask, const View& grad_q,
                                                        const View& grad_k, const Inputs& inputs,
                                                        const CheckedPairPositions& where, const Executor& executor,
                                                        Gradients& grads) const {
  const auto prepared = derived().prepared(inputs.q, inputs.k, where, executor);
  detail::NativeCopies<Scalar> native;  // they are added to many times, and rounded once
  auto sums = prepared.accumulator(native(grad_q), Derived::depends_on_keys ? native(grad_k) : grad_k);
  detail::accumulate_mask(grad_mask, prepared, sums, executor);
  prepared.finish(sums, grads);
  native.write_back();
}

template <class Derived, class Scalar, class Parameters>
detail::AttentionShape ContentBias<Derived, Scalar, Parameters>::check_queries(const detail::Hook& hook, const Shape& q,
                                                                               const Shape& k, const Shape& v) const {
  const detail::AttentionShape shape = detail::attention_shape(hook, q, k, v);
  detail::check_heads(hook, "q", shape.heads, derived().n_heads());
  if (q.shape[2] != derived().head_dim())
    detail::fail<ShapeError>(hook, ": q has ", q.shape[2], " features per head; ", Derived::head_dim_option, " = ",
                             derived().head_dim());
  return shape;
}

template <class Derived, class Scalar, class Parameters>
CheckedPairPositions ContentBias<Derived, Scalar, Parameters>::locations(const detail::Hook& hook,
                                                                         const detail::AttentionShape& shape,
                                                                         const PairPositions& at) const {
  CheckedPairPositions result(hook, at, shape.leading, shape.queries, shape.keys);
  if constexpr (Derived::integers_only) result.require_integers(hook, at);
  return result;
}

template <class Derived, class Scalar, class Parameters>
CheckedPairPositions ContentBias<Derived, Scalar, Parameters>::checked(const detail::Hook& hook,
                                                                       std::string_view argument, const Shape& mask,
                                                                       const Inputs& inputs,
                                                                       const PairPositions& at) const {
  const detail::AttentionShape shape = check_queries(hook, inputs.q, inputs.k, inputs.v);
  detail::check_mask_fits(hook, argument, mask, inputs.q, inputs.k, inputs.v);
  return locations(hook, shape, at);
}

template <class Derived, class Scalar, class Parameters>
CheckedPairPositions ContentBias<Derived, Scalar, Parameters>::checked_mod_mask(const ConstView& mask,
                                                                                const Inputs& inputs,
                                                                                const PairPositions& at) const {
  const detail::Hook hook = hook_of("mod_mask", at);
  CheckedPairPositions result = checked(hook, "mask", mask, inputs, at);
  detail::check_apart(hook, {"mask", mask}, {{"q", inputs.q}, {"k", inputs.k}, {"v", inputs.v}});
  return result;
}

template <class Derived, class Scalar, class Parameters>
CheckedPairPositions ContentBias<Derived, Scalar, Parameters>::checked_backward(
    const ConstView& grad_mask, const ConstView& grad_q, const ConstView& grad_k, const Shape& grad_v,
    const Inputs& inputs, const PairPositions& at, const Gradients& grads) const {
  const detail::Hook hook = hook_of("mod_mask_backward", at);
  CheckedPairPositions result = checked(hook, "grad_mask", grad_mask, inputs, at);
  detail::check_gradient_shapes(hook, grad_q, grad_k, grad_v, inputs.q, inputs.k, inputs.v);
  this->check_gradients("mod_mask_backward", grads);
  detail::check_apart(hook, {"grad_q", grad_q}, {{"grad_mask", grad_mask}, {"q", inputs.q}, {"k", inputs.k}});
  if constexpr (Derived::depends_on_keys) {
    detail::check_apart(hook, {"grad_k", grad_k}, {{"grad_mask", grad_mask}, {"q", inputs.q}, {"k", inputs.k}});
    if (!detail::same_tensor(grad_q, grad_k)) detail::check_apart(hook, {"grad_q", grad_q}, {{"grad_k", grad_k}});
  }
  return result;
}

}  // namespace posbias
