// SPDX-License-Identifier: MIT
/// \file
/// Transformer-XL's relative position encoding (Dai et al., 2019, arXiv 1901.02860).
///
///     score(h, i, j) = ( (q + u_h)·k  +  (q + v_h)·r_h ) / sqrt(H)        r = W·sinusoid((pos_q - pos_k) / divide) + b
///
/// u = bias_r_w, v = bias_r_r, W and b = embed_lin. `mod_qkv` adds u to q, so that scale·q·kᵀ is the first term;
/// `mod_mask` finds q + v from q + u and adds the second, already scaled: softmax(scale·q·kᵀ + mask) is the paper's.
/// The paper has no b (`linear_bias = false`), and its code orders sinusoids in halves (`SinusoidLayout::half`).
///
/// `XLForm::bio_attention` is what bio-attention computes, for checkpoints trained with it: `mod_mask` adds
/// (q + u)·r with the q it is given, not scaled and without v.
///
/// Shapes: q (B, *, L1, NH, H) with NH·H = dim, k (B, *, L2, NHk, H), mask (B, *, NH, L1, L2). Cost: dim²
/// multiplications for the projections of each distinct distance |pos_q - pos_k|, max(L1, L2) of them at default
/// positions, once for a batch that shares its positions; then about as many as q·kᵀ.
/// Workspace O((L1+L2)·dim). Reals that do not repeat cost dim² a pair.
/// Accuracy: sines and cosines are rounded once from double; sums of dim, then of H products, run in `Scalar`.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/bias/content_bias.hpp"
#include "posbias/core/checks.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/sin_cos.hpp"
#include "posbias/kernel/sinusoid_projection.hpp"
#include "posbias/tile/projected_bias.hpp"

namespace posbias {

/// Which formula `TransformerXL` follows.
enum class XLForm {
  paper,          ///< (q + v)·r / sqrt(H), with q + u in the place of q
  bio_attention,  ///< (q + u)·r, with the q it is given, as bio-attention's XL
};

/// Options of `TransformerXL`.
struct TransformerXLOptions {
  Index dim = 0;                                        ///< features of all heads, NH·H; required, even
  Index n_heads = 0;                                    ///< heads, NH; required, divides dim
  XLForm form = XLForm::paper;                          ///< which formula
  SinusoidLayout layout = SinusoidLayout::interleaved;  ///< order of sines and cosines
  bool linear_bias = true;                              ///< the projection of sinusoids has a bias
  double divide = 1;                                    ///< differences of positions are divided by this; > 0
  bool learned_div = false;                             ///< learn the divisor, from `divide` on; at least 1e-8
};

/// What Transformer-XL learns.
template <class Scalar>
struct TransformerXLParameters {
  Divide<Scalar> divide;                             ///< "div", if it is learned
  ParameterTensor<Scalar, 2> bias_r_w{};             ///< u: (NH, H)
  ParameterTensor<Scalar, 2> bias_r_r{};             ///< v: (NH, H)
  ParameterTensor<Scalar, 2> weight{};               ///< (dim, dim)
  std::optional<ParameterTensor<Scalar, 1>> bias{};  ///< (dim)

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    Divide<Scalar>::visit(self.divide, visitor);
    visitor("bias_r_w", self.bias_r_w);
    visitor("bias_r_r", self.bias_r_r);
    visitor("embed_lin.weight", self.weight);
    if (self.bias) visitor("embed_lin.bias", *self.bias);
  }
};

/// Adds a bias to queries (hook `mod_qkv`), and a score of query and relative position to logits (hook `mod_mask`).
/// Parameters: "div" () if learned_div; "bias_r_w" and "bias_r_r" (NH, H), starting uniform in ±1/sqrt(H);
/// "embed_lin.weight" (dim, dim) and, if linear_bias, "embed_lin.bias" (dim), uniform in ±1/sqrt(dim).
template <class Scalar_>
class TransformerXL : public ContentBias<TransformerXL<Scalar_>, Scalar_, TransformerXLParameters<Scalar_>> {
  using Base = ContentBias<TransformerXL, Scalar_, TransformerXLParameters<Scalar_>>;

