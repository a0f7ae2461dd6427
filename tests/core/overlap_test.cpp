// SPDX-License-Identifier: MIT
#include "posbias/core/overlap.hpp"

#include <map>
#include <set>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Index;
using posbias::detail::MemoryRegion;
using posbias::detail::overlaps_itself;
using posbias::detail::share_element;

namespace {

alignas(64) char memory[1 << 16];

struct Strided {
  Index first, element;  // in bytes
  std::vector<Index> sizes, strides;

  [[nodiscard]] MemoryRegion region() const {
    MemoryRegion result(memory + first, static_cast<std::size_t>(element));
    for (std::size_t d = 0; d < sizes.size(); ++d) result.add(sizes[d], strides[d]);
    return result;
  }

  // How often each byte belongs to an element.
  [[nodiscard]] std::map<Index, int> bytes() const {
    std::map<Index, int> result;
    std::vector<Index> index(sizes.size());
    Index count = 1;
    for (const Index size : sizes) count *= size;
    for (Index i = 0; i < count; ++i) {
      Index rest = i, offset = 0;
      for (std::size_t d = sizes.size(); d-- > 0;) {
        offset += rest % sizes[d] * strides[d];
        rest /= sizes[d];
      }
      for (Index byte = 0; byte < element; ++byte) ++result[first + offset * element + byte];
    }
    return result;
  }
};

bool meet(const Strided& a, const Strided& b) {
  const auto one = a.bytes(), other = b.bytes();
  return std::any_of(one.begin(), one.end(), [&](const auto& byte) { return other.count(byte.first) > 0; });
}

bool repeats(const Strided& a) {
  const auto bytes = a.bytes();
  return std::any_of(bytes.begin(), bytes.end(), [](const auto& byte) { return byte.second > 1; });
}

}  // namespace

TEST_CASE("overlap: q, k and v of one fused buffer are apart, and meet the whole") {
  // (B 2, L 5, NH 3 + 2·1, H 8)
  const auto part = [](Index first, Index heads) {
    return Strided{4 * first * 8, 4, {2, 5, heads, 8}, {5 * 5 * 8, 5 * 8, 8, 1}};
  };
  const Strided q = part(0, 3), k = part(3, 1), v = part(4, 1), qk = part(2, 2);
  CHECK_FALSE(share_element(q.region(), k.region()));
  CHECK_FALSE(share_element(k.region(), v.region()));
  CHECK_FALSE(share_element(v.region(), q.region()));
  CHECK(share_element(q.region(), qk.region()));
  CHECK(share_element(qk.region(), k.region()));
  CHECK_FALSE(share_element(qk.region(), v.region()));
}

TEST_CASE("overlap: as counted byte by byte, for any strides, signs, sizes and types") {
  posbias_test::Numbers numbers(1);
  const auto draw = [&](Index count) { return static_cast<Index>(numbers.below(static_cast<std::uint64_t>(count))); };
  int together = 0, folded = 0;
  for (int round = 0; round < 4000; ++round) {
    const auto tensor = [&] {
      Strided result{8192 + draw(200), Index{1} << draw(4), {}, {}};
      for (Index rank = draw(4); rank > 0; --rank) {
        result.sizes.push_back(draw(6));
        result.strides.push_back(draw(3) == 0 ? 6 * draw(9) : draw(25) - 7);
      }
      return result;
    };
    const Strided a = tensor(), b = tensor();
    CAPTURE(round, a.first, a.element, a.sizes, a.strides, b.first, b.element, b.sizes, b.strides);
    REQUIRE(share_element(a.region(), b.region()) == meet(a, b));
    REQUIRE(share_element(b.region(), a.region()) == meet(a, b));
    REQUIRE(overlaps_itself(a.region()) == repeats(a));
    together += meet(a, b);
    folded += repeats(a);
  }
  CHECK((together > 400 && together < 3600));  // both answers were drawn
  CHECK((folded > 400 && folded < 3600));
}
