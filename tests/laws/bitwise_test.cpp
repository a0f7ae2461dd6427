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

#include "laws/subject.hpp"
#include "support/catch.hpp"
#include "support/thread_runner.hpp"

using namespace posbias_test;

namespace {

template <class S>
Bundle<S> forward(const Subject<S>& subject, Bundle<S> bundle, const Scene& scene, posbias::Executor executor = {}) {
  subject.forward(bundle, scene, {.leading = {bundle.shape.B}}, executor);
  return bundle;
}

template <class S>
struct Gradients {
  Bundle<S> inputs;
  Named<S> parameters;
};

template <class S>
Gradients<S> backward(const Subject<S>& subject, const Bundle<S>& outputs, const Scene& scene, const Form& form,
                      posbias::Executor executor = {}) {
  Gradients<S> result{Bundle<S>::numbers(outputs.shape, 9), subject.zero_gradients()};
  subject.backward(result.inputs, outputs, scene, form, result.parameters, executor);
  return result;
}

template <class S>
std::string differing(const Gradients<S>& a, const Gradients<S>& b) {
  return posbias_test::differing(a.inputs, b.inputs) + posbias_test::differing(a.parameters, b.parameters);
}

/// Calls `check(case, scene, input, output)` for every case, as a section, and every scene.
template <class S, class Check>
void for_each_scene(Shape (Case<S>::*shape_of)() const, const Check& check) {
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      const Shape shape = (law_case.*shape_of)();
      const Bundle<S> in = Bundle<S>::numbers(shape);
      for (const Scene& scene : law_case.scenes(shape)) {
        INFO(scene.name);
        check(law_case, scene, in, forward(*law_case.subject, in, scene));
      }
    }
  }
}

template <class S>
void check_chunks(const Subject<S>& subject, const Scene& scene, const Bundle<S>& in, const Bundle<S>& out,
                  Index chunk) {
  for (Index begin = 0; begin < in.shape.L1; begin += chunk) {
    const Index end = std::min(begin + chunk, in.shape.L1);
    const auto part = forward(subject, in.cut_queries(begin, end), scene.cut_queries(begin, end, in.shape));
    INFO("queries " << begin << " to " << end);
    CHECK(differing(part, out.cut_queries(begin, end)) == "");
  }
  for (Index begin = 0; begin < in.shape.L2; begin += chunk) {
    const Index end = std::min(begin + chunk, in.shape.L2);
    const auto part = forward(subject, in.cut_keys(begin, end), scene.cut_keys(begin, end, in.shape));
    INFO("keys " << begin << " to " << end);
    CHECK(differing(part, out.cut_keys(begin, end)) == "");
  }
}

}  // namespace

TEMPLATE_TEST_CASE("whole, in chunks and one token at a time are the same bits", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_scene<S>(&Case<S>::small, [](const Case<S>& law_case, const Scene& scene, const auto& in, const auto& out) {
    check_chunks(*law_case.subject, scene, in, out, 1);
    check_chunks(*law_case.subject, scene, in, out, 2);
  });
}

TEMPLATE_TEST_CASE("chunks across the blocks of loops are the same bits", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_scene<S>(&Case<S>::large, [](const Case<S>& law_case, const Scene& scene, const auto& in, const auto& out) {
    check_chunks(*law_case.subject, scene, in, out, 48);
  });
}

TEMPLATE_TEST_CASE("batch entries do not see each other, and may change places", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_scene<S>(&Case<S>::small, [](const Case<S>& law_case, const Scene& scene, const auto& in, const auto& out) {
    const Subject<S>& subject = *law_case.subject;
    for (Index n = 0; n < in.shape.B; ++n)
      CHECK(differing(forward(subject, in.entries({n}), scene.entry(n)), out.entries({n})) == "");
    CHECK(differing(forward(subject, in.entries({1, 0}), scene.permuted({1, 0})), out.entries({1, 0})) == "");
    CHECK(differing(forward(subject, in, scene), out) == "");
  });
}

