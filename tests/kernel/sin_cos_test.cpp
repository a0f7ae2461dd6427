// SPDX-License-Identifier: MIT
#include "posbias/kernel/sin_cos.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "reference/reference.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Index;
using posbias::SinusoidLayout;
using posbias::detail::inverse_frequencies;
using posbias::detail::SinCos;
namespace reference = posbias_test::reference;

namespace {

/// The largest error of sines and cosines of one position against long double.
template <class Scalar>
double largest_error(double position, double divisor, Index dim) {
  const SinCos maker(inverse_frequencies(dim / 2, dim, 10000), divisor);
  std::vector<Scalar> row(static_cast<std::size_t>(dim));
  maker.fill_rows(std::span(&position, 1), SinusoidLayout::interleaved, row.data());
  const auto reference_model = reference::sinusoid(static_cast<reference::Real>(position),
                                                   static_cast<reference::Real>(divisor), static_cast<int>(dim), false);
  double error = 0;
  for (std::size_t f = 0; f < row.size(); ++f)
    error = std::max(error, static_cast<double>(std::abs(static_cast<reference::Real>(row[f]) - reference_model[f])));
  return error;
}

constexpr std::size_t maker_pairs = 8;
const std::vector<double>& maker_frequencies() {
  static const auto frequencies = inverse_frequencies(maker_pairs, 2 * maker_pairs, 10000);
  return frequencies;
}

struct SineAndCosine {
  double sine, cosine;
};

template <class Scalar>
SineAndCosine at(const posbias::detail::SinusoidColumns<Scalar>& columns, std::size_t f, std::size_t c) {
  const std::size_t place = f * static_cast<std::size_t>(columns.stride) + c;
  return {static_cast<double>(columns.sines[place]), static_cast<double>(columns.cosines[place])};
}

/// By how much the columns of ascending positions exceed a fixed error and some errors per size of the angle.
template <class Scalar>
double largest_excess(const std::vector<double>& positions, double divisor, double fixed, double per_angle) {
  SinCos maker(maker_frequencies(), divisor);
  const auto columns = maker.make<Scalar>(positions);
  double worst = -1;
  for (std::size_t f = 0; f < maker_pairs; ++f)
    for (std::size_t c = 0; c < positions.size(); ++c) {
      const reference::Real angle = static_cast<reference::Real>(positions[c]) / divisor *
                                    reference::frequency(static_cast<int>(f), 2 * static_cast<int>(maker_pairs));
      const SineAndCosine got = at(columns, f, c);
      const auto error = std::max(std::abs(got.sine - std::sin(angle)), std::abs(got.cosine - std::cos(angle)));
      worst = std::max(worst, static_cast<double>(error - per_angle * std::abs(angle)) - fixed);
    }
  return worst;
}

std::vector<double> consecutive(double first, std::size_t count) {
  std::vector<double> positions;
  for (std::size_t i = 0; i < count; ++i) positions.push_back(first + static_cast<double>(i));
  return positions;
}

/// Distinct and ascending, as the maker wants them.
std::vector<double> in_order(std::vector<double> positions) {
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return positions;
}

/// Integers and reals from 0 to beyond 2^24: alone, in runs, astride multiples of 16, 256 and 4096.
std::vector<double> positions_below_2_to_24() {
  std::vector<double> positions = consecutive(0, 200);
  posbias_test::Numbers numbers(3);
  for (int i = 0; i < 500; ++i) {
    positions.push_back(static_cast<double>(numbers.below(1U << 24)));
    positions.push_back(static_cast<double>(numbers.below(1U << 24)) / 7);
  }
  for (const double first : {4095 - 31.0, 131072 - 2.0, 0x1p24 - 70})
    for (const double position : consecutive(first, 70)) positions.push_back(position);
  for (const double half : {0.5, 31.5, 32.5, 100.5, 101.5, 65535.5}) positions.push_back(half);
  return in_order(positions);
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
  const SinCos maker(inverse_frequencies(4, 8, 10000), 2);
  constexpr double untouched = 42;
  std::vector<double> interleaved(17, untouched), half(17, untouched);
  maker.fill_rows(positions, SinusoidLayout::interleaved, interleaved.data());
  maker.fill_rows(positions, SinusoidLayout::half, half.data());
  for (std::size_t p = 0; p < 2; ++p) {
    const double* a = interleaved.data() + p * 8;
    const double* b = half.data() + p * 8;
    for (int i = 0; i < 4; ++i) {
      const auto angle = static_cast<reference::Real>(positions[p]) / 2 * reference::frequency(i, 8);
      CHECK(std::abs(static_cast<double>(a[2 * i] - std::sin(angle))) < 1e-10);
      CHECK(std::abs(static_cast<double>(a[2 * i + 1] - std::cos(angle))) < 1e-10);
      CHECK(b[i] == a[2 * i]);
      CHECK(b[i + 4] == a[2 * i + 1]);
    }
  }
  CHECK(interleaved.back() == untouched);
  CHECK(half.back() == untouched);
}

TEST_CASE("sines and cosines are finite where angles are beyond double's range", "[frequencies]") {
  for (const double position : {0x1p1022, -0x1p1022}) {
    std::vector<double> row(8);
    SinCos(inverse_frequencies(4, 8, 10000), 0.125)
        .fill_rows(std::span(&position, 1), SinusoidLayout::half, row.data());
    for (std::size_t f = 0; f < 4; ++f) CHECK(row[f] * row[f] + row[f + 4] * row[f + 4] == Approx(1));
  }
}

TEST_CASE("no positions and no pairs write nothing", "[frequencies]") {
  std::vector<float> row(8, 42.0F);
  SinCos(inverse_frequencies(4, 8, 10000), 1).fill_rows({}, SinusoidLayout::half, row.data());
  const double position = 100;
  SinCos({}, 1).fill_rows(std::span(&position, 1), SinusoidLayout::half, row.data());
  CHECK(row == std::vector<float>(8, 42.0F));
}

TEST_CASE("rows and columns of sines and cosines are the same bits", "[frequencies]") {
  const auto positions = positions_below_2_to_24();
  const SinCos maker(maker_frequencies(), 2.5);
  const auto columns = maker.make<float>(positions);
  std::vector<float> rows(positions.size() * 2 * maker_pairs);
  maker.fill_rows(positions, SinusoidLayout::half, rows.data());
  std::size_t wrong = 0;
  for (std::size_t p = 0; p < positions.size(); ++p)
    for (std::size_t f = 0; f < maker_pairs; ++f) {
      const SineAndCosine column = at(columns, f, p);
      if (column.sine != static_cast<double>(rows[p * 2 * maker_pairs + f])) ++wrong;
      if (column.cosine != static_cast<double>(rows[p * 2 * maker_pairs + maker_pairs + f])) ++wrong;
    }
  CHECK(wrong == 0);
}

TEST_CASE("columns of sines and cosines are as near the truth as rows are", "[frequencies]") {
  const auto positions = positions_below_2_to_24();
  for (const double divisor : {1.0, 2.5}) {
    INFO("divisor " << divisor);
    CHECK(largest_excess<float>(positions, divisor, 6e-8, 0) <= 0);
    CHECK(largest_excess<float>(positions, divisor, 2e-8, 0) > 0);
    CHECK(largest_excess<double>(positions, divisor, 1e-15, 4 * 0x1p-52) <= 0);
    CHECK(largest_excess<double>(positions, divisor, 0, 0) > 0);
    CHECK(largest_excess<double>(consecutive(0x1p40, 100), divisor, 1e-15, 4 * 0x1p-52) <= 0);
  }
}

TEMPLATE_TEST_CASE("a position's sines and cosines do not depend on the others", "[frequencies]", float, double) {
  using S = TestType;
  std::vector<double> all = positions_below_2_to_24();
  for (const double position : consecutive(0x1p40 + 5, 70)) all.push_back(position);
  SinCos maker(maker_frequencies(), 2.5);
  const auto whole = maker.make<S>(all);
  std::size_t wrong = 0;
  const auto compare = [&](SinCos& other, std::size_t begin, std::size_t end) {
    const auto part = other.make<S>(std::span(all).subspan(begin, end - begin));
    for (std::size_t f = 0; f < maker_pairs; ++f)
      for (std::size_t c = begin; c < end; ++c) {
        const SineAndCosine expected = at(whole, f, c), got = at(part, f, c - begin);
        if (std::memcmp(&expected, &got, sizeof got) != 0) ++wrong;
      }
  };
  for (std::size_t c = 0; c < all.size(); ++c) {
    SinCos fresh(maker_frequencies(), 2.5);
    compare(fresh, c, c + 1);
    compare(maker, c, c + 1);
  }
  // Blocks that begin everywhere between some multiples of 16.
  for (std::size_t begin = 0; begin < 40; ++begin)
    for (std::size_t first = begin; first < all.size(); first += 50) {
      SinCos fresh(maker_frequencies(), 2.5);
      compare(fresh, first, std::min(first + 50, all.size()));
    }
  CHECK(wrong == 0);
}

TEST_CASE("columns are padded with zeros, 0 is exact, no positions make none", "[frequencies]") {
  SinCos maker(maker_frequencies(), 1);
  const std::vector<double> positions{0, 31, 32};
  const auto columns = maker.make<float>(positions);
  CHECK(columns.stride == posbias::detail::round_up_to_lanes<float>(3));
  REQUIRE(columns.sines.size() == maker_pairs * static_cast<std::size_t>(columns.stride));
  REQUIRE(columns.cosines.size() == columns.sines.size());
  for (std::size_t f = 0; f < maker_pairs; ++f) {
    CHECK(at(columns, f, 0).sine == 0);
    CHECK(at(columns, f, 0).cosine == 1);
    for (auto c = positions.size(); c < static_cast<std::size_t>(columns.stride); ++c) {
      CHECK(at(columns, f, c).sine == 0);
      CHECK(at(columns, f, c).cosine == 0);
    }
  }
  const auto none = maker.make<double>({});
  CHECK(none.sines.empty());
  CHECK(none.cosines.empty());
  CHECK(maker.angle(31, 0) == 31);
}
