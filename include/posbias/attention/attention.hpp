// SPDX-License-Identifier: MIT
/// \file
/// Scaled dot-product attention with any module, forward and backward, that never holds L1×L2 logits.
///
///     q', k', v' = module.mod_qkv(q, k, v)
///     out = softmax(scale · q'·k'ᵀ + module's bias + mask) · v'
///
/// Exact: the softmax of all keys, found tile by tile (Dao et al., 2022, arXiv 2205.14135), and the same bias that
/// `mod_mask` adds. Shapes: q and grad_q (B, *, L1, NH, H), k (B, *, L2, NHk, H), v (B, *, L2, NHk, Hv), out and grad_out
/// (B, *, L1, NH, Hv), log_sum_exp (B, *, NH, L1), with NHk = NH or a divisor of it: head h of the queries then reads
/// head h / (NH / NHk) of the keys. Any layout.
///
/// q, k and v are as projected. Where keys come from a cache that `mod_qkv` has modified, call `mod_qkv` for the new
/// tokens and give attention a module without it: `Identity`, or the bias alone.
#pragma once

#include <concepts>
#include <type_traits>

#include "posbias/attention/attention_call.hpp"
#include "posbias/attention/gradients.hpp"
#include "posbias/core/module.hpp"
#include "posbias/core/tensor_copies.hpp"
#include "posbias/tile/logit_term.hpp"

