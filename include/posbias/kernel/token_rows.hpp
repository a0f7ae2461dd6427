// SPDX-License-Identifier: MIT
/// \file
/// The rows of values that belong to the tokens of a block.
#pragma once

#include <Eigen/Core>
#include <array>
#include <cstddef>

#include "posbias/core/index.hpp"
#include "posbias/kernel/token_blocks.hpp"

namespace posbias::detail {

/// A row of values for each token of a block: in a table that is there, or computed into memory of its own, which the
/// next block uses again.
template <class Scalar>
class TokenRows {
 public:
  [[nodiscard]] const Scalar* operator[](Index token) const { return rows_[static_cast<std::size_t>(token)]; }

  /// The token's row is in a table.
  void refer(std::size_t token, const Scalar* row) { rows_[token] = row; }

  /// Rows (tokens, width) to be computed.
  Scalar* compute(std::size_t tokens, Index width) {
    if (computed_.size() < static_cast<Index>(tokens) * width) computed_.resize(static_cast<Index>(tokens) * width);
    for (std::size_t token = 0; token < tokens; ++token)
      rows_[token] = computed_.data() + static_cast<Index>(token) * width;
    return computed_.data();
  }

  /// Negates the first halves of rows (tokens, width), in memory of its own: rotations by [sines | cosines] go back then.
  void negate_first_halves(std::size_t tokens, Index width) {
    const auto given = rows_;
    Scalar* to = compute(tokens, width);
    for (std::size_t token = 0; token < tokens; ++token, to += width)
      for (Index i = 0; i < width / 2; ++i) {
        to[i] = -given[token][i];
        to[width / 2 + i] = given[token][width / 2 + i];
      }
  }

 private:
  std::array<const Scalar*, static_cast<std::size_t>(TokenBlock::max_tokens)> rows_;
  Eigen::ArrayX<Scalar> computed_;  // aligned, and not set to 0 first
};

}  // namespace posbias::detail
