// SPDX-License-Identifier: MIT
#include "posbias/tile/mask_term.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "attention/attention_under_test.hpp"
#include "support/catch.hpp"

using posbias::AttentionMask;
using posbias::Index;
using posbias::LogitTile;
using posbias::MaskTerm;
using posbias::ShapeError;
using posbias::detail::AttentionShape;
using posbias_test::MaskCase;
using posbias_test::message_of;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

AttentionShape shape_of(const std::vector<Index>& leading, Index heads, Index queries, Index keys) {
  return {posbias::detail::BatchShape(leading), heads, queries, keys};
}

/// Logits (heads, queries, keys) of a tile, keys two apart in memory; -77 is between.
template <class S>
struct Tile {
  std::vector<S> memory;
  LogitTile<S> tile;

  Tile(Index n, Index head, Index heads, Index query, Index queries, Index key, Index keys)
      : memory(static_cast<std::size_t>(2 * heads * queries * keys), S(-77)),
        tile{memory.data(), 2 * queries * keys, 2 * keys, 2, n, head, heads, query, queries, key, keys} {
    for (std::size_t i = 0; i < memory.size(); i += 2) memory[i] = static_cast<S>(i) / 8;
  }
};

/// The mask adds to every logit of a tile what it is by definition.
template <class S>
bool adds(const MaskTerm& mask, const MaskCase& expected, Tile<S> at) {
  const LogitTile<S>& tile = at.tile;
  const std::vector<S> before = at.memory;
  mask.add_to(tile);
  for (std::size_t i = 0; i < at.memory.size(); ++i) {
    const auto place = static_cast<Index>(i) / 2;
    const double added = expected.at(tile.batch, tile.head + place / (tile.queries * tile.keys),
                                     tile.query + place / tile.keys % tile.queries, tile.key + place % tile.keys);
    if (at.memory[i] != before[i] + (i % 2 == 0 ? static_cast<S>(added) : S(0))) return false;
  }
  return true;
}

template <class S>
bool adds_to_all(const MaskTerm& mask, const MaskCase& expected) {
  for (Index n = 0; n < 2; ++n)
    if (!adds(mask, expected, Tile<S>(n, 0, 3, 0, 5, 0, 7)) || !adds(mask, expected, Tile<S>(n, 2, 1, 3, 2, 1, 5)))
      return false;
  return true;
}

}  // namespace

TEST_CASE("a mask broadcasts to (B, NH, L1, L2) from any number of dimensions", "[attention]") {
  const std::vector<Index> whole{2, 3, 5, 7};
  for (std::size_t rank = 1; rank <= 4; ++rank)
    for (unsigned ones = 0; ones < 1U << (rank - 1); ++ones)
      for (const MaskCase::Type type : {MaskCase::Type::floats, MaskCase::Type::doubles, MaskCase::Type::bools}) {
        std::vector<Index> sizes(whole.end() - static_cast<std::ptrdiff_t>(rank), whole.end());
        for (std::size_t d = 0; d + 1 < rank; ++d)
          if ((ones >> d & 1U) != 0) sizes[d] = 1;
        Index count = 1;
        for (const Index size : sizes) count *= size;
        MaskCase mask(type, sizes, posbias_test::numbers<double>(count, 7));
        for (std::size_t i = 0; i < mask.entries.size(); ++i) {
          if (type == MaskCase::Type::bools) mask.entries[i] = mask.entries[i] < 0 ? 0 : 1;
          if (type != MaskCase::Type::bools && i % 3 == 0) mask.entries[i] = -infinity;
        }
        INFO("rank " << rank << ", ones " << ones << ", type " << static_cast<int>(type));
        const MaskTerm broadcast("attention", mask.mask(), shape_of({2}, 3, 5, 7));
        CHECK(adds_to_all<double>(broadcast, mask));
        CHECK(adds_to_all<float>(broadcast, mask));
      }
}

TEST_CASE("a mask is of either layout, and leading dimensions of queries may be several or none", "[attention]") {
  // (B, *) = (2, 4), of which the mask has (1, 4): entry (h, i, j) of batch n is 1000 (n % 4) + 100 i + j.
  Eigen::Tensor<float, 5> mask(1, 4, 1, 5, 7);
  for (Index c = 0; c < 4; ++c)
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 7; ++j) mask(0, c, 0, i, j) = static_cast<float>(1000 * c + 100 * i + j);
  const MaskTerm broadcast("attention", mask, shape_of({2, 4}, 3, 5, 7));
  for (const Index n : {1, 3, 6}) {
    Tile<float> at(n, 1, 2, 2, 3, 1, 6);
    const std::vector<float> before = at.memory;
    broadcast.add_to(at.tile);
    for (Index place = 0; place < 2 * 3 * 6; ++place)
      CHECK(at.memory[static_cast<std::size_t>(2 * place)] ==
            before[static_cast<std::size_t>(2 * place)] +
                static_cast<float>(1000 * (n % 4) + 100 * (2 + place / 6 % 3) + 1 + place % 6));
  }
  Eigen::Tensor<float, 2> one(5, 7);
  one.setConstant(2);
  Tile<float> at(0, 0, 1, 0, 1, 0, 1);
  MaskTerm("attention", one, shape_of({}, 3, 5, 7)).add_to(at.tile);
  CHECK(at.memory[0] == 2);
}

