// SPDX-License-Identifier: MIT
/// \file
/// One call of attention or of its backward, past the tensors: what it is told, checked, and the way to its kernels. It
/// depends on the scalar alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "posbias/attention/backward.hpp"
#include "posbias/attention/forward.hpp"
#include "posbias/core/checked_positions.hpp"
#include "posbias/core/checks.hpp"
#include "posbias/core/positions.hpp"
#include "posbias/tile/mask_term.hpp"

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

namespace detail {

/// The checked call. Keeps the scale, the positions with their executor, and a view of the mask; not the options.
template <class Scalar>
class AttentionCall {
 public:
  using View = TensorView<const Scalar, 3>;
  using Inputs = AttentionInputs<const Scalar>;

  /// Of `attention`; a null log_sum_exp is not written. Throws `attention`'s errors, but not the module's.
  AttentionCall(const Inputs& inputs, const AttentionOptions& options, const TensorView<Scalar, 3>& out,
                const TensorView<Scalar, 2>* log_sum_exp);

  /// Of `attention_backward`; a log_sum_exp that is null is still to be found.
  AttentionCall(const Inputs& inputs, const AttentionOptions& options, const AttentionInputs<Scalar>& grads,
                const View& grad_out, const View& out, const TensorView<const Scalar, 2>* log_sum_exp);

  /// Where queries and keys are, and who runs the tasks, for the module's hooks.
  [[nodiscard]] const PairPositions& at() const { return at_; }

  /// `attention_forward` of q, k and v as `mod_qkv` left them.
  void forward(const Inputs& modified, const LogitTerm<Scalar>& term, const AttentionResults<Scalar>& results) const;
  /// `attention_backward`.
  void backward(const Inputs& modified, const LogitTerm<Scalar>& term, LogitAdjoint<Scalar>& adjoint,
                const BackwardViews<Scalar>& gradients) const;

 private:
  [[gnu::cold]] AttentionCall(std::string_view function, const Inputs& inputs, const AttentionOptions& options);

  /// Throw ShapeError; return the name of the function.
  [[gnu::cold]] static std::string_view checked(const Inputs& inputs, const AttentionOptions& options,
                                                const TensorView<Scalar, 3>& out,
                                                const TensorView<Scalar, 2>* log_sum_exp);
  [[gnu::cold]] static std::string_view checked(const Inputs& inputs, const AttentionOptions& options,
                                                const AttentionInputs<Scalar>& grads, const View& grad_out,
                                                const View& out, const TensorView<const Scalar, 2>* log_sum_exp);

  [[nodiscard]] AttentionTiles<Scalar> tiles(const Inputs& modified, const LogitTerm<Scalar>& term) const;

