// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/bias/relative_position_bias.hpp"

namespace posbias_test {
namespace {

using posbias::RelativePositionBias;

const bool added_relative_position_bias[] = {
    add_case(
        "RelativePositionBias", []<class S>() { return RelativePositionBias<S>({.n_heads = 3}, 1); },
        reference_models::relative_position_bias({true, 32, 128})),
    add_case(
        "RelativePositionBias, one direction",
        []<class S>() {
          return RelativePositionBias<S>({.bidirectional = false, .num_buckets = 13, .max_distance = 50, .n_heads = 5},
                                         2);
        },
        reference_models::relative_position_bias({false, 13, 50}), 5),
};

}  // namespace
}  // namespace posbias_test