 public:
  using Scalar = Scalar_;                ///< of its tensors and parameters
  using Options = TransformerXLOptions;  ///< what it is made from
  using typename Base::ConstView;
  using typename Base::Gradients;
  using HooksWithoutV<TransformerXL>::mod_qkv;
  using HooksWithoutV<TransformerXL>::mod_qkv_backward;
  using Prepared = ProjectedBias<TransformerXL>;                ///< what adds itself to tiles
  static constexpr std::string_view name = "TransformerXL",     ///< in messages
      head_dim_option = "dim / n_heads";                        ///< what sets the features of a head, in messages
  static constexpr bool depends_on_keys = false;                ///< k has no gradient
  static constexpr QKVChanges changes{.k = false, .v = false};  ///< q

  /// Throws OptionError.
  explicit TransformerXL(const Options& options, std::uint64_t seed = 0);

  [[nodiscard]] const Options& options() const { return options_; }                 ///< with defaults filled in
  [[nodiscard]] Index n_heads() const { return options_.n_heads; }                  ///< NH
  [[nodiscard]] Index head_dim() const { return options_.dim / options_.n_heads; }  ///< H

  /// q += u, of every query, with a position or without. Throws ShapeError.
  template <WritableStoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, StoredTensorOf<Scalar, 3> V>
  void mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    plan_mod_qkv(q, k, v, at)();
  }

  /// Adjoint of `mod_qkv`: gradients pass through, u's is the sum of the queries'. Throws ShapeError.
  template <StoredTensorOf<Scalar, 3> GQ, StoredTensorOf<Scalar, 3> GK, StoredTensorOf<Scalar, 3> GV,
            StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, StoredTensorOf<Scalar, 3> V>
  void mod_qkv_backward(const GQ& grad_q, const GK& grad_k, const GV& grad_v, const Q& q, const K& k, const V& v,
                        const PairPositions& at, Gradients& grads) const {
    plan_mod_qkv_backward(grad_q, grad_k, grad_v, q, k, v, at, grads)();
  }

  /// Takes u from q again.
  template <WritableStoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, StoredTensorOf<Scalar, 3> V>
  void undo_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    plan(-1, q, k, v, at)();
  }

  /// `mod_qkv`, checked, to be called (see `Module`).
  template <WritableStoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, StoredTensorOf<Scalar, 3> V>
  [[nodiscard]] auto plan_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    return plan(+1, q, k, v, at);
  }
  /// `mod_qkv_backward`, checked, to be called.
  template <StoredTensorOf<Scalar, 3> GQ, StoredTensorOf<Scalar, 3> GK, StoredTensorOf<Scalar, 3> GV,
            StoredTensorOf<Scalar, 3> Q, StoredTensorOf<Scalar, 3> K, StoredTensorOf<Scalar, 3> V>
  [[nodiscard]] auto plan_mod_qkv_backward(const GQ& grad_q, const GK& grad_k, const GV& grad_v, const Q& q, const K& k,
                                           const V& v, const PairPositions& at, Gradients& grads) const {
    const Inputs gradients = this->views(grad_q, grad_k, grad_v);
    check_backward(gradients, this->views(q, k, v), at, grads);
    return [this, of_q = gradients.q, &grads] { sum_u(of_q, grads); };
  }
  /// The score of q, as `mod_qkv` left it, and the relative position: what `mod_mask` adds. In the paper's form q - u must
  /// be the query: a rotation composed with this module would turn u as well. Refers to this module and to q.
  [[nodiscard]] Prepared prepared(const ConstView& q, const ConstView& /*k*/, CheckedPairPositions at,
                                  const Executor& executor) const {
    return Prepared(*this, q, std::move(at), executor);
  }

  /// What r is multiplied by is scale · (q + offset), with the q that `mod_mask` is given.
  [[nodiscard]] Scalar scale() const {
    if (options_.form == XLForm::bio_attention) return 1;
    return static_cast<Scalar>(1 / std::sqrt(static_cast<double>(head_dim())));
  }

  /// v - u, because q has u in it; u in bio-attention's form. (NH, H)
  [[nodiscard]] std::vector<Scalar> offsets() const;

  /// Every distance has an r of its own.
  [[nodiscard]] static std::pair<double, double> clamp_range() {
    return {std::numeric_limits<double>::lowest(), (std::numeric_limits<double>::max)()};
  }

  /// The projections r (dim, relative.size()) at key minus query positions, rows `stride` apart. r is a function of
  /// query minus key.
  void project(std::span<const double> relative, Scalar* r, Index stride, const Executor& executor) const;

  using ProjectionSums = typename detail::SinusoidProjection<Scalar>::Sums;  ///< gradients of what `project` reads

  /// Adjoint of `project`.
  void project_backward(std::span<const double> relative, const double* grad_r, Index stride, ProjectionSums& sums,
                        const Executor& executor) const;

  /// Adds what was summed up, and the gradient of the offsets (NH, H), to `grads`.
  void finish(const ProjectionSums& sums, const std::vector<double>& grad_offsets, Gradients& grads,
              const Executor& executor) const;

 private:
  using typename Base::Inputs, typename Base::View;

  [[nodiscard]] detail::SinusoidProjection<Scalar> projection() const {
    const auto& parameters = this->parameters_;
    return {frequencies_, options_.layout, parameters.divide, parameters.weight, parameters.bias};
  }

  /// Calls `visit(h, d, h·H + d)`.
  template <class Visit>
  void for_each_feature(const Visit& visit) const {
    std::size_t i = 0;
    for (Index h = 0; h < n_heads(); ++h)
      for (Index d = 0; d < head_dim(); ++d) visit(h, d, i++);
  }

  /// `mod_qkv`, or with a sign of -1 its inverse.
  template <class Q, class K, class V>
  [[nodiscard]] auto plan(Scalar sign, Q& q, const K& k, const V& v, const PairPositions& at) const {
    const View to = detail::view<3>(q);
    check(this->views(q, k, v), at);
    return [this, to, sign, executor = at.executor] { add_u(to, sign, executor); };
  }

  /// The hooks, past the tensors.
  void add_u(const View& q, Scalar sign, const Executor& executor) const;
  void sum_u(const ConstView& grad_q, Gradients& grads) const;
  void check(const Inputs& inputs, const PairPositions& at) const;
  void check_backward(const Inputs& gradients, const Inputs& inputs, const PairPositions& at,
                      const Gradients& grads) const;

  void add_to_bias(ParameterTensor<Scalar, 2>& gradient, const std::vector<double>& sums, double sign) const {
    for_each_feature([&](Index h, Index d, std::size_t i) { gradient(h, d) += static_cast<Scalar>(sign * sums[i]); });
  }

  Options options_;
  std::vector<double> frequencies_;
};

