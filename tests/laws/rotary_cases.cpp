// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/rotation/rotary.hpp"

namespace posbias_test {
namespace {

using posbias::Rotary;
using posbias::RotaryPairing;
using posbias::RotarySpectrum;

const bool added_rotary[] = {
    add_case(
        "Rotary", []<class S>() { return Rotary<S>({.head_dim = 8}); },
        reference_models::rotary({.H = 8, .rotated = 8}, 1)),
    add_case(
        "Rotary half, divided, base 500",
        []<class S>() {
          return Rotary<S>({.head_dim = 8, .pairing = RotaryPairing::half, .base = 500, .divide = 2.5});
        },
        reference_models::rotary({.H = 8, .rotated = 8, .half = true, .base = 500}, 2.5L)),
    add_case(
        "Rotary 4 of 8", []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 4}); },
        reference_models::rotary({.H = 8, .rotated = 4}, 1)),
    add_case(
        "Rotary 4 of 8, half",
        []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 4, .pairing = RotaryPairing::half}); },
        reference_models::rotary({.H = 8, .rotated = 4, .half = true}, 1)),
    add_case(
        "Rotary 6 of 8, spectrum of its own",
        []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 6, .spectrum = RotarySpectrum::n_dims}); },
        reference_models::rotary({.H = 8, .rotated = 6, .own_spectrum = true}, 1)),
    add_case(
        "Rotary 6 of 8, half, spectrum of its own",
        []<class S>() {
          return Rotary<S>(
              {.head_dim = 8, .n_dims = 6, .pairing = RotaryPairing::half, .spectrum = RotarySpectrum::n_dims});
        },
        reference_models::rotary({.H = 8, .rotated = 6, .half = true, .own_spectrum = true}, 1)),
    add_case("Rotary none of 8", []<class S>() { return Rotary<S>({.head_dim = 8, .n_dims = 0}); }, {}),
    add_case(
        "Rotary learned_div", []<class S>() { return Rotary<S>({.head_dim = 8, .divide = 2.5, .learned_div = true}); },
        reference_models::rotary({.H = 8, .rotated = 8}, 1)),
    add_case(
        "Rotary 4 of 8, half, learned_div",
        []<class S>() {
          return Rotary<S>(
              {.head_dim = 8, .n_dims = 4, .pairing = RotaryPairing::half, .divide = 4, .learned_div = true});
        },
        reference_models::rotary({.H = 8, .rotated = 4, .half = true}, 1)),
};

}  // namespace
}  // namespace posbias_test