namespace posbias {

/// A module that attention can use for tensors of `Scalar`.
template <class M, class Scalar>
concept AttentionModule = PositionalModule<M, Scalar> &&
    requires(const M& m, const Eigen::Tensor<Scalar, 4, Eigen::RowMajor>& t, const PairPositions& at) {
  { m.prepare(t, t, at).accumulates() } -> std::convertible_to<bool>;
};

namespace detail {

/// The scalar that computes with a tensor's elements.
template <class Q>
using ComputedOf = Computed<ScalarOf<Q>>;

/// A tensor for an attention of Q.
template <class T, class Q, int MinRank = 3>
concept Like = StoredTensorOf<T, ComputedOf<Q>, MinRank>;
template <class T, class Q, int MinRank = 3>
concept WritableLike = WritableStoredTensorOf<T, ComputedOf<Q>, MinRank>;

/// A map of a copy, or the tensor itself.
template <bool copied, class T>
decltype(auto) copied_if(const T& tensor, TensorCopies& copies) {
  if constexpr (copied)
    return copies(tensor);
  else
    return (tensor);
}

/// Calls `use(q, k, v)` with the tensors as the module's `mod_qkv` makes them: copies of those that it changes.
template <class M, class Q, class K, class V, class Use>
void with_modified(const M& module, const Q& q, const K& k, const V& v, const PairPositions& at, const Use& use) {
  constexpr QKVChanges changes = changes_of<M>;
  TensorCopies q_copies, k_copies, v_copies;  // apart, even if q, k and v are one tensor
  decltype(auto) q_modified = copied_if<changes.q>(q, q_copies);
  decltype(auto) k_modified = copied_if<changes.k>(k, k_copies);
  decltype(auto) v_modified = copied_if<changes.v>(v, v_copies);
  module.mod_qkv(q_modified, k_modified, v_modified, at);
  use(q_modified, k_modified, v_modified);
}

/// `log_sum_exp` is null if it is not wanted.
template <class Out, class Q, class K, class V, class M, class Scalar = ComputedOf<Q>>
void attend(Out& out, const Q& q, const K& k, const V& v, const M& module, const AttentionOptions& options,
            const TensorView<Scalar, 2>* log_sum_exp = nullptr) {
  AttentionResults<Scalar> results{.out = view<3>(out)};
  const AttentionCall<Scalar> call({view<3>(q), view<3>(k), view<3>(v)}, options, results.out, log_sum_exp);
  if (log_sum_exp != nullptr) results.log_sum_exp = *log_sum_exp;
  with_modified(module, q, k, v, call.at(), [&](const auto& q_, const auto& k_, const auto& v_) {
    // A TabulatedBias, say, of RelativeBias::prepare: the module is evaluated here, tiles only read what it said.
    const auto prepared = module.prepare(q_, k_, call.at());
    const PreparedTerm<Scalar, std::remove_const_t<decltype(prepared)>> term(prepared);
    call.forward({view<3>(q_), view<3>(k_), view<3>(v_)}, term, results);
  });
}

/// Writes to grad_q, grad_k and grad_v, which stand for the tensors `to` of the call. `log_sum_exp` is null if it is still to
/// be found.
template <class GQ, class GK, class GV, class GO, class Out, class Q, class K, class V, class M,
          class Scalar = ComputedOf<Q>>
void attend_backward(const AttentionInputs<std::type_identity_t<Scalar>>& to, GQ& grad_q, GK& grad_k, GV& grad_v,
                     const GO& grad_out, const Out& out, const Q& q, const K& k, const V& v, const M& module,
                     const AttentionOptions& options, typename M::Gradients& grads,
                     const TensorView<const Scalar, 2>* log_sum_exp = nullptr) {
  BackwardViews<Scalar> gradients{.grad_out = view<3>(grad_out), .out = view<3>(out)};
  const AttentionCall<Scalar> call({view<3>(q), view<3>(k), view<3>(v)}, options, to, gradients.grad_out, gradients.out,
                                   log_sum_exp);
  if (log_sum_exp != nullptr) gradients.m = *log_sum_exp;
  if constexpr (DerivesFromModule<M>) module.check_gradients({"attention_backward", "posbias"}, grads);

  with_modified(module, q, k, v, call.at(), [&](const auto& q_, const auto& k_, const auto& v_) {
    const auto prepared = module.prepare(q_, k_, call.at());
    const PreparedTerm<Scalar, std::remove_const_t<decltype(prepared)>> term(prepared);
    fill_zero(view<3>(grad_q));
    fill_zero(view<3>(grad_k));
    fill_zero(view<3>(grad_v));
    const auto add = [&](auto&& to_q, auto&& to_k, auto&& to_v) {
      auto sums = prepared.accumulator(to_q, to_k);
      PreparedAdjoint<Scalar, std::remove_const_t<decltype(prepared)>, decltype(sums)> adjoint(prepared, sums);
      gradients.q = view<3>(to_q);
      gradients.k = view<3>(to_k);
      gradients.v = view<3>(to_v);
      call.backward({view<3>(q_), view<3>(k_), view<3>(v_)}, term, adjoint, gradients);
      prepared.finish(sums, grads);
      module.mod_qkv_backward(to_q, to_k, to_v, q_, k_, v_, call.at(), grads);
    };
    rounded_once(add, grad_q, grad_k, grad_v);
  });
}

/// The same, to gradients by name.
template <class GO, class Out, class Q, class K, class V, class M, class Scalar = ComputedOf<Q>>
void attend_backward(const AttentionGradients& gradients, const GO& grad_out, const Out& out, const Q& q, const K& k,
                     const V& v, const M& module, const AttentionOptions& options, typename M::Gradients& grads,
                     const TensorView<const Scalar, 2>* log_sum_exp = nullptr) {
  constexpr int rank = Traits<Q>::rank;
  const AttentionInputs<Scalar> to{checked_gradient<Scalar>("q", gradients.q, rank),
                                   checked_gradient<Scalar>("k", gradients.k, rank),
                                   checked_gradient<Scalar>("v", gradients.v, rank)};
  NativeCopies<Scalar> native;
  auto grad_q = map_of<rank>(native(to.q)), grad_k = map_of<rank>(native(to.k)), grad_v = map_of<rank>(native(to.v));
  attend_backward(to, grad_q, grad_k, grad_v, grad_out, out, q, k, v, module, options, grads, log_sum_exp);
  native.write_back();
}

}  // namespace detail

/// Writes out = softmax(scale·q·kᵀ + bias + mask)·v. Queries that may see no key get zeros. q, k and v stay as they are.
/// Cost: 4·L1·L2·NH·H multiplications and additions, half of that if causal, and what the module's hooks cost. Memory:
/// the module's O((L1+L2)·dim) at most, copies of what it modifies of q, k and v, O(L1+L2) if causal, and O(H) a thread.
/// Bitwise the same for any number of threads and for some of the queries by themselves. A pair that is hidden, by
/// `causal`, by false or -inf in a mask or by a bias of -inf, has no influence, whatever is in memory. Throws ShapeError,
/// OptionError, PositionError.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::WritableLike<Q> Out>
void attention(Out&& out, const Q& q, const K& k, const V& v, const M& module, const AttentionOptions& options = {}) {
  detail::attend(out, q, k, v, module, options);
}

/// The same; also writes log_sum_exp, the logarithm of the sum over keys of e^logit, -inf where there is none. It spares
/// backward a pass, unless it is so large (beyond 100) that its rounding would show in the weights.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::WritableLike<Q> Out, WritableTensorOf<detail::ComputedOf<Q>, 2> Sums>
void attention(Out&& out, const Q& q, const K& k, const V& v, const M& module, const AttentionOptions& options,
               Sums&& log_sum_exp) {
  const detail::TensorView<detail::ComputedOf<Q>, 2> sums = detail::view<2>(log_sum_exp);
  detail::attend(out, q, k, v, module, options, &sums);
}

/// Adjoint of `attention`: writes the gradients of q, k and v, and adds to the parameters'. `out` and the options are
/// those of the forward pass; weights are computed again. Cost: 10·L1·L2·NH·H multiplications and additions, half of
/// that if causal, 2 more without log_sum_exp. Memory: as forward, and for each thread grad_q of the heads that share a
/// head of keys. Heads of keys run in parallel, and batch entries unless parameters are learned from logits; all is one
/// task where they are learned and positions do not repeat. Bitwise the same for any number of threads. Throws
/// ShapeError, OptionError, PositionError.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::WritableLike<Q> GQ, detail::WritableLike<Q> GK, detail::WritableLike<Q> GV, detail::Like<Q> GO,
          detail::Like<Q> Out>
void attention_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const GO& grad_out, const Out& out, const Q& q,
                        const K& k, const V& v, const M& module, const AttentionOptions& options,
                        typename M::Gradients& grads) {
  detail::attend_backward({detail::view<3>(grad_q), detail::view<3>(grad_k), detail::view<3>(grad_v)}, grad_q, grad_k,
                          grad_v, grad_out, out, q, k, v, module, options, grads);
}

