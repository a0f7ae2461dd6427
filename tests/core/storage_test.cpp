// SPDX-License-Identifier: MIT
#include "posbias/core/storage.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "support/catch.hpp"

using posbias::Index;
using posbias::detail::Elements;
using posbias::detail::load;
using posbias::detail::round_to;
using posbias::detail::Storage;
using posbias::detail::store;
using posbias::detail::StoredFor;
using posbias::detail::widen;

namespace {

template <class S>
std::uint16_t bits(S value) {
  return std::bit_cast<std::uint16_t>(value);
}

// The value of a 16-bit number with this many bits of exponent, from its definition.
double value_of(std::uint16_t number, int exponent_bits) {
  const int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (number & 0x7fff) >> fraction_bits, fraction = number & ((1 << fraction_bits) - 1);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                                         : std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
  return (number & 0x8000) != 0 ? -magnitude : magnitude;
}

bool is_finite_number(std::uint16_t number, int exponent_bits) {
  const int mask = ((1 << exponent_bits) - 1) << (15 - exponent_bits);
  return (number & mask) != mask;
}

template <class S>
void check_conversions(int exponent_bits) {
  for (int i = 0; i < 0x10000; ++i) {
    const auto number = static_cast<std::uint16_t>(i);
    const float wide = widen(std::bit_cast<S>(number));
    if (!is_finite_number(number, exponent_bits)) {
      CHECK_FALSE(std::isfinite(wide));
      continue;
    }
    if (static_cast<double>(wide) != value_of(number, exponent_bits) || bits(round_to<S>(wide)) != number) {
      CAPTURE(number);
      FAIL("not exact, there or back");
    }
    // Halfway to the next magnitude goes to the even one, a little less or more to the nearer one.
    const auto next = static_cast<std::uint16_t>(number + 1);
    if (!is_finite_number(next, exponent_bits)) continue;
    const auto between = static_cast<float>((value_of(number, exponent_bits) + value_of(next, exponent_bits)) / 2);
    if (bits(round_to<S>(between)) != (number % 2 == 0 ? number : next) ||
        bits(round_to<S>(std::nextafter(between, wide))) != number ||
        bits(round_to<S>(std::nextafter(between, 2 * between))) != next) {
      CAPTURE(number, between);
      FAIL("not rounded to nearest even");
    }
  }
}

}  // namespace

static_assert(StoredFor<float, float> && StoredFor<Eigen::bfloat16, float> && StoredFor<Eigen::half, float>);
static_assert(StoredFor<double, double> && !StoredFor<float, double> && !StoredFor<Eigen::half, double>);
static_assert(!StoredFor<double, float> && !StoredFor<int, float>);

TEST_CASE("storage: every number of 16 bits widens exactly and rounds back; ties go to even") {
  check_conversions<Eigen::bfloat16>(8);
  check_conversions<Eigen::half>(5);
}

TEST_CASE("storage: beyond the range is infinite, NaN stays NaN, zeros keep their sign") {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(bits(round_to<Eigen::half>(65519.0F)) == 0x7bff);
  CHECK(bits(round_to<Eigen::half>(65520.0F)) == 0x7c00);
  CHECK(bits(round_to<Eigen::half>(-1e9F)) == 0xfc00);
  CHECK(bits(round_to<Eigen::half>(infinity)) == 0x7c00);
  CHECK(bits(round_to<Eigen::bfloat16>(-infinity)) == 0xff80);
  CHECK(bits(round_to<Eigen::bfloat16>(std::numeric_limits<float>::max())) == 0x7f80);
  CHECK(bits(round_to<Eigen::bfloat16>(-0.0F)) == 0x8000);
  CHECK(bits(round_to<Eigen::half>(-1e-30F)) == 0x8000);
  CHECK(std::isnan(widen(round_to<Eigen::half>(nan))));
  CHECK(std::isnan(widen(round_to<Eigen::bfloat16>(-nan))));
}

TEST_CASE("storage: elements are read and written at any stride, as they are stored") {
  const std::vector<float> values{1, -2, 3.140625F, 0.5F};
  const auto check = [&]<class S>(S, Storage storage) {
    for (const Index stride : {1, 3}) {
      std::vector<S> memory(12, S(7));
      const Elements<float> elements(memory.data());
      CHECK(elements.storage() == storage);
      CHECK(elements.native() == (storage == Storage::scalar));
      store<float>(values.data(), 4, elements, stride);
      CHECK(memory[static_cast<std::size_t>(stride)] == S(-2.0F));
      CHECK(memory[static_cast<std::size_t>(3 * stride + 1)] == S(7));
      std::vector<float> read(2);
      load<float>(elements + 2 * stride, stride, 2, read.data());
      CHECK(read == std::vector<float>(values.begin() + 2, values.end()));
    }
  };
  check(float(), Storage::scalar);
  check(Eigen::bfloat16(), Storage::bfloat16);
  check(Eigen::half(), Storage::half);
}
