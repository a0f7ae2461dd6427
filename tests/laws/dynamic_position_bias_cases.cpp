// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/bias/dynamic_position_bias.hpp"

namespace posbias_test {
namespace {

using posbias::DynamicPositionBias;

// Divided by much where there is no norm: Swishes bend near 0, and differences must see that.
const bool added_dynamic_position_bias[] = {
    add_case(
        "DynamicPositionBias", []<class S>() { return DynamicPositionBias<S>({.dim = 6, .n_heads = 3}, 1); },
        reference_models::dynamic_position_bias(1, false, 1)),
    add_case(
        "DynamicPositionBias of depth 2, divided",
        []<class S>() { return DynamicPositionBias<S>({.dim = 5, .n_heads = 4, .depth = 2, .divide = 40}, 2); },
        reference_models::dynamic_position_bias(2, false, 40), 4),
    add_case(
        "DynamicPositionBias of depth 3 with norm, learned_div",
        []<class S>() {
          return DynamicPositionBias<S>(
              {.dim = 6, .n_heads = 3, .depth = 3, .norm = true, .divide = 40, .learned_div = true}, 3);
        },
        reference_models::dynamic_position_bias(3, true, 1)),
};

}  // namespace
}  // namespace posbias_test
