// SPDX-License-Identifier: MIT
/// \file
/// What must not matter does not, to the last bit: threads, chunks, the rest of the batch, ranks, layouts, maps, views, the
/// type of positions and how they were written down, an offset of all positions, copies.
#include <array>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "laws/module_under_test.hpp"
#include "support/catch.hpp"
#include "support/thread_runner.hpp"

using namespace posbias_test;

namespace {

template <class S>
HookInputs<S> forward(const ModuleUnderTest<S>& tested, HookInputs<S> inputs, const PositionCase& position_case,
                      posbias::Executor executor = {}) {
  tested.forward(inputs, position_case, {.leading = {inputs.shape.B}}, executor);
  return inputs;
}

template <class S>
struct Gradients {
  HookInputs<S> inputs;
  Named<S> parameters;
};

template <class S>
Gradients<S> backward(const ModuleUnderTest<S>& tested, const HookInputs<S>& outputs, const PositionCase& position_case,
                      const LayoutCase& layout_case, posbias::Executor executor = {}) {
  Gradients<S> result{HookInputs<S>::numbers(outputs.shape, 9), tested.zero_gradients()};
  tested.backward(result.inputs, outputs, position_case, layout_case, result.parameters, executor);
  return result;
}

template <class S>
std::string differing(const Gradients<S>& a, const Gradients<S>& b) {
  return posbias_test::differing(a.inputs, b.inputs) + posbias_test::differing(a.parameters, b.parameters);
}

/// Calls `check(case, case, input, output)` for every case, as a section, and every case.
template <class S, class Check>
void for_each_position_case(Shape (Case<S>::*shape_of)() const, const Check& check) {
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      const Shape shape = (law_case.*shape_of)();
      const HookInputs<S> in = HookInputs<S>::numbers(shape);
      for (const PositionCase& position_case : law_case.position_cases(shape)) {
        INFO(position_case.name);
        check(law_case, position_case, in, forward(*law_case.tested, in, position_case));
      }
    }
  }
}

template <class S>
void check_chunks(const ModuleUnderTest<S>& tested, const PositionCase& position_case, const HookInputs<S>& in,
                  const HookInputs<S>& out, Index chunk) {
  for (Index begin = 0; begin < in.shape.L1; begin += chunk) {
    const Index end = std::min(begin + chunk, in.shape.L1);
    const auto part = forward(tested, in.cut_queries(begin, end), position_case.cut_queries(begin, end, in.shape));
    INFO("queries " << begin << " to " << end);
    CHECK(differing(part, out.cut_queries(begin, end)) == "");
  }
  for (Index begin = 0; begin < in.shape.L2; begin += chunk) {
    const Index end = std::min(begin + chunk, in.shape.L2);
    const auto part = forward(tested, in.cut_keys(begin, end), position_case.cut_keys(begin, end, in.shape));
    INFO("keys " << begin << " to " << end);
    CHECK(differing(part, out.cut_keys(begin, end)) == "");
  }
}

}  // namespace

TEMPLATE_TEST_CASE("whole, in chunks and one token at a time are the same bits", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_position_case<S>(
      &Case<S>::small, [](const Case<S>& law_case, const PositionCase& position_case, const auto& in, const auto& out) {
        check_chunks(*law_case.tested, position_case, in, out, 1);
        check_chunks(*law_case.tested, position_case, in, out, 2);
      });
}

TEMPLATE_TEST_CASE("chunks across the blocks of loops are the same bits", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_position_case<S>(
      &Case<S>::large, [](const Case<S>& law_case, const PositionCase& position_case, const auto& in, const auto& out) {
        check_chunks(*law_case.tested, position_case, in, out, 48);
      });
}

TEMPLATE_TEST_CASE("batch entries do not see each other, and may change places", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_position_case<S>(&Case<S>::small, [](const Case<S>& law_case, const PositionCase& position_case,
                                                const auto& in, const auto& out) {
    const ModuleUnderTest<S>& tested = *law_case.tested;
    for (Index n = 0; n < in.shape.B; ++n)
      CHECK(differing(forward(tested, in.entries({n}), position_case.entry(n)), out.entries({n})) == "");
    CHECK(differing(forward(tested, in.entries({1, 0}), position_case.permuted({1, 0})), out.entries({1, 0})) == "");
    CHECK(differing(forward(tested, in, position_case), out) == "");
  });
}

#if POSBIAS_TEST_ALL  // it is a form of its own
TEST_CASE("an entry without leading dimensions is an entry of a batch", "[laws]") {
  for_each_position_case<double>(
      &Case<double>::small,
      [](const Case<double>& law_case, const PositionCase& position_case, const auto& in, const auto& out) {
        for (Index n = 0; n < in.shape.B; ++n) {
          const HookInputs<double> expected = out.entries({n});
          HookInputs<double> alone = in.entries({n});
          law_case.tested->forward(alone, position_case.entry(n), {.leading = {}});
          CHECK(differing(alone, expected) == "");
          CHECK(differing(backward(*law_case.tested, expected, position_case.entry(n), {.leading = {}}),
                          backward(*law_case.tested, expected, position_case.entry(n), {.leading = {1}})) == "");
        }
      });
}
#endif

