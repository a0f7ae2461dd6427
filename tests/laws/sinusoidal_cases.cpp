// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::Sinusoidal;
using posbias::SinusoidLayout;

Truth truth(bool half, Real divide) {
  const auto divisor = [=](const Truth::Parameters& parameters) {
    return parameters.contains("div") ? reference::learned_divisor(parameters.at("div")[0]) : divide;
  };
  return {.addend = [=](Real p, const Truth::Parameters& w) { return reference::sinusoid(p, divisor(w), 8, half); },
          .angle_divisor = divisor};
}

const bool added[] = {
    add_case(
        "Sinusoidal", []<class S>() { return Sinusoidal<S>({.dim = 8}); }, truth(false, 1)),
    add_case(
        "Sinusoidal half, divided",
        []<class S>() { return Sinusoidal<S>({.dim = 8, .layout = SinusoidLayout::half, .divide = 2.5}); },
        truth(true, 2.5L)),
    add_case(
        "Sinusoidal learned_div",
        []<class S>() { return Sinusoidal<S>({.dim = 8, .divide = 2.5, .learned_div = true}); }, truth(false, 0)),
    add_case(
        "Sinusoidal half, learned_div",
        []<class S>() {
          return Sinusoidal<S>({.dim = 8, .layout = SinusoidLayout::half, .divide = 4, .learned_div = true});
        },
        truth(true, 0)),
};

}  // namespace
}  // namespace posbias_test
