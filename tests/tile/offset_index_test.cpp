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

using posbias::CheckedPairPositions;
using posbias::Index;
using posbias::LogitTile;
using posbias::PairPositions;
using posbias::Positions;
using posbias::detail::OffsetIndex;
using posbias::detail::OffsetSpan;
using posbias_test::draw;
using posbias_test::draw_positions;
using posbias_test::Numbers;

namespace {

CheckedPairPositions locate(const PairPositions& at, Index batches, Index queries, Index keys) {
  posbias::detail::BatchShape leading;
  leading.rank = 1;
  leading.sizes[0] = batches;
  return {{"M", "hook"}, at, leading, queries, keys};
}

/// The difference of a query and a key of a batch entry, pair by pair.
double difference(const CheckedPairPositions& at, Index n, Index query, Index key) {
  const Index i = query - at.q.first(), j = key - at.k.first();
  if (at.q.integral() && at.k.integral()) return static_cast<double>(at.k.integer(n, j) - at.q.integer(n, i));
  return at.k.real(n, j) - at.q.real(n, i);
}

/// A tile, of which only the place counts here.
LogitTile<const float> tile_at(Index n, Index query, Index queries, Index key, Index keys) {
  return {nullptr, 0, 0, 0, n, 0, 1, query, queries, key, keys};
}

/// Each run of queries reads entries from the one that a run begins at: a real one, also where keys are not in runs.
void check_pieces(const OffsetIndex& entries, const CheckedPairPositions& at, const LogitTile<const float>& tile) {
  const auto runs = entries.runs(tile);
  const auto relative = entries.offsets();
  std::size_t wrong = 0;
  entries.for_each_run_of_queries(tile, [&](Index query, Index queries, Index entry) {
    for (Index i = 0; i < queries; ++i)
      for (const auto& run : runs) {
        const Index first = entry - i + run.entry;
        if (first < 0 || first >= std::ssize(relative)) ++wrong;
        for (Index j = 0; j < run.count; ++j) {
          const Index read = first + (run.places == nullptr ? j : static_cast<Index>(run.places[j]));
          const double expected = difference(at, tile.batch, tile.query + query + i, tile.key + run.key + j);
          if (read < 0 || read >= std::ssize(relative) || relative[static_cast<std::size_t>(read)] != expected) ++wrong;
        }
      }
  });
  CHECK(wrong == 0);
}

/// Every pair of a tile that has a difference is in one span, or row, that gives it; no other is.
void check_tile(const OffsetIndex& entries, const CheckedPairPositions& at, const LogitTile<const float>& tile) {
  const auto pairs = static_cast<std::size_t>(tile.queries * tile.keys);
  std::vector<int> in_spans(pairs), in_rows(pairs), expected(pairs);
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
  if (entries.indexed())
    entries.for_each_span(tile, [&](const OffsetSpan& span) {
      for (Index s = 0; s < span.count; ++s) {
        const auto entry = static_cast<std::size_t>(span.entry + s);
        if (entry < entries.offsets().size())
          visit(in_spans, span.query, span.key + s, entries.offsets()[entry]);
        else
          ++wrong;
      }
    });
  entries.for_each_row(tile, [&](Index query, Index first_key, std::span<const double> relative) {
    for (std::size_t j = 0; j < relative.size(); ++j)
      visit(in_rows, query, first_key + static_cast<Index>(j), relative[j]);
  });
  for (Index i = 0; i < tile.queries; ++i)
    for (Index j = 0; j < tile.keys; ++j)
      expected[static_cast<std::size_t>(i * tile.keys + j)] =
          tile.query + i >= at.q.first() && tile.key + j >= at.k.first() ? 1 : 0;
  CHECK(wrong == 0);
  CHECK(in_rows == expected);
  if (entries.indexed()) CHECK(in_spans == expected);
  if (entries.in_runs()) check_pieces(entries, at, tile);
}

/// Checks entries and some tiles; returns whether there are entries.
bool check_columns(const PairPositions& positions, Index batches, Index queries, Index keys, Numbers& numbers) {
  const CheckedPairPositions at = locate(positions, batches, queries, keys);
  const OffsetIndex entries(at);
  std::set<double> occurring;
  for (Index n = 0; n < batches; ++n)
    for (Index i = at.q.first(); i < queries; ++i)
      for (Index j = at.k.first(); j < keys; ++j) occurring.insert(difference(at, n, i, j));
  const auto most = static_cast<std::size_t>(4 * (at.q.count() + at.k.count()));
  CHECK(entries.indexed() == (!occurring.empty() && occurring.size() <= most));
  const auto relative = entries.offsets();
  CHECK(relative.size() <= most);
  CHECK(std::adjacent_find(relative.begin(), relative.end(), std::greater_equal<>()) == relative.end());  // ascending

  check_tile(entries, at, tile_at(batches - 1, 0, queries, 0, keys));
  for (int repeat = 0; repeat < 8; ++repeat) {
    const Index n = draw(numbers, batches), i = draw(numbers, queries), j = draw(numbers, keys);
    check_tile(entries, at, tile_at(n, i, 1 + draw(numbers, queries - i), j, 1 + draw(numbers, keys - j)));
  }
  return entries.indexed();
}

/// `position(i)` for i in [0, count).
template <class Position>
Positions list(Index count, const Position& position) {
  Eigen::Tensor<decltype(position(Index{0})), 1> values(count);
  for (Index i = 0; i < count; ++i) values(i) = position(i);
  return values;
}

TEST_CASE("every query and key of a tile reads the entry of its difference, once") {
  Numbers numbers(13);
  int with_columns = 0, without = 0;
  for (int position_case = 0; position_case < 400; ++position_case) {
    INFO("scene " << position_case);
    const Index batches = 1 + draw(numbers, 3), queries = 1 + draw(numbers, 40), keys = 1 + draw(numbers, 40);
    const PairPositions at{.q = draw_positions(numbers, batches, queries, true),
                           .k = draw_positions(numbers, batches, keys, true)};
    ++(check_columns(at, batches, queries, keys, numbers) ? with_columns : without);
  }
  CHECK(with_columns > 100);
  CHECK(without > 50);
}

TEST_CASE("there are no entries where there are more than four differences a token") {
  Numbers numbers(17);
  const auto cubes = [](auto unit) { return [=](Index i) { return unit * static_cast<decltype(unit)>(i * i * i); }; };
  CHECK_FALSE(check_columns({.q_k = list(40, cubes(std::int64_t{5}))}, 1, 40, 40, numbers));
  CHECK_FALSE(check_columns({.q_k = list(40, cubes(0.3125))}, 1, 40, 40, numbers));
  // As many as 4·(L1+L2) with 8 queries and 8 keys: 64 differences at 64 entries. One key more, and there are none.
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

TEST_CASE("tokens without a position, and none with one, have no entries") {
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
  // -0 and 0 are one entry.
  const auto zeros = list(4, [](Index i) { return i % 2 == 0 ? 0.25 : -0.25; });
  CHECK(check_columns({.q_k = zeros}, 1, 4, 4, numbers));
}

}  // namespace
