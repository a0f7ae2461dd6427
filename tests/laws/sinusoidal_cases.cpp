// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/embedding/sinusoidal.hpp"

namespace posbias_test {
namespace {

using posbias::Sinusoidal;
using posbias::SinusoidLayout;

const bool added_sinusoidal[] = {
    add_case(
        "Sinusoidal", []<class S>() { return Sinusoidal<S>({.dim = 8}); }, reference_models::sinusoidal(8, false, 1)),
    add_case(
        "Sinusoidal half, divided",
        []<class S>() { return Sinusoidal<S>({.dim = 8, .layout = SinusoidLayout::half, .divide = 2.5}); },
        reference_models::sinusoidal(8, true, 2.5L)),
    add_case(
        "Sinusoidal learned_div",
        []<class S>() { return Sinusoidal<S>({.dim = 8, .divide = 2.5, .learned_div = true}); },
        reference_models::sinusoidal(8, false, 1)),
    add_case(
        "Sinusoidal half, learned_div",
        []<class S>() {
          return Sinusoidal<S>({.dim = 8, .layout = SinusoidLayout::half, .divide = 4, .learned_div = true});
        },
        reference_models::sinusoidal(8, true, 1)),
};

}  // namespace
}  // namespace posbias_test