#if POSBIAS_TEST_ALL  // it is a form of its own
TEST_CASE("an entry without leading dimensions is an entry of a batch", "[laws]") {
  for_each_scene<double>(
      &Case<double>::small, [](const Case<double>& law_case, const Scene& scene, const auto& in, const auto& out) {
        for (Index n = 0; n < in.shape.B; ++n) {
          const Bundle<double> expected = out.entries({n});
          Bundle<double> alone = in.entries({n});
          law_case.subject->forward(alone, scene.entry(n), {.leading = {}});
          CHECK(differing(alone, expected) == "");
          CHECK(differing(backward(*law_case.subject, expected, scene.entry(n), {.leading = {}}),
                          backward(*law_case.subject, expected, scene.entry(n), {.leading = {1}})) == "");
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
      const Bundle<S> in = Bundle<S>::numbers(shape);
      const std::vector<Scene> scenes = law_case.scenes(shape);
      for (std::size_t s = 0; s < scenes.size(); ++s) {
        const Scene& scene = scenes[s];
        INFO(scene.name);
        const Bundle<S> out = forward(*law_case.subject, in, scene);
        const auto gradients = backward(*law_case.subject, out, scene, {.leading = {6}});
        for (const Form& form : forms<S>(s)) {
          INFO("rank " << form.leading.size() << ", storage " << static_cast<int>(form.storage));
          Bundle<S> again = in;
          law_case.subject->forward(again, scene, form);
          CHECK(differing(again, out) == "");
          CHECK(differing(backward(*law_case.subject, out, scene, form), gradients) == "");
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
      const Bundle<S> in = Bundle<S>::numbers(shape);
      const bool works = law_case.truth.addend || law_case.truth.change_query || law_case.truth.bias;
      // Views of larger tensors in one scene of each way to find relative positions.
      const std::map<std::string, Form> views{{"range", {{1, 2}, Storage::fused}},
                                              {"packed rows", {{2, 1}, Storage::narrowed}},
                                              {"wide gaps per entry", {{1, 2}, Storage::heads_first}}};
      for (const Scene& scene : law_case.scenes(shape)) {
        INFO(scene.name);
        const Bundle<S> out = forward(*law_case.subject, in, scene);
        const auto gradients = backward(*law_case.subject, out, scene, {.leading = {2}});
        const auto check = [&](const Form& form) {
          Bundle<S> again = in;
          law_case.subject->forward(again, scene, form, runner);
          CHECK(differing(again, out) == "");
          CHECK(differing(backward(*law_case.subject, out, scene, form, runner), gradients) == "");
        };
        check({.leading = {2}});
        if (const auto view = views.find(scene.name); view != views.end()) check(view->second);
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
      const std::vector<Scene> all = law_case.scenes(shape);
      const Bundle<S> in = Bundle<S>::numbers(shape);
      std::vector<Bundle<S>> outs;
      std::vector<Gradients<S>> gradients;
      for (const Scene& scene : all) {
        outs.push_back(forward(*law_case.subject, in, scene));
        gradients.push_back(backward(*law_case.subject, outs.back(), scene, {.leading = {2}}));
      }
      std::array<std::string, 8> wrong;
      std::vector<std::thread> threads;
      for (std::size_t t = 0; t < wrong.size(); ++t)
        threads.emplace_back([&, t] {
          // Every thread begins elsewhere, so that different scenes meet.
          for (std::size_t i = 0; i < all.size(); ++i) {
            const std::size_t s = (i + 3 * t) % all.size();
            wrong[t] += differing(forward(*law_case.subject, in, all[s]), outs[s]) +
                        differing(backward(*law_case.subject, outs[s], all[s], {.leading = {2}}), gradients[s]);
          }
        });
      for (std::thread& thread : threads) thread.join();
      for (const std::string& text : wrong) CHECK(text == "");
    }
  }
}

TEMPLATE_TEST_CASE("copies and moves behave as the original, which they outlive", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_scene<S>(&Case<S>::small, [](const Case<S>& law_case, const Scene& scene, const auto& in, const auto& out) {
    auto original = law_case.subject->copy();
    auto copy = original->copy();
    original.reset();
    CHECK(differing(forward(*copy, in, scene), out) == "");

    auto moved = copy->move();
    copy.reset();
    CHECK(differing(forward(*moved, in, scene), out) == "");

    // Assigned over a module with other parameters.
    auto assigned = moved->copy();
    Named<S> other = assigned->parameters();
    for (auto& [name, values] : other)
      for (S& value : values) value += S(0.5);
    assigned->set_parameters(other);
    const bool positions_matter = scene.name != "no positions" && differing(in, out) != "";
    if (!other.empty() && positions_matter) CHECK(differing(forward(*assigned, in, scene), out) != "");
    assigned->assign(*moved);
    moved.reset();
    CHECK(differing(forward(*assigned, in, scene), out) == "");
    CHECK(posbias_test::differing(assigned->parameters(), law_case.subject->parameters()) == "");
  });
}

TEMPLATE_TEST_CASE("a range, the same positions listed, and any type of them are the same bits", "[laws][again]",
                   POSBIAS_LAW_SCALARS) {
  using S = TestType;
  REQUIRE_FALSE(cases<S>().empty());
  for (const Case<S>& law_case : cases<S>()) {
    DYNAMIC_SECTION(law_case.name) {
      for (const Shape& shape : {law_case.small(), law_case.square(), law_case.large()}) {
        const Bundle<S> in = Bundle<S>::numbers(shape);
        const Bundle<S> by_range = forward(*law_case.subject, in, {"range", Where::range(137), Where::range(131)});
        const auto gradients =
            backward(*law_case.subject, by_range, {"range", Where::range(137), Where::range(131)}, {.leading = {2}});
        for (const Index rows : {Index{0}, shape.B})
          for (const PositionType type :
               {PositionType::int32, PositionType::int64, PositionType::float32, PositionType::float64}) {
            Scene listed{"listed", Where::listed(rows, shape.L1, [](Index, Index i) { return 137 + i; }),
                         Where::listed(rows, shape.L2, [](Index, Index i) { return 131 + i; })};
            listed.type = type;
            INFO("rows " << rows << ", type " << static_cast<int>(type));
            CHECK(differing(forward(*law_case.subject, in, listed), by_range) == "");
            if (rows == 0)
              CHECK(differing(backward(*law_case.subject, by_range, listed, {.leading = {2}}), gradients) == "");
          }
        const Bundle<S> by_default = forward(*law_case.subject, in, {"default"});
        CHECK(differing(forward(*law_case.subject, in, {"range", Where::range(0), Where::range(0)}), by_default) == "");
        if (shape.L1 == shape.L2) {
          Scene together{"q_k", Where::range(131), Where::range(131)};
          const Bundle<S> apart = forward(*law_case.subject, in, together);
          together.together = true;
          CHECK(differing(forward(*law_case.subject, in, together), apart) == "");
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("integers and reals of every type agree where they are not consecutive", "[laws]",
                   POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_scene<S>(&Case<S>::small, [](const Case<S>& law_case, Scene scene, const auto& in, const auto& out) {
    // Up to 2^24 every one of these positions is exact in float; up to 2^31, the integers in int32.
    if (scene.furthest() < 0x1p24L) {
      scene.type = PositionType::float32;
      CHECK(differing(forward(*law_case.subject, in, scene), out) == "");
    }
    if (scene.furthest() < 0x1p31L && scene.integral()) {
      scene.type = PositionType::int32;
      CHECK(differing(forward(*law_case.subject, in, scene), out) == "");
    }
    scene.type = PositionType::float64;
    CHECK(differing(forward(*law_case.subject, in, scene), out) == "");
  });
}

TEMPLATE_TEST_CASE("a bias does not see an offset of all positions, however large", "[laws]", POSBIAS_LAW_SCALARS) {
  using S = TestType;
  for_each_scene<S>(&Case<S>::small, [](const Case<S>& law_case, const Scene& scene, const auto& in, const auto& out) {
    if (!law_case.truth.bias) return;
    for (const int power : {20, 40})
      for (const int sign : {1, -1}) {
        const auto far = forward(*law_case.subject, in, scene.shifted(sign * (std::int64_t{1} << power)));
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
      const Bundle<S> empty(shape);
      // Lists of 5 and 7 positions for each of no entries: tensors of shape (0, 5) and (0, 7).
      Scene scene{"none"};
      scene.q = {Where::Kind::listed, 0, -1, shape.L1, {}};
      scene.k = {Where::Kind::listed, 0, -1, shape.L2, {}};
      const Bundle<S> out = forward(*law_case.subject, empty, scene);
      CHECK(differing(out, empty) == "");
      const auto gradients = backward(*law_case.subject, out, scene, {.leading = {0}});
      CHECK(posbias_test::differing(gradients.parameters, law_case.subject->zero_gradients()) == "");
    }
  }
}
