// SPDX-License-Identifier: MIT
#include <limits>

#include "laws/module_subject.hpp"
#include "posbias/embedding/learned_continuous.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::LearnedContinuous;

Truth truth(int depth, bool norm, Real divide = 1) {
  const auto row = [=](Real p, const Truth::Parameters& w) {
    const Real divisor = w.contains("div") ? reference::learned_divisor(w.at("div")[0]) : divide;
    return reference::mlp(p / divisor, w, depth, norm);
  };
  return {.addend =
              [=](Real p, const Truth::Parameters& w) {
                std::vector<Real> values;
                for (const reference::Sum& feature : row(p, w)) values.push_back(feature.value);
                return values;
              },
          .addend_terms =
              [=](Real p, const Truth::Parameters& w) {
                Real largest = 0;
                for (const reference::Sum& feature : row(p, w)) largest = std::max(largest, feature.terms);
                return largest;
              },
          .angle_divisor = [](const Truth::Parameters&) { return std::numeric_limits<Real>::infinity(); }};
}

// Divided by much where there is no norm: Swishes bend near 0, and differences must see that.
const bool added[] = {
    add_case(
        "LearnedContinuous", []<class S>() { return LearnedContinuous<S>({.dim = 8}, 1); }, truth(1, false)),
    add_case(
        "LearnedContinuous of depth 2 with norm, divided",
        []<class S>() { return LearnedContinuous<S>({.dim = 8, .depth = 2, .norm = true, .divide = 2.5}, 2); },
        truth(2, true, 2.5L)),
    add_case(
        "LearnedContinuous of depth 3, learned_div",
        []<class S>() { return LearnedContinuous<S>({.dim = 8, .depth = 3, .divide = 40, .learned_div = true}, 3); },
        truth(3, false)),
};

}  // namespace
}  // namespace posbias_test
