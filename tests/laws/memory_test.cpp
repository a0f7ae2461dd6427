// SPDX-License-Identifier: MIT
/// \file
/// No hook needs memory in proportion to L1·L2: twice as many queries and keys take about twice as much.
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "laws/module_under_test.hpp"
#include "support/catch.hpp"

using namespace posbias_test;
using posbias::Positions;

namespace {

/// Positions of every kind that the library tells apart, of those that the module takes.
std::vector<std::pair<std::string, Positions>> kinds(const ReferenceModel& reference_model, Index length) {
  const auto listed = [&](auto position) {
    Eigen::Tensor<decltype(position(Index())), 1> ids(length);
    for (Index i = 0; i < length; ++i) ids(i) = position(i);
    return Positions(ids);
  };
  std::vector<std::pair<std::string, Positions>> all{
      {"default", {}}, {"packed", listed([](Index i) -> std::int64_t { return i % 50; })}};
  if (reference_model.ids_below) return all;
  all.emplace_back("far clusters",
                   listed([](Index i) -> std::int64_t { return i / 2 + i % 2 * (std::int64_t{1} << 40); }));
  if (reference_model.integers_only) return all;
  all.emplace_back("half-integers", listed([](Index i) { return static_cast<double>(i) + 0.5; }));
  all.emplace_back("reals that do not repeat", listed([](Index i) { return std::sqrt(static_cast<double>(i)); }));
  return all;
}

template <class S>
double peak(const Case<S>& law_case, Index length, const Positions& positions) {
  const HookInputs<S> inputs({1, law_case.heads, length, length, 8, 8});
  return static_cast<double>(law_case.tested->peak_bytes(inputs, positions));
}

}  // namespace

TEMPLATE_TEST_CASE("hooks use no memory proportional to L1·L2", "[laws][memory]", POSBIAS_LAW_SCALARS) {
  const Index length = 150;
  double all = 0;
  for (const Case<TestType>& law_case : cases<TestType>()) {
    const auto some = kinds(law_case.reference_model, length), twice = kinds(law_case.reference_model, 2 * length);
    for (std::size_t kind = 0; kind < some.size(); ++kind) {
      INFO(law_case.name << ", " << some[kind].first);
      const double used = peak(law_case, length, some[kind].second);
      CHECK(peak(law_case, 2 * length, twice[kind].second) <= 2.2 * used);
      all += used;
    }
  }
  CHECK(all > 0);
}
