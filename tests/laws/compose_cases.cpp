// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "posbias/bias/alibi.hpp"
#include "posbias/bias/relative_position_bias.hpp"
#include "posbias/core/compose.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/rotation/rotary.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::ALiBi;
using posbias::Compose;
using posbias::RelativePositionBias;
using posbias::Rotary;
using posbias::Sinusoidal;

using Divisor = std::function<Real(const ReferenceModel::Parameters&)>;

Divisor learned(const std::string& name) {
  return [=](const ReferenceModel::Parameters& w) { return reference::learned_divisor(w.at(name)[0]); };
}

auto rotation(const Divisor& divisor) {
  return [=](std::span<Real> head, Real p, const ReferenceModel::Parameters& w) {
    reference::rotate(head, p, divisor(w), {.H = 8, .rotated = 8});
  };
}

auto alibi(const Divisor& divisor) {
  return
      [=, slopes = reference::alibi_slopes(3)](const ReferenceModel::Logit& at, const ReferenceModel::Parameters& w) {
        return reference::alibi(slopes[static_cast<std::size_t>(at.h)], at.q, at.k, divisor(w));
      };
}

ReferenceModel one_of_each() {
  const Divisor one = [](const ReferenceModel::Parameters&) { return Real(1); };
  return {.addend = [](Real p, const ReferenceModel::Parameters&) { return reference::sinusoid(p, 1, 8, false); },
          .change_query = rotation(one),
          .change_key = rotation(one),
          .bias = alibi(one)};
}

ReferenceModel biases_and_rotation() {
  const auto t5 = [](const ReferenceModel::Logit& at, const ReferenceModel::Parameters& w) {
    const std::int64_t bucket = reference::t5_bucket(static_cast<std::int64_t>(at.k - at.q), {});
    return w.at("1.relative_attention_bias.weight")[static_cast<std::size_t>(bucket * 3 + at.h)];
  };
  return {.change_query = rotation(learned("2.div")),
          .change_key = rotation(learned("2.div")),
          .bias = alibi(learned("0.div")),
          .further_biases = {t5},
          .angle_divisor = learned("2.div"),
          .integers_only = true};
}

const bool added_compose[] = {
    add_case(
        "Compose of Sinusoidal, Rotary, ALiBi",
        []<class S>() {
          return Compose(Sinusoidal<S>({.dim = 8}), Rotary<S>({.head_dim = 8}), ALiBi<S>({.n_heads = 3}));
        },
        one_of_each()),
    add_case(
        "Compose of ALiBi, RelativePositionBias, Rotary, learned_div",
        []<class S>() {
          return Compose(ALiBi<S>({.n_heads = 3, .divide = 2.5, .learned_div = true}),
                         RelativePositionBias<S>({.n_heads = 3}, 1),
                         Rotary<S>({.head_dim = 8, .divide = 4, .learned_div = true}));
        },
        biases_and_rotation()),
};

}  // namespace
}  // namespace posbias_test
