// SPDX-License-Identifier: MIT
/// \file
/// Sinusoidal position embedding (Vaswani et al., 2017, arXiv 1706.03762).
///
///     angle(p, i) = p / divide · 10000^(-2i / dim),    i in [0, dim / 2)
///
///     interleaved  [s c s c s c s c]    x(2i) += sin angle(p, i),  x(2i + 1)     += cos angle(p, i)
///     half         [s s s s c c c c]    x(i)  += sin angle(p, i),  x(i + dim/2)  += cos angle(p, i)
///
/// Shapes: x (B, *, L, H = dim). Cost: O(L·dim) sines and cosines for a batch that shares its positions, and one
/// pass over x. Accuracy: sines and cosines are rounded once from double (see kernel/frequencies.hpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "posbias/embedding/additive_embedding.hpp"
#include "posbias/kernel/divide.hpp"
#include "posbias/kernel/frequencies.hpp"

namespace posbias {

/// Options of `Sinusoidal`.
struct SinusoidalOptions {
  Index dim = 0;                                        ///< features per token, H; required, even
  SinusoidLayout layout = SinusoidLayout::interleaved;  ///< order of sines and cosines
  double divide = 1;                                    ///< positions are divided by this; > 0
  bool learned_div = false;                             ///< learn the divisor, from `divide` on; at least 1e-8
};

/// Adds sines and cosines of the position to each token (hook `mod_x`). Parameters: "div" (), the logarithm of the
/// divisor, if learned_div.
template <class Scalar>
class Sinusoidal : public AdditiveEmbedding<Sinusoidal<Scalar>, Scalar, Divide<Scalar>> {
  using Base = AdditiveEmbedding<Sinusoidal, Scalar, Divide<Scalar>>;

 public:
  using Options = SinusoidalOptions;
  using typename Base::Gradients;
  static constexpr std::string_view name = "Sinusoidal";

  /// Throws OptionError. Nothing is random, so the seed is not used.
  explicit Sinusoidal(const Options& options, std::uint64_t /*seed*/ = 0)
      : Base(Divide<Scalar>(name, options.divide, options.learned_div)), options_(options) {
    if (options.dim < 2 || options.dim % 2 != 0)
      detail::fail<OptionError>(name, ": dim = ", options.dim, "; it is required, and must be even and positive");
    frequencies_ = detail::inverse_frequencies(options.dim / 2, options.dim, 10000);
  }

  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] Index dim() const { return options_.dim; }

  /// The rows (positions.size(), dim) that are added to tokens at these positions.
  void embed(std::span<const double> positions, Scalar* rows) const {
    detail::fill_sines_and_cosines<Scalar>(positions, this->parameters_.divisor(), frequencies_, layout(), dim(), rows);
  }

  /// Adjoint of `embed`: with y = p / divisor, d sin(y·f) = f·cos(y·f) dy and d cos(y·f) = -f·sin(y·f) dy.
  void embed_backward(std::span<const double> positions, const double* grad_rows, Gradients& grads) const {
    const double divisor = this->parameters_.divisor();
    double sum = 0;
    for (double position : positions) {
      const double scaled = position / divisor;
      for (std::size_t i = 0; i < frequencies_.size(); ++i) {
        const double* grad = grad_rows + static_cast<Index>(i) * layout().step;
        const double angle = scaled * frequencies_[i];
        sum += (grad[0] * std::cos(angle) - grad[layout().cosine] * std::sin(angle)) * angle;
      }
      grad_rows += dim();
    }
    this->parameters_.backward(sum, grads);
  }

 private:
  [[nodiscard]] detail::PairLayout layout() const { return detail::pair_layout(options_.layout, dim()); }

  Options options_;
  std::vector<double> frequencies_;
};

}  // namespace posbias
