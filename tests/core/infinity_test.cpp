// SPDX-License-Identifier: MIT
#include "posbias/core/infinity.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace posbias::detail;

TEMPLATE_TEST_CASE("-inf is written and known by its bits", "", float, double) {
  using S = TestType;
  using Limits = std::numeric_limits<S>;
  CHECK(minus_infinity<S>() == -Limits::infinity());
  CHECK(is_minus_infinity(-Limits::infinity()));
  for (const S other : {Limits::infinity(), Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::lowest(), S(0)})
    CHECK_FALSE(is_minus_infinity(other));
  CHECK(visible_or_hidden(true, S(3)) == 3);
  CHECK(std::isnan(visible_or_hidden(true, Limits::quiet_NaN())));
  CHECK(std::signbit(visible_or_hidden(true, S(-0.0))));
  CHECK(visible_or_hidden(false, Limits::quiet_NaN()) == -Limits::infinity());
}

TEMPLATE_TEST_CASE("one value that is not finite is found, wherever it is", "", float, double) {
  using S = TestType;
  using Limits = std::numeric_limits<S>;
  const std::vector<S> finite{Limits::lowest(),
                              (Limits::max)(),
                              Limits::denorm_min(),
                              -Limits::denorm_min(),
                              0,
                              S(-0.0),
                              1,
                              -1,
                              (Limits::min)(),
                              2,
                              3};
  const auto count = static_cast<posbias::Index>(finite.size());
  CHECK(all_finite(finite.data(), count));
  CHECK(all_finite(finite.data(), 0));
  for (const S odd : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), -Limits::quiet_NaN(),
                      std::bit_cast<S>(infinity_bits<S> + 1)})
    for (std::size_t place = 0; place < finite.size(); ++place) {
      std::vector<S> values = finite;
      values[place] = odd;
      CHECK_FALSE(all_finite(values.data(), count));
    }
}

TEST_CASE("values are all zero if none is another number") {
  const std::vector<float> values{0, 7, -0.0F, 7, 0, 7};
  CHECK(all_zero(values.data(), 3, 2));
  CHECK_FALSE(all_zero(values.data(), 2, 1));
  CHECK(all_zero(values.data(), 0, 1));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(all_zero(&nan, 1, 1));
}
