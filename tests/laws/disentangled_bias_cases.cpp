// SPDX-License-Identifier: MIT
#include <cmath>

#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/bias/disentangled_bias.hpp"

namespace posbias_test {
namespace {

using posbias::DisentangledBias;
using posbias::DisentangledIndex;

const bool added_disentangled_bias[] = {
    add_case(
        "DisentangledBias",
        []<class S>() {
          return DisentangledBias<S>({.n_heads = 3, .head_dim = 8, .n_positions = 9, .position_size = 2}, 1);
        },
        reference_models::disentangled_bias({.n_positions = 9, .scale = 1 / std::sqrt(Real(8))})),
    add_case(
        "DisentangledBias as in the paper, scaled, one projection",
        []<class S>() {
          return DisentangledBias<S>({.n_heads = 2,
                                      .head_dim = 8,
                                      .n_positions = 4,
                                      .position_size = 3,
                                      .same_positional_key_query_proj = true,
                                      .scale = 0.75,
                                      .index = DisentangledIndex::paper},
                                     2);
        },
        reference_models::disentangled_bias({.n_positions = 4, .scale = 0.75L, .c2p_sign = 1}), 2),
};

}  // namespace
}  // namespace posbias_test
