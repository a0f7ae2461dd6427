// SPDX-License-Identifier: MIT
/// \file
/// Angles of sinusoids and rotations: angle(p, i) = p / divisor · base^(-2i / dim).
///
/// Angles, sines and cosines are computed in double and rounded once to the scalar of the tensors, so float results
/// are within 6e-8 of the exact value at every position below 2^24 (test `frequencies`), where an angle computed in
/// float is off by 8e-3 at position 131 072 already.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "posbias/core/index.hpp"
#include "posbias/kernel/product.hpp"

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

/// One row of sines and cosines for each position.
template <class Scalar>
void fill_sines_and_cosines(std::span<const double> positions, double divisor, std::span<const double> frequencies,
                            PairLayout layout, Index row_stride, Scalar* rows) {
  for (std::size_t p = 0; p < positions.size(); ++p, rows += row_stride) {
    const double scaled = positions[p] / divisor;
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      Scalar* pair = rows + static_cast<Index>(i) * layout.step;
      const double angle = scaled * frequencies[i];
      pair[0] = static_cast<Scalar>(std::sin(angle));
      pair[layout.cosine] = static_cast<Scalar>(std::cos(angle));
    }
  }
}

/// Sines and cosines of positions as columns: (frequencies, columns), rows padded with zeros to whole lanes.
template <class Scalar>
struct SinusoidColumns {
  std::vector<Scalar> sines, cosines;
  Index stride;
};

/// Makes `SinusoidColumns`. An integer position is an anchor, a multiple of 32, and a step from there: the sines and
/// cosines of few anchors and of 32 steps give those of a long range by one complex product each, as close to the truth
/// as the rounding of the angle is. What a position gets depends on nothing but the position.
class SinusoidMaker {
 public:
  SinusoidMaker(std::span<const double> frequencies, double divisor)
      : frequencies_(frequencies), divisor_(divisor), steps_(frequencies.size() * anchor) {}

  [[nodiscard]] double angle(double position, std::size_t f) const { return position / divisor_ * frequencies_[f]; }

  /// Positions are distinct and ascend.
  template <class Scalar>
  [[nodiscard]] SinusoidColumns<Scalar> make(std::span<const double> positions) {
    SinusoidColumns<Scalar> result;
    result.stride = whole_lanes<Scalar>(static_cast<Index>(positions.size()));
    result.sines.resize(frequencies_.size() * static_cast<std::size_t>(result.stride));
    result.cosines.resize(result.sines.size());
    for (std::size_t begin = 0, end = 0; begin < positions.size(); begin = end) {
      const double base = anchor_of(positions[begin]);
      for (end = begin + 1; end < positions.size() && anchor_of(positions[end]) == base;) ++end;
      fill(base, positions.subspan(begin, end - begin), result, begin);
    }
    return result;
  }

 private:
  static constexpr std::size_t anchor = 32;
  struct Pair {
    double sine, cosine;
  };

  [[nodiscard]] Pair pair(double position, std::size_t f) const {
    const double theta = angle(position, f);
    return {std::sin(theta), std::cos(theta)};
  }

  /// The multiple of 32 below an integer; other reals are anchors of their own.
  static double anchor_of(double position) {
    return position == std::floor(position) ? std::floor(position / anchor) * anchor : position;
  }

  /// Columns first, first + 1, ... of positions that share an anchor.
  template <class Scalar>
  void fill(double base, std::span<const double> positions, SinusoidColumns<Scalar>& to, std::size_t first) {
    std::array<std::size_t, anchor> step;
    for (std::size_t c = 0; c < positions.size(); ++c) {
      step[c] = static_cast<std::size_t>(positions[c] - base);
      compute_step(step[c]);
    }
    for (std::size_t f = 0; f < frequencies_.size(); ++f) {
      const Pair at = pair(base, f);
      const Pair* steps = steps_.data() + f * anchor;
      Scalar* sine = to.sines.data() + f * static_cast<std::size_t>(to.stride) + first;
      Scalar* cosine = to.cosines.data() + f * static_cast<std::size_t>(to.stride) + first;
      for (std::size_t c = 0; c < positions.size(); ++c) {
        const Pair by = steps[step[c]];
        sine[c] = static_cast<Scalar>(at.sine * by.cosine + at.cosine * by.sine);
        cosine[c] = static_cast<Scalar>(at.cosine * by.cosine - at.sine * by.sine);
      }
    }
  }

  void compute_step(std::size_t step) {
    if (known_[step]) return;
    known_[step] = true;
    for (std::size_t f = 0; f < frequencies_.size(); ++f)
      steps_[f * anchor + step] = pair(static_cast<double>(step), f);
  }

  std::span<const double> frequencies_;
  double divisor_;
  std::vector<Pair> steps_;  // (frequencies, 32), where known
  std::array<bool, anchor> known_{};
};

}  // namespace detail
}  // namespace posbias