TEMPLATE_TEST_CASE("ranks, layouts, maps and views are the same bits, forward and backward", "[laws]",
                   POSBIAS_LAW_SCALARS) {
  using S = TestType;
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      Shape shape = law_case.small();
      shape.B = 6;
      shape.L2 = 19;  // more than a tile of a column-major mask is wide
      const HookInputs<S> in = HookInputs<S>::numbers(shape);
      const std::vector<PositionCase> position_cases = law_case.position_cases(shape);
      for (std::size_t s = 0; s < position_cases.size(); ++s) {
        const PositionCase& position_case = position_cases[s];
        INFO(position_case.name);
        const HookInputs<S> out = forward(*law_case.tested, in, position_case);
        const auto gradients = backward(*law_case.tested, out, position_case, {.leading = {6}});
        for (const LayoutCase& layout_case : layout_cases<S>(s)) {
          INFO("rank " << layout_case.leading.size() << ", storage " << static_cast<int>(layout_case.storage));
          HookInputs<S> again = in;
          law_case.tested->forward(again, position_case, layout_case);
          CHECK(differing(again, out) == "");
          CHECK(differing(backward(*law_case.tested, out, position_case, layout_case), gradients) == "");
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("any executor gives the same bits, forward and backward", "[laws][again]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  ThreadRunner runner;
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      const Shape shape = law_case.large();
      const HookInputs<S> in = HookInputs<S>::numbers(shape);
      const bool works =
          law_case.reference_model.addend || law_case.reference_model.change_query || law_case.reference_model.bias;
      // Views of larger tensors in one case of each way to find relative positions.
      const std::map<std::string, LayoutCase> views{{"range", {{1, 2}, Storage::fused}},
                                                    {"packed rows", {{2, 1}, Storage::narrowed}},
                                                    {"wide gaps per entry", {{1, 2}, Storage::heads_first}}};
      for (const PositionCase& position_case : law_case.position_cases(shape)) {
        INFO(position_case.name);
        const HookInputs<S> out = forward(*law_case.tested, in, position_case);
        const auto gradients = backward(*law_case.tested, out, position_case, {.leading = {2}});
        const auto check = [&](const LayoutCase& layout_case) {
          HookInputs<S> again = in;
          law_case.tested->forward(again, position_case, layout_case, runner);
          CHECK(differing(again, out) == "");
          CHECK(differing(backward(*law_case.tested, out, position_case, layout_case, runner), gradients) == "");
        };
        check({.leading = {2}});
        if (const auto view = views.find(position_case.name); view != views.end()) check(view->second);
      }
      if (works) CHECK(runner.tasks() > 0);
    }
  }
}

TEMPLATE_TEST_CASE("const calls from eight threads at once give the same bits", "[laws][again]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      const Shape shape = law_case.small();
      const std::vector<PositionCase> all = law_case.position_cases(shape);
      const HookInputs<S> in = HookInputs<S>::numbers(shape);
      std::vector<HookInputs<S>> outs;
      std::vector<Gradients<S>> gradients;
      for (const PositionCase& position_case : all) {
        outs.push_back(forward(*law_case.tested, in, position_case));
        gradients.push_back(backward(*law_case.tested, outs.back(), position_case, {.leading = {2}}));
      }
      std::array<std::string, 8> wrong;
      std::vector<std::thread> threads;
      for (std::size_t t = 0; t < wrong.size(); ++t)
        threads.emplace_back([&, t] {
          // Every thread begins elsewhere, so that different cases meet.
          for (std::size_t i = 0; i < all.size(); ++i) {
            const std::size_t s = (i + 3 * t) % all.size();
            wrong[t] += differing(forward(*law_case.tested, in, all[s]), outs[s]) +
                        differing(backward(*law_case.tested, outs[s], all[s], {.leading = {2}}), gradients[s]);
          }
        });
      for (std::thread& thread : threads) thread.join();
      for (const std::string& text : wrong) CHECK(text == "");
    }
  }
}

