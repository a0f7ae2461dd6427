// SPDX-License-Identifier: MIT
/// \file
/// Sines and cosines: Sinusoidal and Rotary at positions near and far, beside the usual code.
#include <cstdint>

#include "accuracy/accuracy.hpp"

namespace posbias_accuracy {
namespace {

using posbias::Positions;
namespace reference = posbias_test::reference;

constexpr Index tokens = 101, dim = 128;

/// Sinusoidal: a row of sines and cosines, as they are.
template <class Scalar>
Worst sinusoidal_error(Index start) {
  Tensor<Scalar, 2> x(tokens, dim);
  x.setZero();
  posbias::Sinusoidal<Scalar>({.dim = dim}).mod_x(x, {.pos = Positions::range(start)});
  Worst worst;
  for (Index token = 0; token < tokens; ++token) {
    const auto row = reference::sinusoid(static_cast<Real>(start + token), 1, dim, false);
    for (Index f = 0; f < dim; ++f) worst.see(x(token, f), row[static_cast<std::size_t>(f)]);
  }
  return worst;
}

/// The usual code: frequencies, positions, angles and their sines in float, positions rounded to `Position` before.
template <class Position>
Worst usual_error(Index start) {
  Worst worst;
  for (Index token = 0; token < tokens; ++token) {
    const auto position = static_cast<float>(static_cast<Position>(static_cast<float>(start + token)));
    const auto row = reference::sinusoid(static_cast<Real>(start + token), 1, dim, false);
    for (Index i = 0; i < dim / 2; ++i) {
      const float frequency = 1 / std::pow(10000.0F, static_cast<float>(2 * i) / static_cast<float>(dim));
      worst.see(std::sin(position * frequency), row[static_cast<std::size_t>(2 * i)]);
      worst.see(std::cos(position * frequency), row[static_cast<std::size_t>(2 * i + 1)]);
    }
  }
  return worst;
}

/// Rotary, of features in [-1, 1).
template <class Scalar>
Worst rotary_error(Index start) {
  auto q = numbers<Scalar, 3>({tokens, 1, dim}, 1);
  const Tensor<Scalar, 3> before = q;
  Tensor<Scalar, 3> k = q;
  posbias::Rotary<Scalar>({.head_dim = dim}).mod_qkv(q, k, k, {.q_k = Positions::range(start)});
  Worst worst;
  for (Index token = 0; token < tokens; ++token) {
    std::vector<Real> head(&before(token, 0, 0), &before(token, 0, 0) + dim);
    reference::rotate(head, static_cast<Real>(start + token), 1, {.H = dim, .rotated = dim});
    for (Index f = 0; f < dim; ++f) worst.see(q(token, 0, f), head[static_cast<std::size_t>(f)]);
  }
  return worst;
}

}  // namespace

void print_angles() {
  std::puts("## Sines and cosines\n");
  print_header({"101 positions from", "Sinusoidal, float", "angles in float", "positions in bfloat16", "Rotary, float",
                "Sinusoidal, double", "Rotary, double"});
  const struct {
    const char* name;
    Index start;
  } rows[] = {{"0", 0},
              {"4 096", 4096},
              {"100 000", 100'000},
              {"2^20", Index{1} << 20},
              {"2^24 - 101", (Index{1} << 24) - tokens},
              {"2^24", Index{1} << 24},
              {"2^40", Index{1} << 40}};
  for (const auto& [name, start] : rows)
    print_row({name, sinusoidal_error<float>(start).absolute(), usual_error<float>(start).absolute(),
               usual_error<Eigen::bfloat16>(start).absolute(), rotary_error<float>(start).absolute(),
               sinusoidal_error<double>(start).absolute(), rotary_error<double>(start).absolute()});
}

}  // namespace posbias_accuracy
