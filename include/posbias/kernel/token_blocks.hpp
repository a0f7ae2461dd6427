// SPDX-License-Identifier: MIT
/// \file
/// Blocks of tokens: what a task rotates, or adds rows to, at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "posbias/core/checked_positions.hpp"
#include "posbias/core/storage.hpp"
#include "posbias/core/view.hpp"

namespace posbias::detail {

/// A run of tokens with the same positions in a range of batch entries.
struct TokenBlock {
  static constexpr Index max_tokens = 32;
  Index first_token, first_batch, end_batch;
  std::span<const double> positions;
};

/// How many blocks the tokens with a position come in.
inline Index token_blocks(const CheckedPositions& at) {
  return at.rows() * ((at.count() + TokenBlock::max_tokens - 1) / TokenBlock::max_tokens);
}

/// Calls `visit(TokenBlock)` for block `index`. Shared positions come once, with all batch entries.
template <class Visit>
void visit_token_block(const CheckedPositions& at, Index batches, Index index, const Visit& visit) {
  const Index row = index % at.rows();
  const Index begin = index / at.rows() * TokenBlock::max_tokens;
  const Index tokens = (std::min)(TokenBlock::max_tokens, at.count() - begin);
  std::array<double, TokenBlock::max_tokens> positions;
  for (Index i = 0; i < tokens; ++i) positions[static_cast<std::size_t>(i)] = at.real(row, begin + i);
  visit(TokenBlock{at.first() + begin,
                   at.shared() ? 0 : row,
                   at.shared() ? batches : row + 1,
                   {positions.data(), static_cast<std::size_t>(tokens)}});
}

/// Where the first token of a block is in each of its batch entries.
template <class Scalar, int Trailing>
std::vector<Elements<Scalar>> block_in_batches(const TensorView<Scalar, Trailing>& tokens, const TokenBlock& block) {
  std::vector<Elements<Scalar>> result;
  for (Index n = block.first_batch; n < block.end_batch; ++n)
    result.push_back(tokens.batch(n) + block.first_token * tokens.strides[0]);
  return result;
}

}  // namespace posbias::detail
