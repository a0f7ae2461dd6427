// SPDX-License-Identifier: MIT
/// \file
/// Adjoints are the adjoints of their hooks: <J u, w> = <u, J^T w>, and every parameter's gradient is that of
/// differences. Gradients of parameters add up.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "laws/module_under_test.hpp"
#include "support/catch.hpp"

using namespace posbias_test;

namespace {

using Values = std::vector<double>;

/// Weights of a loss: numbers, and 0 where the mask blocks (-inf), which does not move.
HookInputs<double> loss_weights(const ModuleUnderTest<double>& tested, HookInputs<double> in,
                                const PositionCase& position_case) {
  HookInputs<double> weights = HookInputs<double>::numbers(in.shape, 2);
  tested.forward(in, position_case, {.leading = {in.shape.B}});
  for (std::size_t i = 0; i < in.mask.size(); ++i)
    if (std::isinf(in.mask[i])) weights.mask[i] = 0;
  return weights;
}

struct Loss {
  Real sum = 0;
  Real magnitude = 0;  ///< the sum of absolute values, which roundings are relative to
};

/// Sum of weight times value over all outputs.
Loss loss(const ModuleUnderTest<double>& tested, HookInputs<double> inputs, const PositionCase& position_case,
          HookInputs<double> weights) {
  tested.forward(inputs, position_case, {.leading = {inputs.shape.B}});
  Loss result;
  std::vector<const Values*> outputs;
  inputs.for_each([&](const Values& values) { outputs.push_back(&values); });
  auto output = outputs.begin();
  weights.for_each([&](const Values& weight) {
    const Values& values = **output++;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (weight[i] == 0) continue;
      const Real term = static_cast<Real>(weight[i]) * static_cast<Real>(values[i]);
      result.sum += term;
      result.magnitude += std::abs(term);
    }
  });
  return result;
}

/// Derivative of f at 0 by central differences of fourth order.
template <class F>
double derivative(const F& f, double step) {
  return static_cast<double>((8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step));
}

struct Gradients {
  HookInputs<double> inputs;
  Named<double> parameters;
};

Gradients gradients_of(const ModuleUnderTest<double>& tested, HookInputs<double> in, const PositionCase& position_case,
                       const HookInputs<double>& weights) {
  tested.forward(in, position_case, {.leading = {in.shape.B}});
  Gradients result{weights, tested.zero_gradients()};
  tested.backward(result.inputs, in, position_case, {.leading = {in.shape.B}}, result.parameters);
  return result;
}

double dot(HookInputs<double> a, HookInputs<double> b) {
  double sum = 0;
  std::vector<const Values*> others;
  b.for_each([&](const Values& values) { others.push_back(&values); });
  auto other = others.begin();
  a.for_each([&](const Values& values) {
    const Values& with = **other++;
    for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * with[i];
  });
  return sum;
}

HookInputs<double> moved(HookInputs<double> from, HookInputs<double> direction, double by) {
  std::vector<const Values*> steps;
  direction.for_each([&](const Values& values) { steps.push_back(&values); });
  auto step = steps.begin();
  from.for_each([&](Values& values) {
    const Values& along = **step++;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += by * along[i];
  });
  return from;
}

struct Direction {
  std::string name;
  Named<double> values;
};

/// Between them they move every entry of every parameter: each that has a gradient alone, and those that have none,
/// most of a long table, together. There numbers of their own keep errors from cancelling.
std::vector<Direction> entry_by_entry(const Named<double>& gradients, const Named<double>& zero) {
  std::vector<Direction> all;
  Numbers numbers(7);
  for (const auto& [name, gradient] : gradients) {
    Direction others{name + " where it is 0", zero};
    bool any = false;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      if (gradient[i] == 0) {
        others.values.at(name)[i] = 2 + numbers.value();
        any = true;
        continue;
      }
      all.push_back({name + "[" + std::to_string(i) + "]", zero});
      all.back().values.at(name)[i] = 1;
    }
    if (any) all.push_back(std::move(others));
  }
  return all;
}

/// Three that each move all entries of all parameters at once, either way.
std::vector<Direction> all_at_once(const Named<double>& zero) {
  std::vector<Direction> all;
  for (std::uint64_t seed = 7; seed < 10; ++seed) {
    Numbers numbers(seed);
    all.push_back({"direction " + std::to_string(seed), zero});
    for (auto& [name, values] : all.back().values)
      for (double& value : values) value = numbers.value();
  }
  return all;
}

/// Hundreds of entries, one after another, take long: those that have as many are moved entry by entry in one case of
/// each way to find relative positions, and at once in all others.
std::vector<Direction> directions(const PositionCase& position_case, const Named<double>& gradients,
                                  const Named<double>& zero) {
  std::ptrdiff_t entries = 0;
  for (const auto& [name, values] : gradients)
    entries += std::count_if(values.begin(), values.end(), [](double value) { return value != 0; });
  const bool each = position_case.name == "range" || position_case.name == "packed rows" ||
                    position_case.name == "reals that do not repeat";
  return each || entries <= 150 ? entry_by_entry(gradients, zero) : all_at_once(zero);
}