TEST_CASE("a hidden key is -inf whatever its logit was, a visible one is left as it was", "[attention]") {
  Eigen::Tensor<bool, 1> bools(4);
  bools.setValues({false, true, false, true});
  Eigen::Tensor<double, 1> numbers(4);
  numbers.setValues({-infinity, 0, -infinity, -0.0});
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (const posbias::AttentionMask& mask : {posbias::AttentionMask(bools), posbias::AttentionMask(numbers)}) {
    std::vector<double> logits{nan, nan, infinity, -0.0};
    const LogitTile<double> tile{logits.data(), 4, 4, 1, 0, 0, 1, 0, 1, 0, 4};
    const MaskTerm broadcast("attention", mask, shape_of({}, 1, 1, 4));
    CHECK(broadcast.add_to(tile));
    CHECK(logits[0] == -infinity);
    CHECK(std::isnan(logits[1]));
    CHECK(logits[2] == -infinity);
    CHECK((logits[3] == 0 && std::signbit(logits[3])));
    CHECK_FALSE(broadcast.add_to(LogitTile<double>{&logits[3], 4, 4, 1, 0, 0, 1, 0, 1, 3, 1}));
  }
  // What is below the range of the logits' scalar counts as infinite, not what is its lowest number.
  Eigen::Tensor<double, 1> wide(2);
  wide.setValues({-1e300, static_cast<double>(std::numeric_limits<float>::lowest())});
  std::vector<float> logits{1, 1};
  CHECK(MaskTerm("attention", wide, shape_of({}, 1, 1, 2))
            .add_to(LogitTile<float>{logits.data(), 2, 2, 1, 0, 0, 1, 0, 1, 0, 2}));
  CHECK(logits[0] == -std::numeric_limits<float>::infinity());
  CHECK(logits[1] == std::numeric_limits<float>::lowest());
}

TEST_CASE("no mask adds nothing", "[attention]") {
  CHECK(AttentionMask().region().empty);
  Tile<double> at(1, 0, 3, 0, 5, 0, 7);
  const std::vector<double> before = at.memory;
  MaskTerm("attention", {}, shape_of({2}, 3, 5, 7)).add_to(at.tile);
  CHECK(at.memory == before);
}

TEST_CASE("a mask of another shape is refused", "[attention]") {
  // Whose mask it is comes before the colon; the laws check that.
  const auto refusal = [](const AttentionMask& mask, Index keys = 7) {
    const std::string text = message_of<ShapeError>([&] { MaskTerm("attention", mask, shape_of({2}, 3, 5, keys)); });
    return text.substr(std::min(text.find("mask has"), text.size()));
  };
  const auto message = [&](const std::vector<Index>& sizes, Index keys = 7) {
    Index count = 1;
    for (const Index size : sizes) count *= size;
    MaskCase mask(MaskCase::Type::bools, sizes, std::vector<double>(static_cast<std::size_t>(count)));
    return refusal(mask.mask(), keys);
  };
  const std::string need =
      "; q and k need (B, *, NH, L1, L2) with B, * = (2), NH = 3, L1 = 5, L2 = 7, of which all but L2 may be 1 or "
      "missing from the left";
  CHECK(message({7, 5}) == "mask has shape (7, 5)" + need);
  CHECK(message({5, 1}) == "mask has shape (5, 1)" + need);
  CHECK(message({1}) == "mask has shape (1)" + need);
  CHECK(message({2, 5, 7}) == "mask has shape (2, 5, 7)" + need);
  CHECK(message({3, 3, 5, 7}) == "mask has shape (3, 3, 5, 7)" + need);
  CHECK(message({2, 3, 0, 7}) == "mask has shape (2, 3, 0, 7)" + need);
  CHECK(message({1, 1, 1, 1}, 1) == "");

  const Eigen::Tensor<double, 5> deeper(1, 2, 3, 5, 7);
  CHECK(refusal(deeper) == "mask has shape (1, 2, 3, 5, 7)" + need);
}

TEST_CASE("a mask is a tensor or a map of bools, floats or doubles", "[attention]") {
  using Tensor = Eigen::Tensor<float, 2, Eigen::RowMajor>;
  static_assert(std::is_constructible_v<AttentionMask, Tensor&>);
  static_assert(std::is_constructible_v<AttentionMask, Eigen::TensorMap<Tensor>>);
  static_assert(std::is_constructible_v<AttentionMask, Tensor>);  // and keeps it
  static_assert(!std::is_constructible_v<AttentionMask, Eigen::Tensor<std::uint8_t, 2>&>, "flags or numbers?");
  Tensor entries(5, 7);
  entries.setConstant(0.5F);
  Eigen::TensorMap<Tensor> map(entries.data(), 5, 7);
  Tile<double> at(1, 0, 3, 0, 5, 0, 7);
  std::vector<double> expected = at.memory;
  MaskTerm("attention", entries, shape_of({2}, 3, 5, 7)).add_to(at.tile);
  Tile<double> same(1, 0, 3, 0, 5, 0, 7);
  MaskTerm("attention", map, shape_of({2}, 3, 5, 7)).add_to(same.tile);
  CHECK(at.memory != expected);
  CHECK(same.memory == at.memory);
  CHECK(AttentionMask(map).region().extent() == 5 * 7 * Index{sizeof(float)});
}
