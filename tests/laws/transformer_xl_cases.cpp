// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "posbias/bias/transformer_xl.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::SinusoidLayout;
using posbias::TransformerXL;
using posbias::XLForm;

struct Heads {
  bool half = false;
  bool bio_attention = false;
  Real divide = 1;
};

Truth truth(const Heads& heads) {
  const auto divisor = [=](const Truth::Parameters& w) {
    return w.contains("div") ? reference::learned_divisor(w.at("div")[0]) : heads.divide;
  };
  const auto logit = [=](const Truth::Logit& at, const Truth::Parameters& w) {
    return reference::xl(at.h, at.query, at.relative, w, heads.bio_attention);
  };
  const auto add_u = [](int h, int f, const Truth::Parameters& w) {
    return w.at("bias_r_w")[static_cast<std::size_t>(8 * h + f)];
  };
  return {
      .query_addend = add_u,
      .bias = [=](const Truth::Logit& at, const Truth::Parameters& w) { return logit(at, w).value; },
      .relative = [=](Real q_minus_k,
                      const Truth::Parameters& w) { return reference::xl_row(q_minus_k, divisor(w), w, heads.half); },
      .bias_terms = [=](const Truth::Logit& at, const Truth::Parameters& w) { return logit(at, w).terms; },
      .sums_in_scalar = true,
      .angle_divisor = divisor};
}

const bool added[] = {
    add_case(
        "TransformerXL", []<class S>() { return TransformerXL<S>({.dim = 24, .n_heads = 3}, 1); }, truth({})),
    add_case(
        "TransformerXL half, without linear_bias, divided",
        []<class S>() {
          return TransformerXL<S>(
              {.dim = 32, .n_heads = 4, .layout = SinusoidLayout::half, .linear_bias = false, .divide = 2.5}, 2);
        },
        truth({.half = true, .divide = 2.5L}), 4),
    add_case(
        "TransformerXL, bio_attention",
        []<class S>() { return TransformerXL<S>({.dim = 24, .n_heads = 3, .form = XLForm::bio_attention}, 3); },
        truth({.bio_attention = true})),
    add_case(
        "TransformerXL learned_div",
        []<class S>() { return TransformerXL<S>({.dim = 16, .n_heads = 2, .divide = 2.5, .learned_div = true}, 4); },
        truth({}), 2),
};

}  // namespace
}  // namespace posbias_test
