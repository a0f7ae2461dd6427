// SPDX-License-Identifier: MIT
#include "posbias/kernel/dropout.hpp"

#include <cmath>
#include <cstdint>

#include "support/catch.hpp"

using posbias::Index;
using posbias::detail::Dropout;

TEST_CASE("dropout without a seed or a probability drops nothing", "[dropout]") {
  for (const Dropout& none : {Dropout(0.5, 0), Dropout(0, 0), Dropout(0, 7)}) {
    CHECK(!none.active());
  }
  CHECK(Dropout(0.5, 7).active());
  CHECK(Dropout(1e-300, 1).active());
  for (Index place = 0; place < 1000; ++place)
    if (Dropout(0, 7)(place) != 1) FAIL_CHECK("place " << place);
}

TEST_CASE("dropout drops as many as it is told, and keeps the expectation", "[dropout]") {
  constexpr Index count = 20000;
  for (const double p : {0.01, 0.1, 0.25, 0.5, 0.9, 0.999})
    for (const std::uint64_t seed : {std::uint64_t{1}, std::uint64_t{2}, ~std::uint64_t{0}}) {
      INFO("p " << p << ", seed " << seed);
      const Dropout dropout(p, seed);
      // Numbers from 0 on, and those of a large tensor.
      for (const Index first : {Index{0}, Index{1} << 33}) {
        Index dropped = 0;
        for (Index place = first; place < first + count; ++place) {
          const double factor = dropout(place);
          if (factor == 0)
            ++dropped;
          else if (factor != 1 / (1 - p))
            FAIL_CHECK("place " << place << ": " << factor);
        }
        // Within five standard deviations.
        CHECK(std::abs(static_cast<double>(dropped) - p * count) < 5 * std::sqrt(p * (1 - p) * count));
      }
    }
}

TEST_CASE("what dropout drops depends on the seed and the place alone", "[dropout]") {
  const Dropout one(0.5, 3), same(0.5, 3), other(0.5, 4);
  Index alike = 0, neighbours = 0, apart = 0;
  constexpr Index count = 20000;
  for (Index place = count; place-- > 0;) {
    if (one(place) != same(place)) FAIL_CHECK("place " << place);
    alike += one(place) == other(place);
    neighbours += one(place) == one(place + 1);
    apart += one(place) == one(place + 64);
  }
  // Halves, within five standard deviations: seeds and places are independent.
  const double most = 5 * std::sqrt(count) / 2;
  CHECK(std::abs(static_cast<double>(alike) - count / 2.0) < most);
  CHECK(std::abs(static_cast<double>(neighbours) - count / 2.0) < most);
  CHECK(std::abs(static_cast<double>(apart) - count / 2.0) < most);

  // What a smaller probability drops, a larger one drops too.
  const Dropout less(0.2, 3);
  for (Index place = 0; place < 1000; ++place)
    if (less(place) == 0 && one(place) != 0) FAIL_CHECK("place " << place);
}

TEST_CASE("a probability close to 1 is possible", "[dropout]") {
  const double p = std::nextafter(1.0, 0.0);
  const Dropout almost_all(p, 5);
  Index dropped = 0;
  for (Index place = 0; place < 1000; ++place) dropped += almost_all(place) == 0;
  CHECK(dropped == 1000);
}
