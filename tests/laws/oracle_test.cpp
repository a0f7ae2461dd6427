// SPDX-License-Identifier: MIT
/// \file
/// Every module computes what the oracle says, wherever its tokens are; a hook that it does not use is the identity.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "laws/module_under_test.hpp"
#include "laws/oracle.hpp"
#include "support/catch.hpp"
#include "support/modules.hpp"

using namespace posbias_test;

namespace {

/// What the oracle finds wrong with a module, or nothing.
template <class S>
std::string difference(const Case<S>& law_case, const PositionCase& position_case, const HookInputs<S>& in) {
  HookInputs<S> out = in;
  law_case.tested->forward(out, position_case, {.leading = {in.shape.B}});
  return Oracle<S>(law_case.reference_model, law_case.tested->parameters(), position_case, in, std::move(out))
      .difference();
}

template <class S>
void check_position_cases(const Case<S>& law_case, const Shape& shape) {
  const std::vector<PositionCase> all = law_case.position_cases(shape);
  REQUIRE(all.size() >= (shape.L1 < 50 ? 15U : 8U));
  for (const PositionCase& position_case : all) {
    INFO(position_case.name);
    CHECK(difference(law_case, position_case, HookInputs<S>::numbers(shape)) == "");
    if (shape.L1 < 10) CHECK(difference(law_case, position_case, HookInputs<S>::one_hot(shape)) == "");
  }
}

}  // namespace

TEMPLATE_TEST_CASE("every module is the oracle's, wherever its tokens are", "[laws][again]", POSBIAS_LAW_SCALARS) {
  REQUIRE_FALSE(cases<TestType>().empty());
  for (const Case<TestType>& law_case : cases<TestType>()) {
    DYNAMIC_SECTION(law_case.name) {
      check_position_cases(law_case, law_case.small());
      check_position_cases(law_case, law_case.square());
      check_position_cases(law_case, law_case.large());
    }
  }
}

TEMPLATE_TEST_CASE("one token, no token, no key, no batch entry", "[laws]", POSBIAS_LAW_SCALARS) {
  for (const Case<TestType>& law_case : cases<TestType>()) {
    DYNAMIC_SECTION(law_case.name) {
      for (const Index B : {0, 1, 2})
        for (const Index L1 : {0, 1, 3})
          for (const Index L2 : {0, 1, 5}) {
            const Shape shape{B, law_case.heads, L1, L2, 8, 8};
            const std::int64_t first = 100;
            const auto position = [](Index n, Index i) { return 100 + 7 * n + i * i; };
            const HookInputs<TestType> in = HookInputs<TestType>::numbers(shape);
            for (const PositionCase& position_case :
                 {PositionCase{"range", Where::range(first), Where::range(first)},
                  PositionCase{"shared", Where::listed(0, L1, position), Where::listed(0, L2, position)},
                  PositionCase{"rows", Where::listed(B, L1, position), Where::listed(B, L2, position)}}) {
              if (B == 0 && position_case.name == "rows") continue;
              INFO("B " << B << ", L1 " << L1 << ", L2 " << L2 << ", " << position_case.name);
              CHECK(difference(law_case, position_case, in) == "");
            }
          }
    }
  }
}

TEST_CASE("every module has cases", "[laws]") {
  for_each_module_type<double>([]<class Module>(std::type_identity<Module>) {
    const bool has_one = std::ranges::any_of(
        cases<double>(), [](const Case<double>& law_case) { return law_case.name.starts_with(Module::name); });
    INFO(Module::name);
    CHECK(has_one);
  });
}

#if POSBIAS_TEST_FLOAT
TEST_CASE("the same cases are there for float and double", "[laws]") {
  REQUIRE(cases<float>().size() == cases<double>().size());
  for (std::size_t i = 0; i < cases<float>().size(); ++i) CHECK(cases<float>()[i].name == cases<double>()[i].name);
}
#endif