TEMPLATE_TEST_CASE("copies and moves behave as the original, which they outlive", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_position_case<S>(
      &Case<S>::small, [](const Case<S>& law_case, const PositionCase& position_case, const auto& in, const auto& out) {
        auto original = law_case.tested->copy();
        auto copy = original->copy();
        original.reset();
        CHECK(differing(forward(*copy, in, position_case), out) == "");

        auto moved = copy->move();
        copy.reset();
        CHECK(differing(forward(*moved, in, position_case), out) == "");

        // Assigned over a module with other parameters.
        auto assigned = moved->copy();
        Named<S> other = assigned->parameters();
        for (auto& [name, values] : other)
          for (S& value : values) value += S(0.5);
        assigned->set_parameters(other);
        const bool positions_matter = position_case.name != "no positions" && differing(in, out) != "";
        if (!other.empty() && positions_matter) CHECK(differing(forward(*assigned, in, position_case), out) != "");
        assigned->assign(*moved);
        moved.reset();
        CHECK(differing(forward(*assigned, in, position_case), out) == "");
        CHECK(posbias_test::differing(assigned->parameters(), law_case.tested->parameters()) == "");
      });
}

TEMPLATE_TEST_CASE("a range, the same positions listed, and any type of them are the same bits", "[laws][again]",
                   POSBIAS_LAW_SCALARS) {
  using S = TestType;
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      for (const Shape& shape : {law_case.small(), law_case.square(), law_case.large()}) {
        const HookInputs<S> in = HookInputs<S>::numbers(shape);
        const HookInputs<S> by_range = forward(*law_case.tested, in, {"range", Where::range(137), Where::range(131)});
        const auto gradients =
            backward(*law_case.tested, by_range, {"range", Where::range(137), Where::range(131)}, {.leading = {2}});
        for (const Index rows : {Index{0}, shape.B})
          for (const PositionType type :
               {PositionType::int32, PositionType::int64, PositionType::float32, PositionType::float64}) {
            PositionCase listed{"listed", Where::listed(rows, shape.L1, [](Index, Index i) { return 137 + i; }),
                                Where::listed(rows, shape.L2, [](Index, Index i) { return 131 + i; })};
            listed.type = type;
            INFO("rows " << rows << ", type " << static_cast<int>(type));
            CHECK(differing(forward(*law_case.tested, in, listed), by_range) == "");
            if (rows == 0)
              CHECK(differing(backward(*law_case.tested, by_range, listed, {.leading = {2}}), gradients) == "");
          }
        const HookInputs<S> by_default = forward(*law_case.tested, in, {"default"});
        CHECK(differing(forward(*law_case.tested, in, {"range", Where::range(0), Where::range(0)}), by_default) == "");
        if (shape.L1 == shape.L2) {
          PositionCase together{"q_k", Where::range(131), Where::range(131)};
          const HookInputs<S> apart = forward(*law_case.tested, in, together);
          together.together = true;
          CHECK(differing(forward(*law_case.tested, in, together), apart) == "");
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("integers and reals of every type agree where they are not consecutive", "[laws]",
                   POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_position_case<S>(&Case<S>::small,
                            [](const Case<S>& law_case, PositionCase position_case, const auto& in, const auto& out) {
                              // Up to 2^24 every one of these positions is exact in float; up to 2^31, the integers in int32.
                              if (position_case.furthest() < 0x1p24L) {
                                position_case.type = PositionType::float32;
                                CHECK(differing(forward(*law_case.tested, in, position_case), out) == "");
                              }
                              if (position_case.furthest() < 0x1p31L && position_case.integral()) {
                                position_case.type = PositionType::int32;
                                CHECK(differing(forward(*law_case.tested, in, position_case), out) == "");
                              }
                              position_case.type = PositionType::float64;
                              CHECK(differing(forward(*law_case.tested, in, position_case), out) == "");
                            });
}

TEMPLATE_TEST_CASE("a bias does not see an offset of all positions, however large", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_position_case<S>(
      &Case<S>::small, [](const Case<S>& law_case, const PositionCase& position_case, const auto& in, const auto& out) {
        if (!law_case.reference_model.bias) return;
        for (const int power : {20, 40})
          for (const int sign : {1, -1}) {
            const auto far = forward(*law_case.tested, in, position_case.shifted(sign * (std::int64_t{1} << power)));
            CHECK(same_bits(far.mask, out.mask));
          }
      });
}

TEMPLATE_TEST_CASE("zero batch entries with a row of positions each", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      Shape shape = law_case.small();
      shape.B = 0;
      const HookInputs<S> empty(shape);
      // Lists of 5 and 7 positions for each of no entries: tensors of shape (0, 5) and (0, 7).
      PositionCase position_case{"none"};
      position_case.q = {Where::Kind::listed, 0, -1, shape.L1, {}};
      position_case.k = {Where::Kind::listed, 0, -1, shape.L2, {}};
      const HookInputs<S> out = forward(*law_case.tested, empty, position_case);
      CHECK(differing(out, empty) == "");
      const auto gradients = backward(*law_case.tested, out, position_case, {.leading = {0}});
      CHECK(posbias_test::differing(gradients.parameters, law_case.tested->zero_gradients()) == "");
    }
  }
}
