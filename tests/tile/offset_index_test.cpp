// SPDX-License-Identifier: MIT
#include "posbias/tile/offset_index.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/draw_positions.hpp"

using posbias::Index;
using posbias::LogitTile;
using posbias::PairLocations;
using posbias::PairPositions;
using posbias::Positions;
using posbias::detail::ColumnSlice;
using posbias::detail::RelativeColumns;
using posbias_test::draw;
using posbias_test::draw_positions;
using posbias_test::Numbers;

namespace {

PairLocations locate(const PairPositions& at, Index batches, Index queries, Index keys) {
  posbias::detail::Leading leading;
  leading.rank = 1;
  leading.sizes[0] = batches;
  return {{"M", "hook"}, at, leading, queries, keys};
}

/// The difference of a query and a key of a batch entry, pair by pair.
double difference(const PairLocations& at, Index n, Index query, Index key) {
  const Index i = query - at.q.first(), j = key - at.k.first();
  if (at.q.integral() && at.k.integral()) return static_cast<double>(at.k.integer(n, j) - at.q.integer(n, i));
  return at.k.real(n, j) - at.q.real(n, i);
}

/// A tile, of which only the place counts here.
LogitTile<const float> tile_at(Index n, Index query, Index queries, Index key, Index keys) {
  return {nullptr, 0, 0, 0, n, 0, 1, query, queries, key, keys};
}

/// Each run of queries reads columns from the one that a piece begins at: a real one, also where keys are not in runs.
void check_pieces(const RelativeColumns& columns, const PairLocations& at, const LogitTile<const float>& tile) {
  const auto pieces = columns.pieces(tile);
  const auto relative = columns.relative();
  std::size_t wrong = 0;
  columns.for_each_run_of_queries(tile, [&](Index query, Index queries, Index column) {
    for (Index i = 0; i < queries; ++i)
      for (const auto& piece : pieces) {
        const Index first = column - i + piece.column;
        if (first < 0 || first >= std::ssize(relative)) ++wrong;
        for (Index j = 0; j < piece.count; ++j) {
          const Index read = first + (piece.places == nullptr ? j : static_cast<Index>(piece.places[j]));
          const double expected = difference(at, tile.batch, tile.query + query + i, tile.key + piece.key + j);
          if (read < 0 || read >= std::ssize(relative) || relative[static_cast<std::size_t>(read)] != expected) ++wrong;
        }
      }
  });
  CHECK(wrong == 0);
}

/// Every pair of a tile that has a difference is in one slice, or row, that gives it; no other is.
void check_tile(const RelativeColumns& columns, const PairLocations& at, const LogitTile<const float>& tile) {
  const auto pairs = static_cast<std::size_t>(tile.queries * tile.keys);
  std::vector<int> in_slices(pairs), in_rows(pairs), expected(pairs);
  std::size_t wrong = 0;
  // Query and key are counted within the tile.
  const auto visit = [&](std::vector<int>& visits, Index query, Index key, double relative) {
    if (query < 0 || query >= tile.queries || key < 0 || key >= tile.keys) {
      ++wrong;
      return;
    }
    ++visits[static_cast<std::size_t>(query * tile.keys + key)];
    const bool located = tile.query + query >= at.q.first() && tile.key + key >= at.k.first();
    if (!located || relative != difference(at, tile.batch, tile.query + query, tile.key + key)) ++wrong;
  };
  if (columns.numbered())
    columns.for_each_slice(tile, [&](const ColumnSlice& slice) {
      for (Index s = 0; s < slice.count; ++s) {
        const auto column = static_cast<std::size_t>(slice.column + s);
        if (column < columns.relative().size())
          visit(in_slices, slice.query, slice.key + s, columns.relative()[column]);
        else
          ++wrong;
      }
    });
  columns.for_each_row(tile, [&](Index query, Index first_key, std::span<const double> relative) {
    for (std::size_t j = 0; j < relative.size(); ++j)
      visit(in_rows, query, first_key + static_cast<Index>(j), relative[j]);
  });
  for (Index i = 0; i < tile.queries; ++i)
    for (Index j = 0; j < tile.keys; ++j)
      expected[static_cast<std::size_t>(i * tile.keys + j)] =
          tile.query + i >= at.q.first() && tile.key + j >= at.k.first() ? 1 : 0;
  CHECK(wrong == 0);
  CHECK(in_rows == expected);
  if (columns.numbered()) CHECK(in_slices == expected);
  if (columns.in_runs()) check_pieces(columns, at, tile);
}

/// Checks columns and some tiles; returns whether there are columns.
bool check_columns(const PairPositions& positions, Index batches, Index queries, Index keys, Numbers& numbers) {
  const PairLocations at = locate(positions, batches, queries, keys);
  const RelativeColumns columns(at);
  std::set<double> occurring;
  for (Index n = 0; n < batches; ++n)
    for (Index i = at.q.first(); i < queries; ++i)
      for (Index j = at.k.first(); j < keys; ++j) occurring.insert(difference(at, n, i, j));
  const auto most = static_cast<std::size_t>(4 * (at.q.count() + at.k.count()));
  CHECK(columns.numbered() == (!occurring.empty() && occurring.size() <= most));
  const auto relative = columns.relative();
  CHECK(relative.size() <= most);
  CHECK(std::adjacent_find(relative.begin(), relative.end(), std::greater_equal<>()) == relative.end());  // ascending

  check_tile(columns, at, tile_at(batches - 1, 0, queries, 0, keys));
  for (int repeat = 0; repeat < 8; ++repeat) {
    const Index n = draw(numbers, batches), i = draw(numbers, queries), j = draw(numbers, keys);
    check_tile(columns, at, tile_at(n, i, 1 + draw(numbers, queries - i), j, 1 + draw(numbers, keys - j)));
  }
  return columns.numbered();
}

/// `position(i)` for i in [0, count).
template <class Position>
Positions list(Index count, const Position& position) {
  Eigen::Tensor<decltype(position(Index{0})), 1> values(count);
  for (Index i = 0; i < count; ++i) values(i) = position(i);
  return values;
}

TEST_CASE("every query and key of a tile reads the column of its difference, once") {
  Numbers numbers(13);
  int with_columns = 0, without = 0;
  for (int scene = 0; scene < 400; ++scene) {
    INFO("scene " << scene);
    const Index batches = 1 + draw(numbers, 3), queries = 1 + draw(numbers, 40), keys = 1 + draw(numbers, 40);
    const PairPositions at{.q = draw_positions(numbers, batches, queries, true),
                           .k = draw_positions(numbers, batches, keys, true)};
    ++(check_columns(at, batches, queries, keys, numbers) ? with_columns : without);
  }
  CHECK(with_columns > 100);
  CHECK(without > 50);
}

TEST_CASE("there are no columns where there are more than four differences a token") {
  Numbers numbers(17);
  const auto cubes = [](auto unit) { return [=](Index i) { return unit * static_cast<decltype(unit)>(i * i * i); }; };
  CHECK_FALSE(check_columns({.q_k = list(40, cubes(std::int64_t{5}))}, 1, 40, 40, numbers));
  CHECK_FALSE(check_columns({.q_k = list(40, cubes(0.3125))}, 1, 40, 40, numbers));
  // As many as 4·(L1+L2) with 8 queries and 8 keys: 64 differences at 64 columns. One key more, and there are none.
  const auto apart = [](Index tokens) {
    return list(tokens, [](Index i) { return static_cast<std::int64_t>(1000 * i); });
  };
  CHECK(check_columns({.k = apart(8)}, 1, 8, 8, numbers));
  CHECK_FALSE(check_columns({.k = apart(9)}, 1, 8, 9, numbers));
}

TEST_CASE("runs of keys, holes and rows of other lengths in other batch entries") {
  Numbers numbers(19);
  Eigen::Tensor<std::int64_t, 2> packed(3, 30);
  for (Index n = 0; n < 3; ++n)
    for (Index i = 0; i < 30; ++i) packed(n, i) = i % (7 + n);
  CHECK(check_columns({.q_k = packed}, 3, 30, 30, numbers));
  CHECK(check_columns({.q = Positions::range(100), .k = packed}, 3, 4, 33, numbers));
  CHECK(check_columns({.k = list(20, [](Index i) { return std::int64_t{100} + i + i / 6; })}, 2, 9, 25, numbers));
  CHECK(check_columns({.q_k = list(20, [](Index i) { return std::int64_t{300} - i; })}, 2, 20, 20, numbers));
  CHECK(check_columns({.q_k = list(30, [](Index i) { return 0.5 * static_cast<double>(i); })}, 2, 30, 30, numbers));
  // Beyond 2^53 integers are still subtracted exactly.
  const Index far = Index{1} << 60;
  CHECK(check_columns({.q = Positions::range(far + 1), .k = Positions::range(far)}, 1, 5, 7, numbers));
  // Batch entries far apart, whose keys are not in runs.
  Eigen::Tensor<std::int64_t, 2> apart(3, 20);
  for (Index n = 0; n < 3; ++n)
    for (Index i = 0; i < 20; ++i) apart(n, i) = (n - 1) * 3 * far + 7 * i % 20;
  CHECK(check_columns({.q_k = apart}, 3, 20, 20, numbers));
}

TEST_CASE("tokens without a position, and none with one, have no columns") {
  Numbers numbers(23);
  const auto none = list(0, [](Index i) { return std::int64_t{i}; });
  CHECK_FALSE(check_columns({.q = none}, 2, 5, 7, numbers));
  CHECK_FALSE(check_columns({.k = none}, 2, 5, 7, numbers));
  const auto some = [](Index count) { return list(count, [](Index i) { return std::int64_t{100} + 3 * i; }); };
  CHECK(check_columns({.q = some(3), .k = some(4)}, 2, 5, 7, numbers));
  CHECK(check_columns({.q = some(1), .k = some(1)}, 2, 5, 7, numbers));
}

TEST_CASE("differences whose bits have much in common are still found") {
  // Multiples of 2971215073 · 2^-52 once met in one place of the hash table; so might powers of two and tiny numbers.
  Numbers numbers(29);
  for (const double unit : {2971215073 * 0x1p-52, 0x1p-52, 0x1p-1000, 0x1p900, 4294967296.5}) {
    INFO("unit " << unit);
    const auto multiples = list(300, [=](Index i) { return unit * static_cast<double>(i); });
    CHECK(check_columns({.q_k = multiples}, 1, 300, 300, numbers));
  }
  // -0 and 0 are one column.
  const auto zeros = list(4, [](Index i) { return i % 2 == 0 ? 0.25 : -0.25; });
  CHECK(check_columns({.q_k = zeros}, 1, 4, 4, numbers));
}

}  // namespace
