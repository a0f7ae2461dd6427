// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "posbias/rotation/rotary.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::Rotary;
using posbias::RotaryPairing;
using posbias::RotarySpectrum;

Truth truth(const reference::RotaryHead& shape, Real divide = 1) {
  const auto divisor = [=](const Truth::Parameters& parameters) {
    return parameters.contains("div") ? reference::learned_divisor(parameters.at("div")[0]) : divide;
  };
  const auto change = [=](std::span<Real> head, Real p, const Truth::Parameters& w) {
    reference::rotate(head, p, divisor(w), shape);
  };
  return {.change_query = change, .change_key = change, .angle_divisor = divisor};
}

const bool added[] = {
    add_case(
        "Rotary", []<class S>() { return Rotary<S>({.head_dim = 8}); }, truth({.H = 8, .rotated = 8})),
    add_case(
        "Rotary half, divided, base 500",
        []<class S>() {
          return Rotary<S>({.head_dim = 8, .pairing = RotaryPairing::half, .base = 500, .divide = 2.5});
        },
        truth({.H = 8, .rotated = 8, .half = true, .base = 500}, 2.5L)),
    add_case(
        "Rotary 4 of 8", []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 4}); },
        truth({.H = 8, .rotated = 4})),
    add_case(
        "Rotary 4 of 8, half",
        []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 4, .pairing = RotaryPairing::half}); },
        truth({.H = 8, .rotated = 4, .half = true})),
    add_case(
        "Rotary 6 of 8, spectrum of its own",
        []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 6, .spectrum = RotarySpectrum::n_dims}); },
        truth({.H = 8, .rotated = 6, .own_spectrum = true})),
    add_case(
        "Rotary 6 of 8, half, spectrum of its own",
        []<class S>() {
          return Rotary<S>(
              {.head_dim = 8, .n_dims = 6, .pairing = RotaryPairing::half, .spectrum = RotarySpectrum::n_dims});
        },
        truth({.H = 8, .rotated = 6, .half = true, .own_spectrum = true})),
    add_case("Rotary none of 8", []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 0}); }, {}),
    add_case(
        "Rotary learned_div", []<class S>() { return Rotary<S>({.head_dim = 8, .divide = 2.5, .learned_div = true}); },
        truth({.H = 8, .rotated = 8})),
    add_case(
        "Rotary 4 of 8, half, learned_div",
        []<class S>() {
          return Rotary<S>(
              {.head_dim = 8, .n_dims = 4, .pairing = RotaryPairing::half, .divide = 4, .learned_div = true});
        },
        truth({.H = 8, .rotated = 4, .half = true})),
};

}  // namespace
}  // namespace posbias_test
