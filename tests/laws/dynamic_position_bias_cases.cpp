// SPDX-License-Identifier: MIT
#include <limits>

#include "laws/module_subject.hpp"
#include "posbias/bias/dynamic_position_bias.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::DynamicPositionBias;

Truth truth(int depth, bool norm, Real divide = 1) {
  const auto of_head = [](const Truth::Logit& at) { return at.relative[static_cast<std::size_t>(at.h)]; };
  return {.bias = [=](const Truth::Logit& at, const Truth::Parameters&) { return -of_head(at).value; },
          .relative =
              [=](Real q_minus_k, const Truth::Parameters& w) {
                const Real divisor = w.contains("div") ? reference::learned_divisor(w.at("div")[0]) : divide;
                return reference::dynamic_bias(q_minus_k / divisor, w, depth, norm);
              },
          .bias_terms = [=](const Truth::Logit& at, const Truth::Parameters&) { return of_head(at).terms; },
          .angle_divisor = [](const Truth::Parameters&) { return std::numeric_limits<Real>::infinity(); }};
}

// Divided by much where there is no norm: Swishes bend near 0, and differences must see that.
const bool added[] = {
    add_case(
        "DynamicPositionBias", []<class S>() { return DynamicPositionBias<S>({.dim = 6, .n_heads = 3}, 1); },
        truth(1, false)),
    add_case(
        "DynamicPositionBias of depth 2, divided",
        []<class S>() { return DynamicPositionBias<S>({.dim = 5, .n_heads = 4, .depth = 2, .divide = 40}, 2); },
        truth(2, false, 40), 4),
    add_case(
        "DynamicPositionBias of depth 3 with norm, learned_div",
        []<class S>() {
          return DynamicPositionBias<S>(
              {.dim = 6, .n_heads = 3, .depth = 3, .norm = true, .divide = 40, .learned_div = true}, 3);
        },
        truth(3, true)),
};

}  // namespace
}  // namespace posbias_test
