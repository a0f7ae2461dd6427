// SPDX-License-Identifier: MIT
#include "posbias/kernel/token_blocks.hpp"

#include <cstdint>
#include <vector>

#include "support/catch.hpp"

using posbias::CheckedPositions;
using posbias::Index;
using posbias::Positions;
using posbias::detail::BatchShape;

namespace {

template <class S, int Rank>
using Tensor = Eigen::Tensor<S, Rank, Eigen::RowMajor>;

}  // namespace

TEST_CASE("blocks of tokens cover every positioned token of every batch entry once", "[token_blocks]") {
  constexpr Index batches = 2;
  for (const bool shared : {true, false})
    for (const Index tokens : {0, 1, 63, 64, 65, 131})
      for (const Index missing : {0, 3}) {
        Positions positions;
        if (shared) {
          Tensor<std::int64_t, 1> values(tokens);
          for (Index i = 0; i < tokens; ++i) values(i) = 100 + i * i;
          positions = values;
        } else {
          Tensor<std::int64_t, 2> values(batches, tokens);
          for (Index n = 0; n < batches; ++n)
            for (Index i = 0; i < tokens; ++i) values(n, i) = 1000000 * n + 100 + i * i;
          positions = values;
        }
        const CheckedPositions at({"M", "hook"}, "pos", positions, BatchShape(std::vector<Index>{batches}),
                                  tokens + missing);
        std::vector<int> seen(static_cast<std::size_t>(batches * (tokens + missing)));
        for (Index index = 0; index < posbias::detail::token_blocks(at); ++index)
          posbias::detail::visit_token_block(at, batches, index, [&](const posbias::detail::TokenBlock& block) {
            CHECK(block.positions.size() <= 64);
            CHECK_FALSE(block.positions.empty());
            for (Index n = block.first_batch; n < block.end_batch; ++n)
              for (std::size_t row = 0; row < block.positions.size(); ++row) {
                const Index token = block.first_token + static_cast<Index>(row);
                const Index i = token - missing;
                ++seen[static_cast<std::size_t>(n * (tokens + missing) + token)];
                const Index expected = (shared ? 0 : 1000000 * n) + 100 + i * i;
                if (block.positions[row] != static_cast<double>(expected)) FAIL_CHECK("token " << token);
              }
          });
        std::vector<int> expected(seen.size(), 1);
        for (Index n = 0; n < batches; ++n)
          for (Index l = 0; l < missing; ++l) expected[static_cast<std::size_t>(n * (tokens + missing) + l)] = 0;
        CHECK(seen == expected);
      }
}
