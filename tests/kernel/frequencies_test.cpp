// SPDX-License-Identifier: MIT
#include "posbias/kernel/frequencies.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "reference/reference.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Index;
using posbias::detail::fill_sines_and_cosines;
using posbias::detail::inverse_frequencies;
namespace reference = posbias_test::reference;

namespace {

/// The largest error of sines and cosines of one position against long double.
template <class Scalar>
double largest_error(double position, double divisor, Index dim) {
  const auto frequencies = inverse_frequencies(dim / 2, dim, 10000);
  std::vector<Scalar> row(static_cast<std::size_t>(dim));
  fill_sines_and_cosines<Scalar>(std::span(&position, 1), divisor, frequencies, {2, 1}, dim, row.data());
  const auto truth = reference::sinusoid(static_cast<reference::Real>(position), static_cast<reference::Real>(divisor),
                                         static_cast<int>(dim), false);
  double error = 0;
  for (std::size_t f = 0; f < row.size(); ++f)
    error = std::max(error, static_cast<double>(std::abs(static_cast<reference::Real>(row[f]) - truth[f])));
  return error;
}

}  // namespace

TEST_CASE("inverse frequencies fall from 1 towards 1 / base", "[frequencies]") {
  const auto frequencies = inverse_frequencies(4, 8, 10000);
  REQUIRE(frequencies.size() == 4);
  CHECK(frequencies[0] == 1);
  CHECK(std::abs(frequencies[1] - 0.1) <= 0.1 * 0x1p-51);
  CHECK(std::abs(frequencies[2] - 0.01) <= 0.01 * 0x1p-51);
  CHECK(std::abs(frequencies[3] - 0.001) <= 0.001 * 0x1p-51);
  CHECK(inverse_frequencies(0, 8, 10000).empty());
}

TEST_CASE("inverse frequencies are within two roundings of the exact value", "[frequencies]") {
  for (const Index dim : {2, 6, 8, 64, 128, 1024})
    for (const double base : {10000.0, 500000.0, 2.5, 0.5}) {
      const auto frequencies = inverse_frequencies(dim / 2, dim, base);
      for (std::size_t i = 0; i < frequencies.size(); ++i) {
        const reference::Real exact =
            reference::frequency(static_cast<int>(i), static_cast<int>(dim), static_cast<reference::Real>(base));
        INFO("dim " << dim << ", base " << base << ", pair " << i);
        // The exponent is rounded too, which the logarithm of the base magnifies.
        const double rounding = (2 + 10 * std::abs(std::log(base)) / 9) * 0x1p-53;
        CHECK(std::abs(static_cast<double>(frequencies[i] - exact)) <= rounding * static_cast<double>(exact));
      }
    }
}

TEST_CASE("a prefix of the spectrum is a prefix", "[frequencies]") {
  const auto whole = inverse_frequencies(8, 16, 10000);
  const auto prefix = inverse_frequencies(3, 16, 10000);
  CHECK(std::equal(prefix.begin(), prefix.end(), whole.begin()));
}

TEST_CASE("float sines and cosines are within 6e-8 below 2^24", "[frequencies]") {
  CHECK(largest_error<float>(131072, 1, 64) <= 6e-8);
  CHECK(largest_error<float>(16777215, 1, 64) <= 6e-8);
  CHECK(largest_error<float>(-16777215, 1, 64) <= 6e-8);
  CHECK(largest_error<float>(16777214.5, 1, 64) <= 6e-8);
  double worst = 0;
  for (double position = 0; position < 200; ++position) worst = std::max(worst, largest_error<float>(position, 1, 16));
  posbias_test::Numbers numbers(1);
  for (int i = 0; i < 2000; ++i)
    worst = std::max(worst, largest_error<float>(static_cast<double>(numbers.below(1U << 24)), 1, 16));
  CHECK(worst <= 6e-8);
  CHECK(worst > 2e-8);
}

TEST_CASE("angles computed in float would be off by thousandths", "[frequencies]") {
  // What the promise above is worth: the same rows with float angles.
  const float position = 131072;
  double worst = 0;
  for (int i = 0; i < 32; ++i) {
    const float frequency = 1 / std::pow(10000.0F, static_cast<float>(2 * i) / 64);
    const auto exact = std::sin(static_cast<reference::Real>(position) * reference::frequency(i, 64));
    worst = std::max(worst, std::abs(static_cast<double>(std::sin(position * frequency) - exact)));
  }
  CHECK(worst > 1e-3);
}

TEST_CASE("double sines and cosines are off by a few roundings of the angle", "[frequencies]") {
  for (const double position : {1.0, 100.0, 101.5, 4095.0, 131072.0, -77777.25, 1099511627776.0})
    for (const double divisor : {1.0, 2.5, 4.0}) {
      INFO("position " << position << ", divisor " << divisor);
      CHECK(largest_error<double>(position, divisor, 64) <= 0x1p-52 + 4 * 0x1p-52 * std::abs(position / divisor));
    }
  CHECK(largest_error<double>(0, 1, 64) == 0);
}

TEST_CASE("sines and cosines stand where the layout says", "[frequencies]") {
  const std::vector<double> positions{100, 131072.5};
  const auto frequencies = inverse_frequencies(4, 8, 10000);
  constexpr Index row_stride = 11;
  constexpr double untouched = 42;
  std::vector<double> interleaved(2 * row_stride, untouched);
  std::vector<double> half(2 * row_stride, untouched);
  fill_sines_and_cosines<double>(positions, 2, frequencies, {2, 1}, row_stride, interleaved.data());
  fill_sines_and_cosines<double>(positions, 2, frequencies, {1, 4}, row_stride, half.data());
  for (std::size_t p = 0; p < 2; ++p) {
    const double* a = interleaved.data() + p * row_stride;
    const double* b = half.data() + p * row_stride;
    for (int i = 0; i < 4; ++i) {
      const auto angle = static_cast<reference::Real>(positions[p]) / 2 * reference::frequency(i, 8);
      CHECK(std::abs(static_cast<double>(a[2 * i] - std::sin(angle))) < 1e-10);
      CHECK(std::abs(static_cast<double>(a[2 * i + 1] - std::cos(angle))) < 1e-10);
      CHECK(b[i] == a[2 * i]);
      CHECK(b[i + 4] == a[2 * i + 1]);
    }
    for (int rest = 8; rest < row_stride; ++rest) {
      CHECK(a[rest] == untouched);
      CHECK(b[rest] == untouched);
    }
  }
}

TEST_CASE("no positions and no pairs write nothing", "[frequencies]") {
  std::vector<float> row(8, 42.0F);
  fill_sines_and_cosines<float>({}, 1, inverse_frequencies(4, 8, 10000), {2, 1}, 8, row.data());
  const double position = 100;
  fill_sines_and_cosines<float>(std::span(&position, 1), 1, {}, {2, 1}, 8, row.data());
  CHECK(row == std::vector<float>(8, 42.0F));
}
