// SPDX-License-Identifier: MIT
/// \file
/// Angles of sinusoids and rotations: angle(p, i) = p / divisor · base^(-2i / dim).
///
/// Angles, sines and cosines are computed in double and rounded once to the scalar of the tensors, so float results
/// are within 6e-8 of the exact value at every position below 2^24 (test `frequencies`), where an angle computed in
/// float is off by 8e-3 at position 131 072 already.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "posbias/core/index.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias {

/// Where sines and cosines stand in a row.
enum class SinusoidLayout {
  interleaved,  ///< [s c s c s c s c]: the original paper's
  half,         ///< [s s s s c c c c]: Transformer-XL's code, tensor2tensor's
};

namespace detail {

/// base^(-2i / dim) for i in [0, count).
inline std::vector<double> inverse_frequencies(Index count, Index dim, double base) {
  std::vector<double> frequencies(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = 1 / std::pow(base, static_cast<double>(2 * i) / static_cast<double>(dim));
  return frequencies;
}

/// Where the sine and the cosine of pair i stand in a row: at i·step and i·step + cosine.
struct PairLayout {
  Index step, cosine;
};

inline PairLayout pair_layout(SinusoidLayout layout, Index dim) {
  if (layout == SinusoidLayout::interleaved) return {2, 1};
  return {1, dim / 2};
}

/// Sines and cosines of positions as columns: (frequencies, columns), rows padded with zeros to whole lanes.
template <class Scalar>
struct SinusoidColumns {
  std::vector<Scalar> sines, cosines;
  Index stride;
};

/// Makes sines and cosines of positions. The angle of an integer is the sum of those of its digits to the base 16. With
/// the sines and cosines of the last three digits made once, and neighbours that share all digits but the last, a
/// position takes little more than one complex product, as close to the truth as the rounding of the angle is. What a
/// position gets depends on nothing but the position.
class SinCos {
 public:
  /// Cost: 21 sines and cosines a frequency.
  SinCos(std::span<const double> frequencies, double divisor)
      : frequencies_(frequencies.begin(), frequencies.end()), divisor_(divisor) {
    for (std::size_t place = 0; place < places; ++place) digits_[place] = digits(unit(place));
  }

  [[nodiscard]] std::span<const double> frequencies() const { return {frequencies_.data(), frequencies_.size()}; }
  [[nodiscard]] double divisor() const { return divisor_; }
  /// Finite, so that it has a sine, also where a quotient or a product is beyond double's range.
  [[nodiscard]] double angle(double position, std::size_t f) const {
    constexpr double most = (std::numeric_limits<double>::max)();
    return std::clamp(position / divisor_ * frequencies_[f], -most, most);
  }

  /// Rows of sines and cosines.
  template <class Scalar>
  void fill_rows(std::span<const double> positions, SinusoidLayout layout, Scalar* rows) const {
    if (layout == SinusoidLayout::interleaved)
      fill_rows<SinusoidLayout::interleaved>(positions, rows);
    else
      fill_rows<SinusoidLayout::half>(positions, rows);
  }

  /// Columns of sines and cosines.
  template <class Scalar>
  [[nodiscard]] SinusoidColumns<Scalar> make(std::span<const double> positions) const {
    constexpr std::size_t block_size = lanes<Scalar>;
    const std::size_t pairs = frequencies_.size();
    SinusoidColumns<Scalar> result;
    result.stride = round_up_to_lanes<Scalar>(static_cast<Index>(positions.size()));
    result.sines.resize(pairs * static_cast<std::size_t>(result.stride));
    result.cosines.resize(result.sines.size());
    std::vector<Scalar> rows(block_size * 2 * pairs);
    for (std::size_t first = 0; first < positions.size(); first += block_size) {
      const auto some = positions.subspan(first, (std::min)(block_size, positions.size() - first));
      fill_rows(some, SinusoidLayout::half, rows.data());
      for (std::size_t f = 0; f < pairs; ++f)
        for (std::size_t c = 0; c < some.size(); ++c) {
          const std::size_t to = f * static_cast<std::size_t>(result.stride) + first + c;
          result.sines[to] = rows[c * 2 * pairs + f];
          result.cosines[to] = rows[c * 2 * pairs + pairs + f];
        }
    }
    return result;
  }

 private:
  using Row = Workspace<double>;
  static constexpr std::size_t radix = 16, places = 3;

  /// What a digit counts.
  static constexpr double unit(std::size_t place) {
    double result = 1;
    while (place-- > 0) result *= radix;
    return result;
  }

  /// The multiple of `unit` below an integer; other reals stand for themselves.
  static double below(double position, double unit) {
    return position == std::floor(position) ? std::floor(position / unit) * unit : position;
  }

  [[nodiscard]] Index width() const { return 2 * std::ssize(frequencies_); }

  /// [sines | cosines] of a position.
  void fill_directly(double position, double* row) const {
    if (position == 0) {  // as most are here, so without a call for each frequency
      std::fill_n(row, frequencies_.size(), 0.0);
      std::fill_n(row + frequencies_.size(), frequencies_.size(), 1.0);
      return;
    }
    for (std::size_t f = 0; f < frequencies_.size(); ++f) {
      const double theta = angle(position, f);
      row[f] = std::sin(theta);
      row[frequencies_.size() + f] = std::cos(theta);
    }
  }

  /// Sines, times `sign`, and cosines of the sum of two angles, given those of both.
  template <SinusoidLayout layout, class Scalar>
  void multiply(const double* __restrict a, const double* __restrict b, Scalar* __restrict to, double sign = 1) const {
    const std::size_t pairs = frequencies_.size();
    for (std::size_t f = 0; f < pairs; ++f) {
      const double sine = a[f] * b[pairs + f] + a[pairs + f] * b[f];
      const double cosine = a[pairs + f] * b[pairs + f] - a[f] * b[f];
      to[layout == SinusoidLayout::interleaved ? 2 * f : f] = static_cast<Scalar>(sign * sine);
      to[layout == SinusoidLayout::interleaved ? 2 * f + 1 : pairs + f] = static_cast<Scalar>(cosine);
    }
  }

  /// Rows of 0, unit, ..., 15·unit, by the same trick.
  [[nodiscard]] Row digits(double unit) const {
    constexpr Index step = 4;
    Row rows(static_cast<Index>(radix) * width());
    for (Index digit = 0; digit < static_cast<Index>(radix); ++digit) {
      double* row = rows.data() + digit * width();
      const Index rest = digit % step;
      if (rest == 0 || digit < step)
        fill_directly(static_cast<double>(digit) * unit, row);
      else
        multiply<SinusoidLayout::half>(row - rest * width(), rows.data() + rest * width(), row);
    }
    return rows;
  }

  /// The rows of a position without its last digits, kept for the next one, which mostly shares them.
  struct Prefix {
    std::array<std::optional<double>, places + 1> position;
    std::array<Row, places + 1> row;
  };

  /// The row of a digit of a position, 0 if the position is no integer.
  [[nodiscard]] const double* digit_row(std::size_t place, double position) const {
    const double digit = (below(position, unit(place)) - below(position, unit(place + 1))) / unit(place);
    return digits_[place].data() + static_cast<Index>(digit) * width();
  }

  /// The row of a position without its last `place` digits.
  const double* prefix_row(std::size_t place, double position, Prefix& prefix) const {
    const double rounded = below(position, unit(place));
    double* row = prefix.row[place].data();
    if (prefix.position[place] != rounded) {
      prefix.position[place] = rounded;
      if (place == places)
        fill_directly(rounded, row);
      else
        multiply<SinusoidLayout::half>(prefix_row(place + 1, position, prefix), digit_row(place, position), row);
    }
    return row;
  }

  template <SinusoidLayout layout, class Scalar>
  void fill_rows(std::span<const double> positions, Scalar* rows) const {
    Prefix prefix;
    for (Row& row : prefix.row) row.make_room(width());
    for (const double position : positions) {  // digits are those of the distance from 0
      const double distance = std::abs(position);
      multiply<layout>(prefix_row(1, distance, prefix), digit_row(0, distance), rows, std::copysign(1.0, position));
      rows += width();
    }
  }

  std::vector<double> frequencies_;
  double divisor_;
  std::array<Row, places> digits_;  // (16, [sines | cosines]) each
};

}  // namespace detail
}  // namespace posbias
