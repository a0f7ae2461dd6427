// SPDX-License-Identifier: MIT
#include "posbias/kernel/exponential.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Index;
using posbias::detail::Exponential;
using posbias::detail::Lane;
using posbias::detail::lanes;

namespace {

/// The exponential of one number, the same in every place of a lane.
template <class S>
S exponential(S x) {
  const Lane<S> result = Exponential<S>()(Lane<S>::Constant(x));
  for (Index i = 1; i < lanes<S>; ++i) CHECK((result(i) == result(0) || std::isnan(x)));
  return result(0);
}

/// From here on down, errors are absolute.
template <class S>
constexpr S smallest = std::is_same_v<S, float> ? S(1e-27) : S(1e-287);

/// The distance of the numbers around a positive one.
template <class S>
long double unit_of(long double x) {
  return std::ldexp(1.0L, std::ilogb(x) - (std::is_same_v<S, float> ? 23 : 52));
}

}  // namespace

TEMPLATE_TEST_CASE("exponentials are within 4 units in the last place, and absolutely so where they are tiny",
                   "[exponential]", float, double) {
  using S = TestType;
  posbias_test::Numbers numbers(3);
  const Exponential<S> exponential_of;
  long double worst = 0, worst_tiny = 0;
  const auto measure = [&](const Lane<S>& x) {
    const Lane<S> result = exponential_of(x);
    for (Index i = 0; i < lanes<S>; ++i) {
      const long double expected = std::exp(static_cast<long double>(x(i)));
      const long double error = std::abs(static_cast<long double>(result(i)) - expected);
      if (expected >= smallest<S>)
        worst = std::max(worst, error / unit_of<S>(expected));
      else
        worst_tiny = std::max(worst_tiny, error / unit_of<S>(smallest<S>));
    }
  };
  // Evenly over the range and a little below it, then ever closer to 0, from both sides.
  for (int i = 0; i < 4000; ++i) {
    Lane<S> x, near;
    for (Index l = 0; l < lanes<S>; ++l) {
      const double part = numbers.value() / 2 + 0.5 + numbers.value() * 0x1p-15;
      x(l) = std::min(S(0), static_cast<S>(part * 1.02) * Exponential<S>::lowest);
      near(l) = static_cast<S>(std::ldexp(numbers.value(), -static_cast<int>(numbers.below(60))));
      if (near(l) > S(64) * std::numeric_limits<S>::epsilon()) near(l) = -near(l);
    }
    measure(x);
    measure(near);
  }
  CHECK(static_cast<double>(worst) <= 4);
  CHECK(static_cast<double>(worst) > 0.4);
  CHECK(static_cast<double>(worst_tiny) <= 4);
}

TEMPLATE_TEST_CASE("exponentials are exact where a softmax needs it", "[exponential]", float, double) {
  using S = TestType;
  constexpr S infinity = std::numeric_limits<S>::infinity(), lowest = Exponential<S>::lowest;
  CHECK(exponential<S>(0) == 1);
  CHECK(exponential<S>(S(-0.0)) == 1);
  CHECK(exponential(-infinity) == 0);
  CHECK(exponential(lowest) == 0);
  CHECK(exponential(std::nextafter(lowest, -infinity)) == 0);
  CHECK(exponential(2 * lowest) == 0);
  CHECK(exponential(std::numeric_limits<S>::lowest()) == 0);
  CHECK(std::isnan(exponential(std::numeric_limits<S>::quiet_NaN())));
  CHECK(std::isnan(exponential(-std::numeric_limits<S>::quiet_NaN())));
}

TEMPLATE_TEST_CASE("an exponential does not depend on the others of its lane, and is never negative", "[exponential]",
                   float, double) {
  using S = TestType;
  constexpr S nan = std::numeric_limits<S>::quiet_NaN(), infinity = std::numeric_limits<S>::infinity();
  posbias_test::Numbers numbers(5);
  const Exponential<S> exponential_of;
  for (int i = 0; i < 100; ++i) {
    Lane<S> x;
    for (Index l = 0; l < lanes<S>; ++l)
      x(l) = static_cast<S>(numbers.value() / 2 + 0.5) * (i % 2 == 0 ? S(10) : Exponential<S>::lowest) *
             (i % 2 == 0 ? S(-1) : S(1));
    const Lane<S> result = exponential_of(x);
    for (Index l = 0; l < lanes<S>; ++l) {
      CHECK(result(l) >= 0);
      CHECK(result(l) == exponential(x(l)));
      Lane<S> company = Lane<S>::Constant(l % 2 == 0 ? nan : -infinity);
      company(l) = x(l);
      CHECK(exponential_of(company)(l) == result(l));
    }
  }
}