template <class Scalar>
TransformerXL<Scalar>::TransformerXL(const Options& options, std::uint64_t seed) : options_(options) {
  if (options.dim < 2 || options.dim % 2 != 0)
    detail::fail<OptionError>(name, ": dim = ", options.dim, "; it is required, and must be even and positive");
  if (options.n_heads < 1)
    detail::fail<OptionError>(name, ": n_heads = ", options.n_heads, "; it is required, and must be positive");
  if (options.dim % options.n_heads != 0)
    detail::fail<OptionError>(name, ": dim = ", options.dim, "; it must be a multiple of n_heads = ", options.n_heads);
  frequencies_ = detail::inverse_frequencies(options.dim / 2, options.dim, 10000);

  detail::Random random(seed);
  const auto start = [&](auto& parameter, Index inputs) {
    detail::fill_uniform(parameter, 1 / std::sqrt(static_cast<double>(inputs)), random);
  };
  auto& parameters = this->parameters_;
  parameters.divide = Divide<Scalar>(name, options.divide, options.learned_div);
  parameters.weight.resize(options.dim, options.dim);
  start(parameters.weight, options.dim);
  if (options.linear_bias) start(parameters.bias.emplace(options.dim), options.dim);
  for (auto* bias : {&parameters.bias_r_w, &parameters.bias_r_r}) {
    bias->resize(options.n_heads, head_dim());
    start(*bias, head_dim());
  }
}

