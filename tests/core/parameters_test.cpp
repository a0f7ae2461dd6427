// SPDX-License-Identifier: MIT
#include "posbias/core/parameters.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"

using posbias::Index;
using posbias::NoParameters;
using posbias::ParameterTensor;
using posbias::detail::Random;

namespace {

struct TwoParameters {
  ParameterTensor<float, 2> weight{2, 3};
  ParameterTensor<float, 0> div;

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor("emb.weight", self.weight);
    visitor("div", self.div);
  }
};

/// Sorted draws of the normal distribution, made once for all tests.
const std::vector<double>& million_normals() {
  static const std::vector<double> draws = [] {
    Random random(20240607);
    std::vector<double> values(1000000);
    std::generate(values.begin(), values.end(), [&] { return random.normal(); });
    return values;
  }();
  return draws;
}

double normal_cumulative(double x) {
  return std::erfc(-x / std::sqrt(2.0)) / 2;
}

/// How many standard deviations a mean over the draws is from its expectation.
double deviations(double mean, double expectation, double variance) {
  return (mean - expectation) / std::sqrt(variance / static_cast<double>(million_normals().size()));
}

}  // namespace

TEST_CASE("parameters are visited by name, in order", "[parameters]") {
  TwoParameters parameters;
  std::string visited;
  posbias::for_each_parameter(parameters, [&](std::string_view name, auto& tensor) {
    tensor.setConstant(7);
    visited += std::string(name) + " " + std::to_string(tensor.size()) + "; ";
  });
  CHECK(visited == "emb.weight 6; div 1; ");
  CHECK(parameters.weight(1, 2) == 7);
  CHECK(parameters.div() == 7);

  const TwoParameters& read_only = parameters;
  posbias::for_each_parameter(read_only, [](std::string_view, auto& tensor) {
    static_assert(std::is_const_v<std::remove_reference_t<decltype(tensor)>>);
  });
}

TEST_CASE("a module without parameters has none to visit", "[parameters]") {
  NoParameters none;
  int visits = 0;
  posbias::for_each_parameter(none, [&](std::string_view, auto&) { ++visits; });
  CHECK(visits == 0);
}

TEST_CASE("random bits are SplitMix64's", "[parameters]") {
  // First outputs of the published generator for these seeds.
  Random zero(0);
  for (const std::uint64_t bits :
       {0xe220a8397b1dcdafU, 0x6e789e6aa1b965f4U, 0x06c45d188009454fU, 0xf88bb8a8724c81ecU, 0x1b39896a51a8749bU})
    CHECK(zero.bits() == bits);
  Random other(1234567);
  for (const std::uint64_t bits :
       {6457827717110365317U, 3203168211198807973U, 9817491932198370423U, 4593380528125082431U, 16408922859458223821U})
    CHECK(other.bits() == bits);
}

TEST_CASE("uniforms are the upper 53 bits", "[parameters]") {
  Random bits(7);
  Random uniforms(7);
  for (int i = 0; i < 1000; ++i) {
    const double expected = std::ldexp(static_cast<double>(bits.bits() >> 11), -53);
    if (uniforms.uniform() != expected) FAIL_CHECK("draw " << i);
  }
  Random bounded(7);
  Random plain(7);
  for (int i = 0; i < 1000; ++i) {
    const double value = bounded.uniform(0.25);
    CHECK(value == (2 * plain.uniform() - 1) * 0.25);
    if (!(value >= -0.25 && value < 0.25)) FAIL_CHECK("draw " << i);
  }
}

TEST_CASE("the same seed gives the same sequence, another seed another one", "[parameters]") {
  Random a(42);
  Random b(42);
  Random c(43);
  int equal = 0;
  for (int i = 0; i < 1000; ++i) {
    const double value = a.normal();
    if (value != b.normal()) FAIL_CHECK("draw " << i);
    if (value == c.normal()) ++equal;
  }
  CHECK(equal == 0);
}

