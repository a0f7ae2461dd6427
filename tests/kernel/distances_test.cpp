// SPDX-License-Identifier: MIT
#include "posbias/kernel/distances.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Index;
using posbias::detail::ColumnRun;
using posbias::detail::DistanceBlock;
using posbias::detail::for_each_distance_block;

namespace {

/// Every column is in exactly one run, at its own distance and sign; distances ascend over all blocks. Returns the
/// number of runs of each block.
std::vector<std::size_t> check_blocks(const std::vector<double>& relative) {
  std::vector<std::size_t> runs;
  std::vector<int> visits(relative.size());
  double before = -1;
  for_each_distance_block(relative, [&](const DistanceBlock& block) {
    runs.push_back(block.runs.size());
    CHECK(block.distances.size() <= 128);
    for (const double distance : block.distances) {
      CHECK(distance > before);
      before = distance;
    }
    for (const ColumnRun& run : block.runs) {
      REQUIRE(run.count > 0);
      REQUIRE((run.sign == 1 || run.sign == -1));
      REQUIRE((run.distance >= 0 && run.distance + run.count <= static_cast<Index>(block.distances.size())));
      for (Index i = 0; i < run.count; ++i) {
        const auto column = static_cast<std::size_t>(run.column + run.sign * i);
        REQUIRE(column < relative.size());
        ++visits[column];
        CHECK(relative[column] ==
              static_cast<double>(run.sign) * block.distances[static_cast<std::size_t>(run.distance + i)]);
      }
    }
  });
  CHECK(visits == std::vector<int>(relative.size(), 1));
  return runs;
}

std::vector<double> range(Index first, Index end) {
  std::vector<double> values;
  for (Index value = first; value < end; ++value) values.push_back(static_cast<double>(value));
  return values;
}

using Runs = std::vector<std::size_t>;

}  // namespace

TEST_CASE("consecutive relative positions are a run of either sign", "[distances]") {
  CHECK(check_blocks({}).empty());
  CHECK(check_blocks({0}) == Runs{1});
  CHECK(check_blocks({-7}) == Runs{1});
  CHECK(check_blocks(range(-5, 6)) == Runs{2});
  CHECK(check_blocks(range(-40, 90)) == Runs{2});
  CHECK(check_blocks(range(100, 228)) == Runs{1});
  CHECK(check_blocks({-1.5, -0.5, 0.5, 1.5}) == Runs{2});
}

TEST_CASE("more than 128 distances come in blocks", "[distances]") {
  CHECK(check_blocks(range(0, 129)) == Runs{1, 1});
  CHECK(check_blocks(range(-300, 301)) == Runs{2, 2, 2});
  CHECK(check_blocks(range(-127, 128)) == Runs{2});
}

TEST_CASE("relative positions in any order, that repeat, or have one sign more often", "[distances]") {
  check_blocks({3, 1, 2, -2, 7, 0});
  check_blocks({5, 5, -5, 5, -5, 5});
  check_blocks({0, 0, 0});
  check_blocks({-1099511627776.5, 1099511627776.5, 2.25});
  // Those of one distance stay in one block, however many they are.
  CHECK(check_blocks(std::vector<double>(300, -3)).size() == 1);

  posbias_test::Numbers numbers(11);
  for (int repeat = 0; repeat < 50; ++repeat) {
    INFO("draw " << repeat);
    std::vector<double> relative(numbers.below(400));
    const std::uint64_t spread = repeat % 2 == 0 ? 20 : 10'000;
    for (double& value : relative)
      value = (static_cast<double>(numbers.below(spread)) - static_cast<double>(spread / 2)) / 4;
    const std::size_t blocks = check_blocks(relative).size();
    std::set<double> distances;
    for (const double value : relative) distances.insert(std::abs(value));
    CHECK(blocks == (distances.size() + 127) / 128);
  }
}
