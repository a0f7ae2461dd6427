// SPDX-License-Identifier: MIT
#include "posbias/tile/visibility.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "laws/position_case.hpp"
#include "support/catch.hpp"

using posbias::CheckedPairPositions;
using posbias::Index;
using posbias::LogitTile;
using posbias::PairPositions;
using posbias::detail::CausalVisibility;
using posbias::detail::KeyRange;
using posbias_test::PositionCase;
using posbias_test::Real;
using posbias_test::Where;

namespace {

constexpr double hidden = -std::numeric_limits<double>::infinity();

CausalVisibility order_of(const PairPositions& at, Index batches, Index queries, Index keys) {
  const Index leading[] = {batches};
  return {CheckedPairPositions({"posbias", "test"}, at, posbias::detail::BatchShape(leading), queries, keys), queries,
          keys};
}

/// By definition: at the query's position or before; without a position all is seen, and by all.
bool sees(const PositionCase& position_case, const posbias_test::Shape& shape, Index n, Index i, Index j) {
  const auto query = position_case.q.at(n, i, shape.L1), key = position_case.k.at(n, j, shape.L2);
  return !query || !key || *key <= *query;
}

/// Two heads, `queries` queries and `keys` keys from some on; keys are two apart in memory, and 1 is between.
struct Tile {
  std::vector<double> memory;
  LogitTile<double> tile;

  Tile(Index n, Index query, Index queries, Index key, Index keys)
      : memory(static_cast<std::size_t>(4 * queries * keys), 1),
        tile{memory.data(), 2 * queries * keys, 2 * keys, 2, n, 1, 2, query, queries, key, keys} {}
};

/// What `visible` and `hide` say of a tile is what the positions say.
bool tile_is_right(const CausalVisibility& order, const PositionCase& position_case, const posbias_test::Shape& shape,
                   Tile at) {
  const LogitTile<double>& tile = at.tile;
  Index first = tile.keys, end = 0;
  order.apply(tile);
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < tile.queries; ++i)
      for (Index j = 0; j < tile.keys; ++j) {
        const bool seen = sees(position_case, shape, tile.batch, tile.query + i, tile.key + j);
        if (seen) first = std::min(first, j);
        if (seen) end = std::max(end, j + 1);
        if (tile.row(h, i)[2 * j] != (seen ? 1 : hidden) || tile.row(h, i)[2 * j + 1] != 1) return false;
      }
  const KeyRange range = order.visible(tile);
  return end == 0 ? range.empty() : range.begin == first && range.end == end;
}

}  // namespace

TEST_CASE("a key is seen from its position on, wherever tokens are and in whatever tile", "[attention]") {
  for (const posbias_test::Shape& shape :
       {posbias_test::Shape{2, 1, 5, 7, 8, 8}, {2, 1, 9, 4, 8, 8}, {3, 1, 7, 7, 8, 8}, {1, 1, 4, 1, 8, 8}}) {
    if (shape.L1 < 5 || shape.L2 < 4) continue;
    for (const PositionCase& position_case : posbias_test::position_cases(shape)) {
      INFO(position_case.name);
      const CausalVisibility order = order_of(position_case.pair_positions({shape.B}, {}), shape.B, shape.L1, shape.L2);
      bool right = true;
      for (Index n = 0; n < shape.B; ++n)
        for (Index query = 0; query < shape.L1; ++query)
          for (Index queries = 1; query + queries <= shape.L1; ++queries)
            for (Index key = 0; key < shape.L2; ++key)
              for (Index keys = 1; key + keys <= shape.L2; ++keys)
                right = right && tile_is_right(order, position_case, shape, Tile(n, query, queries, key, keys));
      CHECK(right);
    }
  }
}

TEST_CASE("default positions are the lower triangle, its diagonal included", "[attention]") {
  const CausalVisibility order = order_of({}, 1, 3, 4);
  Tile at(0, 0, 3, 0, 4);
  order.apply(at.tile);
  std::vector<double> seen;
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 4; ++j) seen.push_back(at.tile.row(0, i)[2 * j]);
  CHECK(seen == std::vector<double>{1, hidden, hidden, hidden, 1, 1, hidden, hidden, 1, 1, 1, hidden});
  CHECK(order.visible(at.tile).end == 3);
  CHECK(order.visible(Tile(0, 0, 1, 1, 3).tile).empty());
}

TEST_CASE("reals are in order: of both signs, zeros, neighbours, the smallest and the largest", "[attention]") {
  constexpr double tiny = std::numeric_limits<double>::denorm_min();
  const std::vector<double> values{-0x1p1022, -1e10, -2.5, -2.25, -tiny,       -0.0, 0.0,
                                   tiny,      0.1,   0.25, 2.5,   2.5 + 1e-15, 1e10, 0x1p1022};
  const auto count = static_cast<Index>(values.size());
  Eigen::Tensor<double, 1> positions(count);
  std::copy(values.begin(), values.end(), positions.data());
  const CausalVisibility order = order_of({.q_k = positions}, 1, count, count);
  Tile at(0, 0, count, 0, count);
  order.apply(at.tile);
  for (Index i = 0; i < count; ++i)
    for (Index j = 0; j < count; ++j)
      CHECK((at.tile.row(0, i)[2 * j] == 1) ==
            (values[static_cast<std::size_t>(j)] <= values[static_cast<std::size_t>(i)]));
}

TEST_CASE("integers are compared as integers, up to the last ones that are allowed", "[attention]") {
  // As doubles all of these are 2^62, or all -2^62.
  constexpr std::int64_t limit = (std::int64_t{1} << 62) - 1;
  for (const std::int64_t first : {-limit, limit - 3}) {
    Eigen::Tensor<std::int64_t, 1> positions(4);
    for (Index i = 0; i < 4; ++i) positions(i) = first + (i * 3) % 4;  // 0, 3, 2, 1
    const CausalVisibility order = order_of({.q_k = positions}, 1, 4, 4);
    Tile at(0, 0, 4, 0, 4);
    order.apply(at.tile);
    for (Index i = 0; i < 4; ++i)
      for (Index j = 0; j < 4; ++j) CHECK((at.tile.row(0, i)[2 * j] == 1) == (positions(j) <= positions(i)));
  }
}
