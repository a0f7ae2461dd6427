// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "posbias/bias/alibi.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::ALiBi;

struct Heads {
  int NH = 0;
  int used = 0;
  bool asymmetric = false;
};

Truth truth(const Heads& heads, Real divide = 1) {
  const std::vector<Real> slopes = reference::alibi_slopes(heads.NH, heads.used, heads.asymmetric);
  return {.bias = [=](const Truth::Logit& at, const Truth::Parameters& parameters) {
    const Real divisor = parameters.contains("div") ? reference::learned_divisor(parameters.at("div")[0]) : divide;
    const Real slope = slopes[static_cast<std::size_t>(at.h)];
    return heads.asymmetric && at.h < heads.used ? reference::asymmetric_alibi(at.h, slope, at.q, at.k, divisor)
                                                 : reference::alibi(slope, at.q, at.k, divisor);
  }};
}

const bool added[] = {
    add_case(
        "ALiBi 3 heads", []<class S>() { return ALiBi<S>({.n_heads = 3}); }, truth({.NH = 3, .used = 3})),
    add_case(
        "ALiBi 4 heads, divided", []<class S>() { return ALiBi<S>({.n_heads = 4, .divide = 2.5}); },
        truth({.NH = 4, .used = 4}, 2.5L), 4),
    add_case(
        "ALiBi 3 of 5 heads", []<class S>() { return ALiBi<S>({.n_heads = 5, .use_n_heads = 3}); },
        truth({.NH = 5, .used = 3}), 5),
    add_case(
        "ALiBi asymmetric, 3 of 5 heads",
        []<class S>() { return ALiBi<S>({.n_heads = 5, .use_n_heads = 3, .asymmetric = true}); },
        truth({.NH = 5, .used = 3, .asymmetric = true}), 5),
    add_case(
        "ALiBi learned_div", []<class S>() { return ALiBi<S>({.n_heads = 3, .divide = 2.5, .learned_div = true}); },
        truth({.NH = 3, .used = 3})),
    add_case(
        "ALiBi asymmetric, learned_div",
        []<class S>() { return ALiBi<S>({.n_heads = 3, .asymmetric = true, .divide = 4, .learned_div = true}); },
        truth({.NH = 3, .used = 3, .asymmetric = true})),
};

}  // namespace
}  // namespace posbias_test
