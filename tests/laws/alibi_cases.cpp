// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/bias/alibi.hpp"

namespace posbias_test {
namespace {

using posbias::ALiBi;

const bool added_alibi[] = {
    add_case(
        "ALiBi 3 heads", []<class S>() { return ALiBi<S>({.n_heads = 3}); },
        reference_models::alibi({.NH = 3, .used = 3}, 1)),
    add_case(
        "ALiBi 4 heads, divided", []<class S>() { return ALiBi<S>({.n_heads = 4, .divide = 2.5}); },
        reference_models::alibi({.NH = 4, .used = 4}, 2.5L), 4),
    add_case(
        "ALiBi 3 of 5 heads", []<class S>() { return ALiBi<S>({.n_heads = 5, .use_n_heads = 3}); },
        reference_models::alibi({.NH = 5, .used = 3}, 1), 5),
    add_case(
        "ALiBi asymmetric, 3 of 5 heads",
        []<class S>() { return ALiBi<S>({.n_heads = 5, .use_n_heads = 3, .asymmetric = true}); },
        reference_models::alibi({.NH = 5, .used = 3, .asymmetric = true}, 1), 5),
    add_case(
        "ALiBi learned_div", []<class S>() { return ALiBi<S>({.n_heads = 3, .divide = 2.5, .learned_div = true}); },
        reference_models::alibi({.NH = 3, .used = 3}, 1)),
    add_case(
        "ALiBi asymmetric, learned_div",
        []<class S>() { return ALiBi<S>({.n_heads = 3, .asymmetric = true, .divide = 4, .learned_div = true}); },
        reference_models::alibi({.NH = 3, .used = 3, .asymmetric = true}, 1)),
};

}  // namespace
}  // namespace posbias_test
