// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/embedding/learned_continuous.hpp"

namespace posbias_test {
namespace {

using posbias::LearnedContinuous;

// Divided by much where there is no norm: Swishes bend near 0, and differences must see that.
const bool added_learned_continuous[] = {
    add_case(
        "LearnedContinuous", []<class S>() { return LearnedContinuous<S>({.dim = 8}, 1); },
        reference_models::learned_continuous(1, false, 1)),
    add_case(
        "LearnedContinuous of depth 2 with norm, divided",
        []<class S>() { return LearnedContinuous<S>({.dim = 8, .depth = 2, .norm = true, .divide = 2.5}, 2); },
        reference_models::learned_continuous(2, true, 2.5L)),
    add_case(
        "LearnedContinuous of depth 3, learned_div",
        []<class S>() { return LearnedContinuous<S>({.dim = 8, .depth = 3, .divide = 40, .learned_div = true}, 3); },
        reference_models::learned_continuous(3, false, 1)),
};

}  // namespace
}  // namespace posbias_test