TEST_CASE("normal draws are the same on every platform", "[parameters]") {
  const auto check = [](std::uint64_t seed, const std::array<double, 6>& expected) {
    Random random(seed);
    for (const double value : expected) CHECK(random.normal() == value);
  };
  check(0, {-0x1.95fbb374f2c4ep-2, 0x1.3ea7e9cc92144p-2, 0x1.980d862ca5d7ep-1, -0x1.159a9f827a7a8p-3,
            0x1.08dd72ce6693ep-2, 0x1.251ade5ae8a68p-1});
  check(42, {0x1.581ce1ff0e4aep+0, 0x1.836ded897f3e4p+0, -0x1.7eadff448a868p-4, 0x1.5621a78b0616bp+1,
             0x1.039e786c344bap+0, 0x1.b9deb390b6f6cp+0});

  ParameterTensor<float, 2> tensor(2, 3);
  Random random(42);
  posbias::detail::fill_normal(tensor, random);
  Random again(42);
  for (Index i = 0; i < tensor.size(); ++i) CHECK(tensor.data()[i] == static_cast<float>(again.normal()));
}

TEST_CASE("moments of normal draws are those of N(0, 1)", "[parameters]") {
  std::array<double, 7> moment{};
  double neighbours = 0;
  double last = 0;
  for (const double value : million_normals()) {
    double power = 1;
    for (double& sum : moment) {
      sum += power;
      power *= value;
    }
    neighbours += last * value;
    last = value;
  }
  const double n = moment[0];
  CHECK(std::abs(deviations(moment[1] / n, 0, 1)) < 4);
  CHECK(std::abs(deviations(moment[2] / n, 1, 2)) < 4);
  CHECK(std::abs(deviations(moment[3] / n, 0, 15)) < 4);
  CHECK(std::abs(deviations(moment[4] / n, 3, 96)) < 4);
  CHECK(std::abs(deviations(moment[6] / n, 15, 10170)) < 4);
  CHECK(std::abs(deviations(neighbours / n, 0, 1)) < 4);
}

TEST_CASE("tails of normal draws are as heavy as they should be, on both sides", "[parameters]") {
  for (const double limit : {0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0}) {
    double above = 0;
    double below = 0;
    for (const double value : million_normals()) {
      above += value > limit;
      below += value < -limit;
    }
    const double fraction = normal_cumulative(-limit);
    const double n = static_cast<double>(million_normals().size());
    INFO("limit " << limit);
    CHECK(std::abs(deviations(above / n, fraction, fraction * (1 - fraction))) < 4);
    CHECK(std::abs(deviations(below / n, fraction, fraction * (1 - fraction))) < 4);
  }
}

TEST_CASE("normal draws follow the normal distribution everywhere", "[parameters]") {
  // Kolmogorov and Smirnov: the largest gap of the cumulative curves, times sqrt(n), exceeds 1.95 in one of a
  // thousand sequences.
  std::vector<double> sorted = million_normals();
  std::sort(sorted.begin(), sorted.end());
  const double n = static_cast<double>(sorted.size());
  double gap = 0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const double cumulative = normal_cumulative(sorted[i]);
    gap = std::max({gap, cumulative - static_cast<double>(i) / n, static_cast<double>(i + 1) / n - cumulative});
  }
  CHECK(gap * std::sqrt(n) < 1.95);

  // Pearson: 200 bins of the same probability; the sum is about 199 with a standard deviation of 20.
  std::array<double, 200> counts{};
  for (const double value : sorted)
    ++counts[std::min<std::size_t>(199, static_cast<std::size_t>(200 * normal_cumulative(value)))];
  double chi_squared = 0;
  for (const double count : counts) chi_squared += (count - n / 200) * (count - n / 200) / (n / 200);
  CHECK(chi_squared < 199 + 4 * 20);
  CHECK(chi_squared > 199 - 4 * 20);
}
