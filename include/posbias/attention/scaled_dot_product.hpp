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

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/attention/attention_mask.hpp"
#include "posbias/attention/fused_attention.hpp"
#include "posbias/core/module.hpp"
#include "posbias/core/tensor_copies.hpp"
#include "posbias/core/token_locations.hpp"

namespace posbias {

/// Options of `attention`; its backward is given the same ones.
struct AttentionOptions {
  bool causal = false;  ///< a query sees keys at its position or before; tokens without one see all, seen by all. `at`
                        ///< must be given where L1 is not L2
  std::optional<double> scale{};  ///< of q·k; default 1 / sqrt(H)
  PairPositions at{};             ///< where queries and keys are, for the module and for `causal`
  /// To add to logits, or true where a query may attend; default none. It is borrowed and must outlive the options, unless
  /// it is a temporary `Eigen::Tensor` or moved in, `std::move(mask)`: these they keep.
  AttentionMask mask{};
  Executor executor{};  ///< who runs the tasks; default that of `at`
};

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

/// Checks all that attention and its backward have in common and prepares the module, then calls `use(tiles,
/// positions, q, k, v)` with q, k and v as `mod_qkv` left them.
template <class Q, class K, class V, class M, class Use>
void with_tiles(std::string_view function, const Q& q, const K& k, const V& v, const M& module,
                const AttentionOptions& options, const Use& use) {
  using Scalar = ComputedOf<Q>;
  const AttentionShape shape = attention_shape({"posbias", function}, q, k, v);
  const auto features = static_cast<double>(std::max<Index>(view<3>(q).shape[2], 1));
  const auto scale = static_cast<Scalar>(options.scale.value_or(1 / std::sqrt(features)));
  if (!is_finite(static_cast<double>(scale)))
    fail<OptionError>("posbias::", function, ": scale = ", *options.scale,
                      "; it must be finite, also as the tensors' scalar");
  PairPositions at = called_by({function, "posbias"}, options.at);
  if (!options.executor.serial()) at.executor = options.executor;
  const PairLocations locations({"posbias", function}, at, shape.leading, shape.queries, shape.keys);
  if (options.causal && shape.queries != shape.keys && !at.q_k.given() && !at.q.given() && !at.k.given())
    fail<PositionError>("posbias::", function, ": causal needs positions, since L1 = ", shape.queries,
                        " is not L2 = ", shape.keys,
                        "; .at = {.q = Positions::range(past)} says that past keys come before the first query");
  const BroadcastMask mask(function, options.mask, shape);

  with_modified(module, q, k, v, at, [&](const auto& q_, const auto& k_, const auto& v_) {
    const auto prepared = module.prepare(q_, k_, at);
    const PreparedTerm<Scalar, std::remove_const_t<decltype(prepared)>> bias(prepared);
    const AttentionTiles<Scalar> tiles{
        view<3>(q_),
        view<3>(k_),
        view<3>(v_),
        scale,
        bias,
        mask,
        options.causal ? std::optional<CausalOrder>(std::in_place, locations, shape.queries, shape.keys)
                       : std::nullopt};
    use(tiles, prepared, at, q_, k_, v_);
  });
}

/// Throws ShapeError unless a tensor (B, *, L1, NH, H) is for the queries, with the features of v.
template <class T, class Q, class V>
void check_result(std::string_view function, std::string_view name, const T& result, const Q& q, const V& v) {
  const auto view_of = view<3>(result);
  const auto query = view<3>(q);
  if (view_of.leading != query.leading || view_of.shape[0] != query.shape[0] || view_of.shape[1] != query.shape[1] ||
      view_of.shape[2] != view<3>(v).shape[2])
    fail<ShapeError>("posbias::", function, ": ", name, " has shape ", shape_of(result), "; q of shape ", shape_of(q),
                     " and v of shape ", shape_of(v), " need (B, *, L1, NH, Hv)");
}

/// Throws ShapeError unless a tensor is (B, *, NH, L1).
template <class T, class Q>
void check_log_sum_exp(std::string_view function, const T& log_sum_exp, const Q& q) {
  const auto sums = view<2>(log_sum_exp);
  const auto query = view<3>(q);
  if (sums.leading != query.leading || sums.shape[0] != query.shape[1] || sums.shape[1] != query.shape[0])
    fail<ShapeError>("posbias::", function, ": log_sum_exp has shape ", shape_of(log_sum_exp), "; q of shape ",
                     shape_of(q), " needs (B, *, NH, L1)");
}

template <class Out, class Q, class K, class V, class M, class Scalar>
void attend(Out& out, const Q& q, const K& k, const V& v, const M& module, const AttentionOptions& options,
            const TensorView<Scalar, 2>& log_sum_exp) {
  constexpr std::string_view function = "attention";
  check_result(function, "out", out, q, v);
  check_apart({"posbias", function}, "out", out, "q", q, "k", k, "v", v, "mask", options.mask);
  const auto run = [&](const auto& tiles, const auto& /*prepared*/, const PairPositions& at, const auto&...) {
    attention_forward<Scalar>(tiles, {.out = view<3>(out), .log_sum_exp = log_sum_exp}, at.executor);
  };
  with_tiles(function, q, k, v, module, options, run);
}

/// `log_sum_exp` has no memory if it is still to be found.
template <class GQ, class GK, class GV, class GO, class Out, class Q, class K, class V, class M, class Scalar>
void attend_backward(GQ& grad_q, GK& grad_k, GV& grad_v, const GO& grad_out, const Out& out, const Q& q, const K& k,
                     const V& v, const M& module, const AttentionOptions& options, typename M::Gradients& grads,
                     TensorView<const Scalar, 2> log_sum_exp) {
  constexpr std::string_view function = "attention_backward";
  check_result(function, "out", out, q, v);
  check_result(function, "grad_out", grad_out, q, v);
  check_gradient_shapes({"posbias", function}, grad_q, grad_k, grad_v, q, k, v);
  check_apart({"posbias", function}, "grad_q", grad_q, "grad_k", grad_k, "grad_v", grad_v, "grad_out", grad_out, "out",
              out, "q", q, "k", k, "v", v, "mask", options.mask);
  check_apart({"posbias", function}, "grad_k", grad_k, "grad_v", grad_v, "grad_out", grad_out, "out", out, "q", q, "k",
              k, "v", v, "mask", options.mask);
  check_apart({"posbias", function}, "grad_v", grad_v, "grad_out", grad_out, "out", out, "q", q, "k", k, "v", v, "mask",
              options.mask);
  if constexpr (DerivesFromModule<M>) module.check_gradients({function, "posbias"}, grads);

  const auto run = [&](const auto& tiles, const auto& prepared, const PairPositions& at, const auto& q_, const auto& k_,
                       const auto& v_) {
    fill_zero(view<3>(grad_q));
    fill_zero(view<3>(grad_k));
    fill_zero(view<3>(grad_v));
    const auto add = [&](auto&& to_q, auto&& to_k, auto&& to_v) {
      auto sums = prepared.accumulator(to_q, to_k);
      PreparedAdjoint<Scalar, std::remove_cvref_t<decltype(prepared)>, decltype(sums)> bias(prepared, sums);
      attention_backward<Scalar>(
          tiles, {view<3>(to_q), view<3>(to_k), view<3>(to_v), view<3>(grad_out), view<3>(out), log_sum_exp, {}}, bias,
          at.executor);
      prepared.finish(sums, grads);
      module.mod_qkv_backward(to_q, to_k, to_v, q_, k_, v_, at, grads);
    };
    rounded_once(add, grad_q, grad_k, grad_v);
  };
  with_tiles(function, q, k, v, module, options, run);
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
  detail::attend(out, q, k, v, module, options, detail::TensorView<detail::ComputedOf<Q>, 2>{});
}

/// The same; also writes log_sum_exp, the logarithm of the sum over keys of e^logit, -inf where there is none. It spares
/// backward a pass, unless it is so large (beyond 100) that its rounding would show in the weights.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::WritableLike<Q> Out, WritableTensorOf<detail::ComputedOf<Q>, 2> Sums>
void attention(Out&& out, const Q& q, const K& k, const V& v, const M& module, const AttentionOptions& options,
               Sums&& log_sum_exp) {
  detail::check_log_sum_exp("attention", log_sum_exp, q);
  detail::check_apart({"posbias", "attention"}, "log_sum_exp", log_sum_exp, "out", out, "q", q, "k", k, "v", v, "mask",
                      options.mask);
  detail::attend(out, q, k, v, module, options,
                 detail::TensorView<detail::ComputedOf<Q>, 2>(detail::view<2>(log_sum_exp)));
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
  detail::attend_backward(grad_q, grad_k, grad_v, grad_out, out, q, k, v, module, options, grads,
                          detail::TensorView<const detail::ComputedOf<Q>, 2>{});
}

/// The same, with the log_sum_exp that forward wrote.
template <HeadsTensor Q, detail::Like<Q> K, detail::Like<Q> V, AttentionModule<detail::ComputedOf<Q>> M,
          detail::WritableLike<Q> GQ, detail::WritableLike<Q> GK, detail::WritableLike<Q> GV, detail::Like<Q> GO,
          detail::Like<Q> Out, TensorOf<detail::ComputedOf<Q>, 2> Sums>
void attention_backward(GQ&& grad_q, GK&& grad_k, GV&& grad_v, const GO& grad_out, const Out& out, const Q& q,
                        const K& k, const V& v, const M& module, const AttentionOptions& options,
                        typename M::Gradients& grads, const Sums& log_sum_exp) {
  constexpr std::string_view function = "attention_backward";
  detail::check_log_sum_exp(function, log_sum_exp, q);
  detail::check_apart({"posbias", function}, "grad_q", grad_q, "log_sum_exp", log_sum_exp);
  detail::check_apart({"posbias", function}, "grad_k", grad_k, "log_sum_exp", log_sum_exp);
  detail::check_apart({"posbias", function}, "grad_v", grad_v, "log_sum_exp", log_sum_exp);
  const detail::TensorView<const detail::ComputedOf<Q>, 2> sums = detail::view<2>(log_sum_exp);
  detail::attend_backward(grad_q, grad_k, grad_v, grad_out, out, q, k, v, module, options, grads, sums);
}

}  // namespace posbias