/// The sum of products of all entries.
double dot(const Named<double>& a, const Named<double>& b) {
  double sum = 0;
  for (const auto& [name, values] : a) sum = std::inner_product(values.begin(), values.end(), b.at(name).begin(), sum);
  return sum;
}

/// Sines turn too fast for differences where angles are large, and so do the bends of an MLP.
bool can_be_differenced(const Case<double>& law_case, const PositionCase& position_case) {
  const ReferenceModel& reference_model = law_case.reference_model;
  if (!reference_model.addend && !reference_model.change_query && !reference_model.change_key &&
      !reference_model.relative)
    return true;
  return position_case.furthest() < 320;
}

}  // namespace

TEST_CASE("every adjoint is the adjoint of its hook", "[laws][gradients]") {
  REQUIRE_FALSE(cases<double>().empty());
  for (const Case<double>& law_case : cases<double>()) {
    DYNAMIC_SECTION(law_case.name) {
      for (const Shape& shape : {law_case.small(), law_case.square()}) {
        const HookInputs<double> in = HookInputs<double>::numbers(shape);
        for (const PositionCase& position_case : law_case.position_cases(shape)) {
          INFO(position_case.name);
          const HookInputs<double> weights = loss_weights(*law_case.tested, in, position_case);
          const Gradients gradients = gradients_of(*law_case.tested, in, position_case, weights);
          for (std::uint64_t seed = 3; seed < 6; ++seed) {
            const auto direction = HookInputs<double>::numbers(shape, seed);
            // The hooks are linear in x, and at most quadratic in q and k: differences of fourth order are exact.
            const double along = derivative(
                [&](double t) { return loss(*law_case.tested, moved(in, direction, t), position_case, weights).sum; },
                0.5);
            const double expected = dot(direction, gradients.inputs);
            const double scale = std::sqrt(dot(direction, direction) * dot(weights, weights));
            const double magnitude = static_cast<double>(loss(*law_case.tested, in, position_case, weights).magnitude);
            CHECK(std::abs(along - expected) <= 1e-12 * scale + 8 * 0x1p-53 * magnitude);
          }
        }
      }
    }
  }
}

TEST_CASE("every entry's gradient is its own", "[laws][gradients][again]") {
  // One entry of q, k and x at a time: a sum over a direction could hide two errors that cancel.
  for (const Case<double>& law_case : cases<double>()) {
    DYNAMIC_SECTION(law_case.name) {
      Shape shape = law_case.small();
      shape.L1 = 2;
      shape.L2 = 3;
      const HookInputs<double> in = HookInputs<double>::numbers(shape);
      const PositionCase position_case{
          "apart", Where::listed(2, 2, [](Index n, Index i) { return 100 + 11 * n + 3 * i; }), Where::range(101)};
      const HookInputs<double> weights = loss_weights(*law_case.tested, in, position_case);
      const Gradients gradients = gradients_of(*law_case.tested, in, position_case, weights);
      const auto check = [&](Values HookInputs<double>::*tensor, const char* name) {
        for (std::size_t i = 0; i < (in.*tensor).size(); ++i) {
          const double slope = derivative(
              [&](double t) {
                HookInputs<double> changed = in;
                (changed.*tensor)[i] += t;
                return loss(*law_case.tested, changed, position_case, weights).sum;
              },
              0.5);
          const double expected = (gradients.inputs.*tensor)[i];
          if (!(std::abs(slope - expected) <= 1e-11))
            FAIL_CHECK(name << "[" << i << "]: " << expected << ", by differences " << slope);
        }
      };
      check(&HookInputs<double>::x, "x");
      check(&HookInputs<double>::q, "q");
      check(&HookInputs<double>::k, "k");
      check(&HookInputs<double>::v, "v");
      CHECK(same_bits(gradients.inputs.mask, weights.mask));
    }
  }
}

TEST_CASE("every parameter's gradient is that of differences", "[laws][gradients][differences]") {
  for (const Case<double>& law_case : cases<double>()) {
    DYNAMIC_SECTION(law_case.name) {
      const Shape shape = law_case.small();
      const HookInputs<double> in = HookInputs<double>::numbers(shape);
      int compared = 0;
      for (const PositionCase& position_case : law_case.position_cases(shape)) {
        if (!can_be_differenced(law_case, position_case)) continue;
        INFO(position_case.name);
        const HookInputs<double> weights = loss_weights(*law_case.tested, in, position_case);
        const Gradients gradients = gradients_of(*law_case.tested, in, position_case, weights);
        const auto tested = law_case.tested->copy();
        const Named<double> parameters = tested->parameters();
        double total = 0;
        for (const Direction& direction : directions(position_case, gradients.parameters, tested->zero_gradients())) {
          const double slope = derivative(
              [&](double t) {
                Named<double> changed = parameters;
                for (auto& [name, values] : changed) {
                  const Values& along = direction.values.at(name);
                  for (std::size_t i = 0; i < values.size(); ++i) values[i] += t * along[i];
                }
                tested->set_parameters(changed);
                return loss(*tested, in, position_case, weights).sum;
              },
              0x1p-12);
          const double expected = dot(direction.values, gradients.parameters);
          if (!(std::abs(slope - expected) <= 1e-7 * (1 + std::abs(expected))))
            FAIL_CHECK(direction.name << ": " << expected << ", by differences " << slope);
          total += std::abs(expected);
        }
        if (total > 0) ++compared;
      }
      if (!law_case.tested->parameters().empty()) CHECK(compared >= 10);
    }
  }
}

