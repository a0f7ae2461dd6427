// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "laws/reference_models.hpp"
#include "posbias/bias/transformer_xl.hpp"

namespace posbias_test {
namespace {

using posbias::SinusoidLayout;
using posbias::TransformerXL;
using posbias::XLForm;

const bool added_transformer_xl[] = {
    add_case(
        "TransformerXL", []<class S>() { return TransformerXL<S>({.dim = 24, .n_heads = 3}, 1); },
        reference_models::transformer_xl({}, 1)),
    add_case(
        "TransformerXL half, without linear_bias, divided",
        []<class S>() {
          return TransformerXL<S>(
              {.dim = 32, .n_heads = 4, .layout = SinusoidLayout::half, .linear_bias = false, .divide = 2.5}, 2);
        },
        reference_models::transformer_xl({.half = true}, 2.5L), 4),
    add_case(
        "TransformerXL, bio_attention",
        []<class S>() { return TransformerXL<S>({.dim = 24, .n_heads = 3, .form = XLForm::bio_attention}, 3); },
        reference_models::transformer_xl({.bio_attention = true}, 1)),
    add_case(
        "TransformerXL learned_div",
        []<class S>() { return TransformerXL<S>({.dim = 16, .n_heads = 2, .divide = 2.5, .learned_div = true}, 4); },
        reference_models::transformer_xl({}, 1), 2),
};

}  // namespace
}  // namespace posbias_test
