// SPDX-License-Identifier: MIT
/// \file
/// Hooks and adjoints on tensors of 16 bits give, to the last bit, the float hooks on the widened values, with every
/// tensor rounded to nearest even after each hook. Gradients of parameters are those of the float calls.
#include <initializer_list>
#include <vector>

#include "laws/module_under_test.hpp"
#include "laws/placed_inputs.hpp"
#include "support/catch.hpp"

#if POSBIAS_TEST_FLOAT
using namespace posbias_test;

namespace {

/// Numbers that the elements hold.
HookInputs<float> numbers(Elements elements, const Shape& shape, std::uint64_t seed) {
  auto result = HookInputs<float>::numbers(shape, seed);
  round_to(elements, result);
  return result;
}

/// All in float, rounded after each hook.
HookInputs<float> forward(const ModuleUnderTest<float>& tested, Elements elements, const PositionCase& position_case,
                          HookInputs<float> inputs) {
  for (const Hook hook : {Hook::mod_x, Hook::mod_qkv, Hook::mod_mask}) {
    tested.forward(inputs, position_case, {.leading = {inputs.shape.B}, .only = hook});
    round_to(elements, inputs);
  }
  return inputs;
}

struct Gradients {
  HookInputs<float> inputs;
  Named<float> parameters;
};

Gradients backward(const ModuleUnderTest<float>& tested, Elements elements, const PositionCase& position_case,
                   Gradients gradients, const HookInputs<float>& outputs) {
  for (const Hook hook : {Hook::mod_mask, Hook::mod_qkv, Hook::mod_x}) {
    tested.backward(gradients.inputs, outputs, position_case, {.leading = {outputs.shape.B}, .only = hook},
                    gradients.parameters);
    round_to(elements, gradients.inputs);
  }
  return gradients;
}

void check(const ModuleUnderTest<float>& tested, const LayoutCase& layout_case, const PositionCase& position_case,
           const Shape& shape) {
  const HookInputs<float> in = numbers(layout_case.elements, shape, 1);
  const HookInputs<float> expected = forward(tested, layout_case.elements, position_case, in);
  HookInputs<float> out = in;
  tested.forward(out, position_case, layout_case);
  CHECK(differing(out, expected) == "");

  Gradients gradients{numbers(layout_case.elements, shape, 9), tested.zero_gradients()};
  const Gradients of_float = backward(tested, layout_case.elements, position_case, gradients, expected);
  tested.backward(gradients.inputs, expected, position_case, layout_case, gradients.parameters);
  CHECK(differing(gradients.inputs, of_float.inputs) == "");
  CHECK(differing(gradients.parameters, of_float.parameters) == "");
}

}  // namespace

TEST_CASE("16 bits are what float gives, rounded after each hook", "[laws]") {
  REQUIRE_FALSE(cases<float>().empty());
  for (const Case<float>& law_case : cases<float>()) {
    DYNAMIC_SECTION(law_case.name) {
      const std::vector<LayoutCase> layout_cases{{{2, 1}, Storage::fused, Elements::bfloat16},
                                                 {{1, 2}, Storage::narrowed, Elements::half},
                                                 {{1, 2}, Storage::heads_first, Elements::several}};
      const auto check_in = [&](const LayoutCase& layout_case, const PositionCase& position_case, const Shape& shape) {
        INFO(position_case.name << ", L1 = " << shape.L1 << ", elements " << static_cast<int>(layout_case.elements));
        check(*law_case.tested, layout_case, position_case, shape);
      };
      for (const PositionCase& position_case : law_case.position_cases(law_case.small()))
        for (const LayoutCase& layout_case : layout_cases) check_in(layout_case, position_case, law_case.small());
      const std::vector<PositionCase> position_cases = law_case.position_cases(law_case.large());
      for (std::size_t s = 0; s < position_cases.size(); ++s)
        check_in(layout_cases[s % layout_cases.size()], position_cases[s], law_case.large());
    }
  }
}
#endif
