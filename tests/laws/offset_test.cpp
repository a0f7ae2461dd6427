// SPDX-License-Identifier: MIT
/// \file
/// Far away, where the angles themselves have lost digits, neighbours still differ by the angle of 1: rotations and
/// sinusoids at 2^40 and 2^40 + 1, feature pair by feature pair, each within the promise for its own angle.
#include <cmath>
#include <type_traits>

#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/rotation/rotary.hpp"
#include "reference/reference.hpp"
#include "support/catch.hpp"

using posbias::Index;
using posbias::Positions;
namespace reference = posbias_test::reference;

namespace {

constexpr int H = 8;
constexpr Index far = Index{1} << 40;

template <class S, int Rank>
using Row = Eigen::Tensor<S, Rank, Eigen::RowMajor>;

struct Turned {
  double cosine, sine;
};

/// Of two rotated unit vectors (a, b) and (c, d): the angle from the first to the second.
template <class S>
Turned between(S a, S b, S c, S d) {
  const auto wide = [](S value) { return static_cast<double>(value); };
  return {wide(a) * wide(c) + wide(b) * wide(d), wide(a) * wide(d) - wide(b) * wide(c)};
}

/// 4 roundings of the angle at 2^40, which both have, and those of the values.
template <class S>
double allowed(int pair) {
  const double angle = static_cast<double>(far) * static_cast<double>(reference::frequency(pair, H));
  const double rounding = std::is_same_v<S, float> ? 0x1p-24 : 0x1p-53;
  return 4 * 0x1p-52 * angle + 8 * rounding;
}

template <class S>
void check_turn(int pair, const Turned& turned) {
  INFO("pair " << pair);
  const auto angle = reference::frequency(pair, H);
  CHECK(std::abs(turned.cosine - static_cast<double>(std::cos(angle))) <= allowed<S>(pair));
  CHECK(std::abs(turned.sine - static_cast<double>(std::sin(angle))) <= allowed<S>(pair));
}

}  // namespace

TEMPLATE_TEST_CASE("Rotary turns neighbours at 2^40 by the angle of 1", "[laws][offset]", float, double) {
  using S = TestType;
  for (const auto pairing : {posbias::RotaryPairing::interleaved, posbias::RotaryPairing::half}) {
    const reference::RotaryHead head{.H = H, .rotated = H, .half = pairing == posbias::RotaryPairing::half};
    const posbias::Rotary<S> rotary({.head_dim = H, .pairing = pairing});
    for (int pair = 0; pair < H / 2; ++pair) {
      Row<S, 3> q(1, 1, H);
      q.setZero();
      q(0, 0, head.first(pair)) = 1;
      Row<S, 3> k = q;
      rotary.mod_qkv(q, k, k, {.q = Positions::range(far), .k = Positions::range(far + 1)});
      check_turn<S>(pair, between(q(0, 0, head.first(pair)), q(0, 0, head.second(pair)), k(0, 0, head.first(pair)),
                                  k(0, 0, head.second(pair))));
    }
  }
}

TEMPLATE_TEST_CASE("Sinusoidal turns neighbours at 2^40 by the angle of 1", "[laws][offset]", float, double) {
  using S = TestType;
  for (const auto layout : {posbias::SinusoidLayout::interleaved, posbias::SinusoidLayout::half}) {
    const bool half = layout == posbias::SinusoidLayout::half;
    const posbias::Sinusoidal<S> sinusoidal({.dim = H, .layout = layout});
    Row<S, 2> x(2, H);
    x.setZero();
    sinusoidal.mod_x(x, {.pos = Positions::range(far)});
    for (int pair = 0; pair < H / 2; ++pair) {
      const int sine = half ? pair : 2 * pair;
      const int cosine = half ? pair + H / 2 : 2 * pair + 1;
      check_turn<S>(pair, between(x(0, cosine), x(0, sine), x(1, cosine), x(1, sine)));
    }
  }
}

TEST_CASE("half a position is half an angle, near and far", "[laws][offset]") {
  Row<double, 1> positions(2);
  for (const double start : {100.0, 0x1p40}) {
    positions(0) = start;
    positions(1) = start + 0.5;
    Row<double, 2> x(2, H);
    x.setZero();
    posbias::Sinusoidal<double>({.dim = H}).mod_x(x, {.pos = positions});
    const Turned turned = between(x(0, 1), x(0, 0), x(1, 1), x(1, 0));
    CHECK(std::abs(turned.cosine - std::cos(0.5)) <= allowed<double>(0));
    CHECK(std::abs(turned.sine - std::sin(0.5)) <= allowed<double>(0));
    if (start == 100) CHECK(std::abs(turned.sine - std::sin(0.5)) <= 1e-13);
  }
}