  AttentionShape shape_;
  Scalar scale_;
  PairPositions at_;
  MaskTerm mask_;
  std::optional<CausalVisibility> causal_;
};

/// Throws ShapeError unless a tensor (B, *, L1, NH, H) is for the queries, with the features of v.
inline void check_result(std::string_view function, std::string_view name, const StridedShape<3>& result,
                         const StridedShape<3>& q, const StridedShape<3>& v) {
  if (result.leading != q.leading || result.shape[0] != q.shape[0] || result.shape[1] != q.shape[1] ||
      result.shape[2] != v.shape[2])
    fail<ShapeError>("posbias::", function, ": ", name, " has shape ", result.whole_shape().shape(), "; q of shape ",
                     q.whole_shape().shape(), " and v of shape ", v.whole_shape().shape(), " need (B, *, L1, NH, Hv)");
}

/// Throws ShapeError unless a tensor is (B, *, NH, L1).
inline void check_log_sum_exp(std::string_view function, const StridedShape<2>& sums, const StridedShape<3>& q) {
  if (sums.leading != q.leading || sums.shape[0] != q.shape[1] || sums.shape[1] != q.shape[0])
    fail<ShapeError>("posbias::", function, ": log_sum_exp has shape ", sums.whole_shape().shape(), "; q of shape ",
                     q.whole_shape().shape(), " needs (B, *, NH, L1)");
}

template <class Scalar>
AttentionCall<Scalar>::AttentionCall(const Inputs& inputs, const AttentionOptions& options,
                                     const TensorView<Scalar, 3>& out, const TensorView<Scalar, 2>* log_sum_exp)
    : AttentionCall(checked(inputs, options, out, log_sum_exp), inputs, options) {}

template <class Scalar>
AttentionCall<Scalar>::AttentionCall(const Inputs& inputs, const AttentionOptions& options,
                                     const AttentionInputs<Scalar>& grads, const View& grad_out, const View& out,
                                     const TensorView<const Scalar, 2>* log_sum_exp)
    : AttentionCall(checked(inputs, options, grads, grad_out, out, log_sum_exp), inputs, options) {}

template <class Scalar>
std::string_view AttentionCall<Scalar>::checked(const Inputs& inputs, const AttentionOptions& options,
                                                const TensorView<Scalar, 3>& out,
                                                const TensorView<Scalar, 2>* log_sum_exp) {
  constexpr std::string_view function = "attention";
  const auto& [q, k, v] = inputs;
  if (log_sum_exp != nullptr) {
    check_log_sum_exp(function, *log_sum_exp, q);
    check_apart({"posbias", function}, {"log_sum_exp", *log_sum_exp},
                {{"out", out}, {"q", q}, {"k", k}, {"v", v}, {"mask", options.mask}});
  }
  check_result(function, "out", out, q, v);
  check_apart({"posbias", function}, {"out", out}, {{"q", q}, {"k", k}, {"v", v}, {"mask", options.mask}});
  return function;
}

template <class Scalar>
std::string_view AttentionCall<Scalar>::checked(const Inputs& inputs, const AttentionOptions& options,
                                                const AttentionInputs<Scalar>& grads, const View& grad_out,
                                                const View& out, const TensorView<const Scalar, 2>* log_sum_exp) {
  constexpr std::string_view function = "attention_backward";
  const Hook hook("posbias", function);
  const View &q = inputs.q, &k = inputs.k, &v = inputs.v;
  const TensorView<Scalar, 3>&grad_q = grads.q, &grad_k = grads.k, &grad_v = grads.v;
  if (log_sum_exp != nullptr) {
    check_log_sum_exp(function, *log_sum_exp, q);
    check_apart(hook, {"grad_q", grad_q}, {{"log_sum_exp", *log_sum_exp}});
    check_apart(hook, {"grad_k", grad_k}, {{"log_sum_exp", *log_sum_exp}});
    check_apart(hook, {"grad_v", grad_v}, {{"log_sum_exp", *log_sum_exp}});
  }
  check_result(function, "out", out, q, v);
  check_result(function, "grad_out", grad_out, q, v);
  check_gradient_shapes(hook, grad_q, grad_k, grad_v, q, k, v);
  check_apart(hook, {"grad_q", grad_q}, {{"grad_k", grad_k}, {"grad_v", grad_v}});
  check_apart(hook, {"grad_k", grad_k}, {{"grad_v", grad_v}});
  for (const NamedRegion& grad : {NamedRegion("grad_q", grad_q), {"grad_k", grad_k}, {"grad_v", grad_v}})
    check_apart(hook, grad,
                {{"grad_out", grad_out}, {"out", out}, {"q", q}, {"k", k}, {"v", v}, {"mask", options.mask}});
  return function;
}

template <class Scalar>
AttentionCall<Scalar>::AttentionCall(std::string_view function, const Inputs& inputs, const AttentionOptions& options)
    : shape_(attention_shape({"posbias", function}, inputs.q, inputs.k, inputs.v)),
      scale_(static_cast<Scalar>(
          options.scale.value_or(1 / std::sqrt(static_cast<double>(std::max<Index>(inputs.q.shape[2], 1)))))),
      at_(called_by({function, "posbias"}, options.at)),
      mask_(function, options.mask, shape_) {
  if (!is_finite(static_cast<double>(scale_)))
    fail<OptionError>("posbias::", function, ": scale = ", *options.scale,
                      "; it must be finite, also as the tensors' scalar");
  if (!options.executor.serial()) at_.executor = options.executor;
  const CheckedPairPositions locations({"posbias", function}, at_, shape_.leading, shape_.queries, shape_.keys);
  if (!options.causal) return;
  if (shape_.queries != shape_.keys && !at_.q_k.given() && !at_.q.given() && !at_.k.given())
    fail<PositionError>("posbias::", function, ": causal needs positions, since L1 = ", shape_.queries,
                        " is not L2 = ", shape_.keys,
                        "; .at = {.q = Positions::range(past)} says that past keys come before the first query");
  causal_.emplace(locations, shape_.queries, shape_.keys);
}

template <class Scalar>
AttentionTiles<Scalar> AttentionCall<Scalar>::tiles(const Inputs& modified, const LogitTerm<Scalar>& term) const {
  return {modified.q, modified.k, modified.v, scale_, term, mask_, causal_};
}

template <class Scalar>
void AttentionCall<Scalar>::forward(const Inputs& modified, const LogitTerm<Scalar>& term,
                                    const AttentionResults<Scalar>& results) const {
  attention_forward<Scalar>(tiles(modified, term), results, at_.executor);
}

template <class Scalar>
void AttentionCall<Scalar>::backward(const Inputs& modified, const LogitTerm<Scalar>& term,
                                     LogitAdjoint<Scalar>& adjoint, const BackwardViews<Scalar>& gradients) const {
  attention_backward<Scalar>(tiles(modified, term), gradients, adjoint, at_.executor);
}

}  // namespace detail
}  // namespace posbias
