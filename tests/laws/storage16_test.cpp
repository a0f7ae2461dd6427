// SPDX-License-Identifier: MIT
/// \file
/// Hooks and adjoints on tensors of 16 bits give, to the last bit, the float hooks on the widened values, with every
/// tensor rounded to nearest even after each hook. Gradients of parameters are those of the float calls.
#include <initializer_list>
#include <vector>

#include "laws/placed_bundle.hpp"
#include "laws/subject.hpp"
#include "support/catch.hpp"

#if POSBIAS_TEST_FLOAT
using namespace posbias_test;

namespace {

/// Numbers that the elements hold.
Bundle<float> numbers(Elements elements, const Shape& shape, std::uint64_t seed) {
  auto result = Bundle<float>::numbers(shape, seed);
  round_to(elements, result);
  return result;
}

/// All in float, rounded after each hook.
Bundle<float> forward(const Subject<float>& subject, Elements elements, const Scene& scene, Bundle<float> bundle) {
  for (const Hook hook : {Hook::mod_x, Hook::mod_qkv, Hook::mod_mask}) {
    subject.forward(bundle, scene, {.leading = {bundle.shape.B}, .only = hook});
    round_to(elements, bundle);
  }
  return bundle;
}

struct Gradients {
  Bundle<float> inputs;
  Named<float> parameters;
};

Gradients backward(const Subject<float>& subject, Elements elements, const Scene& scene, Gradients gradients,
                   const Bundle<float>& outputs) {
  for (const Hook hook : {Hook::mod_mask, Hook::mod_qkv, Hook::mod_x}) {
    subject.backward(gradients.inputs, outputs, scene, {.leading = {outputs.shape.B}, .only = hook},
                     gradients.parameters);
    round_to(elements, gradients.inputs);
  }
  return gradients;
}

void check(const Subject<float>& subject, const Form& form, const Scene& scene, const Shape& shape) {
  const Bundle<float> in = numbers(form.elements, shape, 1);
  const Bundle<float> expected = forward(subject, form.elements, scene, in);
  Bundle<float> out = in;
  subject.forward(out, scene, form);
  CHECK(differing(out, expected) == "");

  Gradients gradients{numbers(form.elements, shape, 9), subject.zero_gradients()};
  const Gradients of_float = backward(subject, form.elements, scene, gradients, expected);
  subject.backward(gradients.inputs, expected, scene, form, gradients.parameters);
  CHECK(differing(gradients.inputs, of_float.inputs) == "");
  CHECK(differing(gradients.parameters, of_float.parameters) == "");
}

}  // namespace

TEST_CASE("16 bits are what float gives, rounded after each hook", "[laws]") {
  REQUIRE_FALSE(cases<float>().empty());
  for (const Case<float>& law_case : cases<float>()) {
    DYNAMIC_SECTION(law_case.name) {
      const std::vector<Form> forms{{{2, 1}, Storage::fused, Elements::bfloat16},
                                    {{1, 2}, Storage::narrowed, Elements::half},
                                    {{1, 2}, Storage::heads_first, Elements::several}};
      const auto check_in = [&](const Form& form, const Scene& scene, const Shape& shape) {
        INFO(scene.name << ", L1 = " << shape.L1 << ", elements " << static_cast<int>(form.elements));
        check(*law_case.subject, form, scene, shape);
      };
      for (const Scene& scene : law_case.scenes(law_case.small()))
        for (const Form& form : forms) check_in(form, scene, law_case.small());
      const std::vector<Scene> scenes = law_case.scenes(law_case.large());
      for (std::size_t s = 0; s < scenes.size(); ++s) check_in(forms[s % forms.size()], scenes[s], law_case.large());
    }
  }
}
#endif