TEMPLATE_TEST_CASE("gradients of parameters add up", "[laws][gradients]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      const Shape shape = law_case.small();
      for (const PositionCase& position_case : law_case.position_cases(shape)) {
        INFO(position_case.name);
        HookInputs<S> out = HookInputs<S>::numbers(shape);
        law_case.tested->forward(out, position_case, {.leading = {shape.B}});
        const auto add_to = [&](Named<S>& gradients) {
          HookInputs<S> weights = HookInputs<S>::numbers(shape, 2);
          law_case.tested->backward(weights, out, position_case, {.leading = {shape.B}}, gradients);
          return weights;
        };
        Named<S> once = law_case.tested->zero_gradients();
        const HookInputs<S> first = add_to(once);
        Named<S> twice = once;
        CHECK(differing(add_to(twice), first) == "");
        Named<S> from_five = law_case.tested->zero_gradients();
        for (auto& [name, values] : from_five)
          for (S& value : values) value = 5;
        add_to(from_five);
        const double rounding = std::is_same_v<S, float> ? 0x1p-22 : 0x1p-51;
        for (const auto& [name, values] : once)
          for (std::size_t i = 0; i < values.size(); ++i) {
            const double g = static_cast<double>(values[i]);
            const double allowed = rounding * (5 + 2 * std::abs(g));
            CHECK(std::abs(static_cast<double>(twice.at(name)[i]) - 2 * g) <= allowed);
            CHECK(std::abs(static_cast<double>(from_five.at(name)[i]) - (5 + g)) <= allowed);
          }
      }
    }
  }
}

#if POSBIAS_TEST_FLOAT
TEST_CASE("gradients in float are those in double, rounded", "[laws][gradients]") {
  REQUIRE(cases<float>().size() == cases<double>().size());
  for (std::size_t c = 0; c < cases<float>().size(); ++c) {
    const Case<float>& single = cases<float>()[c];
    const Case<double>& twice = cases<double>()[c];
    DYNAMIC_SECTION(single.name) {
      const auto exact = twice.tested->copy();
      Named<double> parameters;
      for (const auto& [name, values] : single.tested->parameters())
        parameters[name] = Values(values.begin(), values.end());
      exact->set_parameters(parameters);
      for (const Shape& shape : {single.small(), single.large()})
        for (const PositionCase& position_case : single.position_cases(shape)) {
          INFO(position_case.name << ", L1 = " << shape.L1);
          HookInputs<float> out = HookInputs<float>::numbers(shape);
          HookInputs<double> exact_out = HookInputs<double>::numbers(shape);
          single.tested->forward(out, position_case, {.leading = {shape.B}});
          exact->forward(exact_out, position_case, {.leading = {shape.B}});
          HookInputs<float> inputs = HookInputs<float>::numbers(shape, 2);
          HookInputs<double> exact_inputs = HookInputs<double>::numbers(shape, 2);
          Named<float> gradients = single.tested->zero_gradients();
          Named<double> exact_gradients = exact->zero_gradients();
          single.tested->backward(inputs, out, position_case, {.leading = {shape.B}}, gradients);
          exact->backward(exact_inputs, exact_out, position_case, {.leading = {shape.B}}, exact_gradients);

          std::vector<const Values*> expected;
          exact_inputs.for_each([&](const Values& values) { expected.push_back(&values); });
          auto next = expected.begin();
          inputs.for_each([&](const std::vector<float>& values) {
            const Values& reference_model = **next++;
            double worst = 0, largest = 1;
            for (std::size_t i = 0; i < values.size(); ++i) {
              worst = std::max(worst, std::abs(static_cast<double>(values[i]) - reference_model[i]));
              largest = std::max(largest, std::abs(reference_model[i]));
            }
            CHECK(worst <= 1e-6 * largest);
          });
          for (const auto& [name, values] : exact_gradients) {
            double largest = 1;
            for (const double value : values) largest = std::max(largest, std::abs(value));
            for (std::size_t i = 0; i < values.size(); ++i) {
              const double got = static_cast<double>(gradients.at(name)[i]);
              if (!(std::abs(got - values[i]) <= 1e-5 * largest))
                FAIL_CHECK(name << "[" << i << "]: " << got << ", in double " << values[i]);
            }
          }
        }
    }
  }
}
#endif