/// The same, with the log_sum_exp that forward wrote.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::WritableLike<Q> GQ, detail::WritableLike<Q> GK, detail::WritableLike<Q> GV, detail::Like<Q> GO,
          detail::Like<Q> Out, TensorOf<detail::ComputedOf<Q>, 2> Sums>
void attention_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const GO& grad_out, const Out& out, const Q& q,
                        const K& k, const V& v, const M& module, const AttentionOptions& options,
                        typename M::Gradients& grads, const Sums& log_sum_exp) {
  const detail::TensorView<const detail::ComputedOf<Q>, 2> sums = detail::view<2>(log_sum_exp);
  detail::attend_backward({detail::view<3>(grad_q), detail::view<3>(grad_k), detail::view<3>(grad_v)}, grad_q, grad_k,
                          grad_v, grad_out, out, q, k, v, module, options, grads, &sums);
}

/// The same, to gradients by name: `attention_backward({.q = grad_q, .k = grad_k, .v = grad_v}, grad_out, out, ...)`.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::Like<Q> GO, detail::Like<Q> Out>
void attention_backward(const AttentionGradients& gradients, const GO& grad_out, const Out& out, const Q& q, const K& k,
                        const V& v, const M& module, const AttentionOptions& options, typename M::Gradients& grads) {
  detail::attend_backward(gradients, grad_out, out, q, k, v, module, options, grads);
}

/// The same, with the log_sum_exp that forward wrote.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::Like<Q> GO, detail::Like<Q> Out, TensorOf<detail::ComputedOf<Q>, 2> Sums>
void attention_backward(const AttentionGradients& gradients, const GO& grad_out, const Out& out,
                        const Sums& log_sum_exp, const Q& q, const K& k, const V& v, const M& module,
                        const AttentionOptions& options, typename M::Gradients& grads) {
  const detail::TensorView<const detail::ComputedOf<Q>, 2> sums = detail::view<2>(log_sum_exp);
  detail::attend_backward(gradients, grad_out, out, q, k, v, module, options, grads, &sums);
}

}  // namespace posbias
