// SPDX-License-Identifier: MIT
/// \file
/// Sinusoidal position embedding (Vaswani et al., 2017, arXiv 1706.03762).
///
///     angle(p, i) = p / divide · 10000^(-2i / dim),    i in [0, dim / 2)
///
///     interleaved  [s c s c s c s c]    x(2i) += sin angle(p, i),  x(2i + 1)     += cos angle(p, i)
///     half         [s s s s c c c c]    x(i)  += sin angle(p, i),  x(i + dim/2)  += cos angle(p, i)
///
/// Shapes: x (B, *, L, H = dim). Cost: a complex product for each pair of a position that the batch shares, and one
/// pass over x. Accuracy: sines and cosines are rounded once from double (see kernel/sin_cos.hpp).
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/embedding/additive_embedding.hpp"
#include "posbias/kernel/cos_sin_cache.hpp"
#include "posbias/kernel/divide.hpp"

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
  using Options = SinusoidalOptions;  ///< what it is made from
  using typename Base::Gradients;
  static constexpr std::string_view name = "Sinusoidal";  ///< in messages

  /// Throws OptionError. Nothing is random, so the seed is not used.
  explicit Sinusoidal(const Options& options, std::uint64_t /*seed*/ = 0)
      : Base(Divide<Scalar>(name, options.divide, options.learned_div)),
        options_(checked(options)),
        sinusoids_(detail::inverse_frequencies(options.dim / 2, options.dim, 10000), this->parameters_.divisor(),
                   options.layout) {}

  [[nodiscard]] const Options& options() const { return options_; }  ///< with defaults filled in
  [[nodiscard]] Index dim() const { return options_.dim; }           ///< features of a token, H

  /// Makes the sines and cosines of positions 0 .. length - 1 ahead: (length, dim) scalars, which copies share. Results
  /// stay the same bits. With a learned divisor the table is of use until the divisor changes. Throws OptionError.
  void reserve(Index length) { sinusoids_.reserve(name, length, this->parameters_.divisor()); }

  /// Finds the rows that are added to tokens at these positions.
  [[nodiscard]] auto rows() const { return sinusoids_.in_call(this->parameters_.divisor()); }

  /// Adjoint of `rows`: with y = p / divisor, d sin(y·f) = f·cos(y·f) dy and d cos(y·f) = -f·sin(y·f) dy.
  [[nodiscard]] auto rows_backward() const {
    return [this, maker = sinusoids_.maker(this->parameters_.divisor())](std::span<const double> positions,
                                                                         const double* grad_rows, Gradients& grads) {
      constexpr std::size_t together = 8;  // their sines and cosines in double fit the nearest cache
      const Index pairs = dim() / 2;
      Eigen::ArrayXd rows(static_cast<Index>(together) * dim());
      std::vector<double> sums(static_cast<std::size_t>(pairs));  // one for each frequency
      const auto add_row = [&](double position, const double* row, auto step, Index cosine) {
        const double scaled = position / maker->divisor();
        for (Index i = 0; i < pairs; ++i)
          sums[static_cast<std::size_t>(i)] +=
              (grad_rows[i * step] * row[pairs + i] - grad_rows[i * step + cosine] * row[i]) * scaled;
      };
      for (std::size_t p = 0; p < positions.size(); ++p, grad_rows += dim()) {
        if (p % together == 0)
          maker->fill_rows(positions.subspan(p, (std::min)(together, positions.size() - p)), SinusoidLayout::half,
                           rows.data());
        const double* row = rows.data() + static_cast<Index>(p % together) * dim();
        if (options_.layout == SinusoidLayout::interleaved)
          add_row(positions[p], row, std::integral_constant<Index, 2>(), 1);
        else
          add_row(positions[p], row, std::integral_constant<Index, 1>(), pairs);
      }
      this->parameters_.backward(std::inner_product(sums.begin(), sums.end(), maker->frequencies().begin(), 0.0),
                                 grads);
    };
  }

 private:
  static const Options& checked(const Options& options) {
    if (options.dim < 2 || options.dim % 2 != 0)
      detail::fail<OptionError>(name, ": dim = ", options.dim, "; it is required, and must be even and positive");
    return options;
  }

  Options options_;
  detail::CosSinCache<Scalar> sinusoids_;
};

}  // namespace posbias
