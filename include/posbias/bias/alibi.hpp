// SPDX-License-Identifier: MIT
/// \file
/// ALiBi, attention with linear biases (Press et al., 2022, arXiv 2108.12409).
///
///     mask(h, i, j) += -slope_h · |pos_q(i) - pos_k(j)| / divide
///
/// Slopes of n heads, n a power of two: 2^(-8/n), 2^(-16/n), ..., 2^-8. For other n the paper's code takes the
/// slopes of the largest power of two n' < n, then every other one of 2n':
///
///     8 heads    1/2 1/4 1/8 1/16 1/32 1/64 1/128 1/256
///     6 heads    1/4 1/16 1/64 1/256, then 1/2 1/8
///
/// `use_n_heads` gives the first heads the slopes of that many heads and the rest slope 0. `asymmetric` is for
/// bidirectional models: heads pair up and share a slope, even heads may not look back (keys before the query are
/// -inf), odd ones not ahead; heads of slope 0 see both sides.
///
/// Shapes: mask (B, *, NH, L1, L2). Cost: L1+L2-1 values a head and one pass over the mask. Accuracy: evaluated in
/// double, rounded once.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "posbias/bias/relative_bias.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/kernel/divide.hpp"

namespace posbias {

/// Options of `ALiBi`.
struct ALiBiOptions {
  Index n_heads = 0;         ///< heads, NH; required
  IndexOrAll use_n_heads{};  ///< how many of them are biased; 1 .. n_heads, default all
  bool asymmetric = false;   ///< even heads look ahead only, odd heads back only
  double divide = 1;         ///< differences of positions are divided by this; > 0
  bool learned_div = false;  ///< learn the divisor, from `divide` on; at least 1e-8
};

/// Adds a penalty that grows with the distance of query and key (hook `mod_mask`). Parameters: "div" (), the
/// logarithm of the divisor, if learned_div.
template <class Scalar>
class ALiBi : public RelativeBias<ALiBi<Scalar>, Scalar, Divide<Scalar>> {
  using Base = RelativeBias<ALiBi, Scalar, Divide<Scalar>>;

 public:
  using Options = ALiBiOptions;  ///< what it is made from
  using typename Base::Gradients;
  static constexpr std::string_view name = "ALiBi";  ///< in messages

  /// Throws OptionError. Nothing is random, so the seed is not used.
  explicit ALiBi(const Options& options, std::uint64_t /*seed*/ = 0)
      : Base(Divide<Scalar>(name, options.divide, options.learned_div)), options_(options) {
    if (options.n_heads < 1)
      detail::fail<OptionError>(name, ": n_heads = ", options.n_heads, "; it is required, and must be positive");
    const Index used = options.use_n_heads.of(options.n_heads);
    if (used < 1 || used > options.n_heads)
      detail::fail<OptionError>(name, ": use_n_heads = ", used, "; it must be from 1 to n_heads = ", options.n_heads);
    options_.use_n_heads = used;
    slopes_ = get_slopes(used);
    if (options.asymmetric)
      for (std::size_t h = 1; h < slopes_.size(); h += 2) slopes_[h] = slopes_[h - 1];
    slopes_.resize(static_cast<std::size_t>(options.n_heads), 0);
  }

  [[nodiscard]] const Options& options() const { return options_; }  ///< with defaults filled in
  [[nodiscard]] Index n_heads() const { return options_.n_heads; }   ///< NH

  /// The slopes of an ALiBi with this many heads, all used.
  [[nodiscard]] static std::vector<double> get_slopes(Index heads) {
    if (heads < 1) detail::fail<OptionError>(name, "::get_slopes: heads = ", heads, "; it must be positive");
    Index power = 1;
    while (power <= heads / 2) power *= 2;
    std::vector<double> slopes;
    for (Index i = 1; i <= power; ++i)
      slopes.push_back(std::exp2(-8 * static_cast<double>(i) / static_cast<double>(power)));
    for (Index i = 1; power + i <= heads; ++i)
      slopes.push_back(std::exp2(-4 * static_cast<double>(2 * i - 1) / static_cast<double>(power)));
    return slopes;
  }

  /// The bias (NH, i, j) of the last i of j tokens as queries, as in x-transformers and zeta.
  [[nodiscard]] auto get_bias(Index i, Index j) const {
    return this->bias(i, j, {.q = Positions::range(j - i), .caller = "get_bias"});
  }
  /// The same.
  [[nodiscard]] auto operator()(Index i, Index j) const { return get_bias(i, j); }

  /// The bias (heads, relative.size()) of some heads at key minus query positions.
  void evaluate(std::span<const double> relative, Index head, Index heads, Scalar* values) const {
    const double divisor = this->parameters_.divisor();
    std::vector<double> distances(relative.size());
    for (std::size_t d = 0; d < relative.size(); ++d) distances[d] = std::abs(relative[d]) / divisor;
    for (Index h = head; h < head + heads; ++h) {
      Scalar* value = values + (h - head) * static_cast<Index>(relative.size());
      for (std::size_t d = 0; d < relative.size(); ++d) value[d] = static_cast<Scalar>(penalty(h, distances[d]));
      if (!is_directional(h)) continue;
      for (std::size_t d = 0; d < relative.size(); ++d)
        value[d] = detail::visible_or_hidden(!is_masked(h, relative[d]), value[d]);
    }
  }

  /// Whether the bias may be -inf.
  [[nodiscard]] bool hides() const { return options_.asymmetric; }

  /// Adjoint of `evaluate`: with y = |r| / divisor the bias is -slope·y; what is masked does not move.
  void evaluate_backward(std::span<const double> relative, Index head, Index heads, const double* grad_values,
                         Gradients& grads) const {
    const double divisor = this->parameters_.divisor();
    double sum = 0;
    for (Index h = head; h < head + heads; ++h)
      for (const double r : relative) {
        const double grad = *grad_values++;
        if (!is_masked(h, r)) sum += grad * penalty(h, std::abs(r) / divisor);
      }
    this->parameters_.backward(sum, grads);
  }

 private:
  [[nodiscard]] double slope(Index h) const { return slopes_[static_cast<std::size_t>(h)]; }

  /// Never -0, nor 0 times infinity.
  [[nodiscard]] double penalty(Index h, double distance) const { return slope(h) == 0 ? 0 : 0 - slope(h) * distance; }

  [[nodiscard]] bool is_directional(Index h) const { return options_.asymmetric && h < options_.use_n_heads; }

  /// `relative` is key minus query.
  [[nodiscard]] bool is_masked(Index h, double relative) const {
    return is_directional(h) && (h % 2 == 0 ? relative < 0 : relative > 0);
  }

  Options options_;
  std::vector<double> slopes_;  // one a head
};

}  // namespace posbias