template <class Scalar>
void TransformerXL<Scalar>::check(const Inputs& inputs, const PairPositions& at) const {
  const auto& [q, k, v] = inputs;
  const detail::Hook hook = this->hook_of("mod_qkv", at);
  this->check_queries(hook, q, k, v);
  detail::check_apart(hook, {"q", q});
  for (const detail::NamedRegion& other : {detail::NamedRegion("k", k), {"v", v}})
    if (detail::share_element(q.region(), other.region))
      detail::fail<ShapeError>(hook, ": q shares memory with ", other.name, "; only q is to change");
}

template <class Scalar>
void TransformerXL<Scalar>::check_backward(const Inputs& gradients, const Inputs& inputs, const PairPositions& at,
                                           const Gradients& grads) const {
  const auto& [grad_q, grad_k, grad_v] = gradients;
  const auto& [q, k, v] = inputs;
  const detail::Hook hook = this->hook_of("mod_qkv_backward", at);
  this->check_queries(hook, q, k, v);
  detail::check_gradient_shapes(hook, grad_q, grad_k, grad_v, q, k, v);
  this->check_gradients("mod_qkv_backward", grads);
}

template <class Scalar>
void TransformerXL<Scalar>::add_u(const View& q, Scalar sign, const Executor& executor) const {
  const auto& u = this->parameters_.bias_r_w;
  executor.parallel_for(q.batches(), [&](Index n) {
    q.batch(n).visit([&]<class S>(S* first) {
      for (Index i = 0; i < q.shape[0]; ++i)
        for_each_feature([&](Index h, Index d, std::size_t) {
          S& feature = first[i * q.strides[0] + h * q.strides[1] + d * q.strides[2]];
          detail::put(feature, detail::widen(feature) + sign * u(h, d));
        });
    });
  });
}

template <class Scalar>
void TransformerXL<Scalar>::sum_u(const ConstView& grad_q, Gradients& grads) const {
  std::vector<double> sums(static_cast<std::size_t>(options_.dim));
  std::vector<Scalar> query(sums.size());
  for (Index n = 0; n < grad_q.batches(); ++n)
    for (Index i = 0; i < grad_q.shape[0]; ++i) {
      for (Index h = 0; h < n_heads(); ++h)
        detail::load<Scalar>(grad_q.batch(n) + i * grad_q.strides[0] + h * grad_q.strides[1], grad_q.strides[2],
                             head_dim(), query.data() + h * head_dim());
      for (std::size_t f = 0; f < sums.size(); ++f) sums[f] += static_cast<double>(query[f]);
    }
  add_to_bias(grads.bias_r_w, sums, +1);
}

template <class Scalar>
std::vector<Scalar> TransformerXL<Scalar>::offsets() const {
  std::vector<Scalar> result(static_cast<std::size_t>(options_.dim));
  const auto& u = this->parameters_.bias_r_w;
  const auto& v = this->parameters_.bias_r_r;
  const bool paper = options_.form == XLForm::paper;
  for_each_feature([&](Index h, Index d, std::size_t i) { result[i] = paper ? v(h, d) - u(h, d) : u(h, d); });
  return result;
}

template <class Scalar>
void TransformerXL<Scalar>::project(std::span<const double> relative, Scalar* r, Index stride,
                                    const Executor& executor) const {
  projection().project(relative, r, stride, executor);
}

template <class Scalar>
void TransformerXL<Scalar>::project_backward(std::span<const double> relative, const double* grad_r, Index stride,
                                             ProjectionSums& sums, const Executor& executor) const {
  projection().backward(relative, grad_r, stride, sums, executor);
}

template <class Scalar>
void TransformerXL<Scalar>::finish(const ProjectionSums& sums, const std::vector<double>& grad_offsets,
                                   Gradients& grads, const Executor& /*executor*/) const {
  projection().finish(sums, grads.divide, grads.weight, grads.bias);
  const bool paper = options_.form == XLForm::paper;
  add_to_bias(grads.bias_r_w, grad_offsets, paper ? -1 : 1);
  if (paper) add_to_bias(grads.bias_r_r, grad_offsets, +1);
}

}  // namespace posbias
