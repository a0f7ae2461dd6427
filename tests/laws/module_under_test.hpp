// SPDX-License-Identifier: MIT
/// \file
/// What the laws know of a module: all its hooks on one set of inputs of tensors, behind virtual functions, so that a law is
/// compiled once and not once for each module.
///
/// A new module needs one `add_case` for each of its configurations (see the *_cases.cpp beside this file), and every
/// law holds for it or fails.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "laws/position_case.hpp"
#include "posbias/core/executor.hpp"
#include "reference/reference.hpp"
#include "support/numbers.hpp"
#include "support/parameter_values.hpp"

namespace posbias_test {

/// How values are handed to the hooks. Between them, maps and mixed hand every argument as a map of either layout that
/// begins between two alignment boundaries. The last three are views of larger tensors, see `Placements`.
enum class Storage { row_major, col_major, maps, mixed, heads_first, narrowed, fused };

/// What elements of views are; a module of float takes all of them. `several`: x, k and v are bfloat16, mask is half.
enum class Elements { scalar, bfloat16, half, several };

enum class Hook { mod_x, mod_qkv, mod_mask };

struct LayoutCase {
  BatchShape leading{2};
  Storage storage = Storage::row_major;
  Elements elements = Elements::scalar;
  std::optional<Hook> only{};  ///< this hook alone is called

  [[nodiscard]] bool calls(Hook hook) const { return only.value_or(hook) == hook; }
};

/// Values of all tensors of an attention, in row-major order.
template <class S>
struct HookInputs {
  Shape shape;
  std::vector<S> x, q, k, v, mask;

  explicit HookInputs(const Shape& s)
      : shape(s),
        x(size(s.B * s.L1 * s.D)),
        q(size(s.B * s.L1 * s.NH * s.H)),
        k(size(s.B * s.L2 * s.NH * s.H)),
        v(size(s.B * s.L2 * s.NH * s.H)),
        mask(size(s.B * s.NH * s.L1 * s.L2)) {}

  /// Numbers in [-1, 1), exact in float.
  static HookInputs numbers(const Shape& shape, std::uint64_t seed = 1) {
    HookInputs inputs(shape);
    Numbers numbers(seed);
    inputs.for_each([&](std::vector<S>& values) {
      for (S& value : values) value = static_cast<S>(numbers.value());
    });
    return inputs;
  }

  /// One feature of every token is 1, another one from token to token; the mask is a ramp.
  static HookInputs one_hot(const Shape& shape) {
    HookInputs inputs(shape);
    const auto fill = [](std::vector<S>& values, Index features) {
      for (Index token = 0; token * features < static_cast<Index>(values.size()); ++token)
        values[size(token * features + token % features)] = 1;
    };
    fill(inputs.x, shape.D);
    fill(inputs.q, shape.H);
    fill(inputs.k, shape.H);
    fill(inputs.v, shape.H);
    for (std::size_t i = 0; i < inputs.mask.size(); ++i) inputs.mask[i] = static_cast<S>(i) / 64;
    return inputs;
  }

  template <class Visit>
  void for_each(const Visit& visit) {
    for (auto* values : {&x, &q, &k, &v, &mask}) visit(*values);
  }

  [[nodiscard]] HookInputs cut_queries(Index begin, Index end) const {
    Shape s = shape;
    s.L1 = end - begin;
    HookInputs part(s);
    part.x = cut(x, shape.B, shape.L1, shape.D, begin, end);
    part.q = cut(q, shape.B, shape.L1, shape.NH * shape.H, begin, end);
    part.k = k;
    part.v = v;
    part.mask = cut(mask, shape.B * shape.NH, shape.L1, shape.L2, begin, end);
    return part;
  }

  [[nodiscard]] HookInputs cut_keys(Index begin, Index end) const {
    Shape s = shape;
    s.L2 = end - begin;
    HookInputs part(s);
    part.x = x;
    part.q = q;
    part.k = cut(k, shape.B, shape.L2, shape.NH * shape.H, begin, end);
    part.v = cut(v, shape.B, shape.L2, shape.NH * shape.H, begin, end);
    part.mask = cut(mask, shape.B * shape.NH * shape.L1, shape.L2, 1, begin, end);
    return part;
  }

  /// Batch entries in this order; fewer, or one, are fine.
  [[nodiscard]] HookInputs entries(const std::vector<Index>& order) const {
    Shape s = shape;
    s.B = static_cast<Index>(order.size());
    HookInputs part(s);
    const auto take = [&](const std::vector<S>& from, std::vector<S>& to) {
      const std::size_t each = from.size() / size(shape.B);
      for (std::size_t n = 0; n < order.size(); ++n)
        std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(size(order[n]) * each), each,
                    to.begin() + static_cast<std::ptrdiff_t>(n * each));
    };
    take(x, part.x);
    take(q, part.q);
    take(k, part.k);
    take(v, part.v);
    take(mask, part.mask);
    return part;
  }

 private:
  static std::size_t size(Index n) { return static_cast<std::size_t>(n); }

  static std::vector<S> cut(const std::vector<S>& values, Index outer, Index axis, Index inner, Index begin,
                            Index end) {
    std::vector<S> part;
    for (Index n = 0; n < outer; ++n)
      part.insert(part.end(), values.begin() + (n * axis + begin) * inner, values.begin() + (n * axis + end) * inner);
    return part;
  }
};

/// memcmp: -0 is not 0 here, and a NaN equals itself.
template <class S>
bool same_bits(const std::vector<S>& a, const std::vector<S>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0);
}

/// The tensors of two sets of inputs that differ in a bit, by name; "" if none does.
template <class S>
std::string differing(const HookInputs<S>& a, const HookInputs<S>& b) {
  std::string names;
  if (!same_bits(a.x, b.x)) names += "x ";
  if (!same_bits(a.q, b.q)) names += "q ";
  if (!same_bits(a.k, b.k)) names += "k ";
  if (!same_bits(a.v, b.v)) names += "v ";
  if (!same_bits(a.mask, b.mask)) names += "mask ";
  return names;
}

template <class S>
std::string differing(const Named<S>& a, const Named<S>& b) {
  if (a.size() != b.size()) return "number of parameters";
  std::string names;
  for (const auto& [name, values] : a)
    if (!b.contains(name) || !same_bits(values, b.at(name))) names += name + " ";
  return names;
}

/// Whether the laws know all forms. Each is compiled for every module, so one build has them all, and the others two
/// that have both layouts, tensors, maps, and more than one rank between them.
inline constexpr bool all_layout_cases = POSBIAS_TEST_ALL != 0;

/// The scalars of the laws' modules, as arguments of a macro.
#if POSBIAS_TEST_FLOAT
#define POSBIAS_LAW_SCALARS float, double
#else
#define POSBIAS_LAW_SCALARS double
#endif

/// The forms that the laws know; float gets those that differ most. Of the views, one for each case, or all.
template <class S>
std::vector<LayoutCase> layout_cases(std::size_t position_case) {
  const std::vector<LayoutCase> views{
      {{2, 3}, Storage::heads_first}, {{3, 2}, Storage::narrowed}, {{1, 6}, Storage::fused}};
  std::vector<LayoutCase> some{
      {{6}, Storage::row_major}, {{2, 3}, Storage::mixed}, views[position_case % views.size()]};
  if constexpr (all_layout_cases) {
    some.push_back({{6}, Storage::col_major});
    some.push_back(views[(position_case + 1) % views.size()]);
    some.push_back(views[(position_case + 2) % views.size()]);
  }
  if constexpr (all_layout_cases && std::is_same_v<S, double>) {
    some.push_back({{3, 2}, Storage::row_major});
    some.push_back({{3, 1, 2}, Storage::row_major});
    some.push_back({{6}, Storage::maps});
  }
  return some;
}

template <class S>
class ModuleUnderTest {
 public:
  virtual ~ModuleUnderTest() = default;

  /// mod_x, mod_qkv and mod_mask, in place.
  virtual void forward(HookInputs<S>& inputs, const PositionCase& position_case, const LayoutCase& layout_case,
                       posbias::Executor executor = {}) const = 0;
  /// Their adjoints in reverse order: gradients of the outputs become those of the inputs, the parameters' are added.
  virtual void backward(HookInputs<S>& gradients, const HookInputs<S>& outputs, const PositionCase& position_case,
                        const LayoutCase& layout_case, Named<S>& parameter_gradients,
                        posbias::Executor executor = {}) const = 0;

  /// The most memory that all hooks, forward and backward, have in use at once beside a row-major set of inputs.
  [[nodiscard]] virtual std::size_t peak_bytes(const HookInputs<S>& inputs, const posbias::Positions& q_k) const = 0;

  [[nodiscard]] virtual Named<S> parameters() const = 0;
  virtual void set_parameters(const Named<S>& values) = 0;
  [[nodiscard]] virtual Named<S> zero_gradients() const = 0;

  [[nodiscard]] virtual std::unique_ptr<ModuleUnderTest> copy() const = 0;
  [[nodiscard]] virtual std::unique_ptr<ModuleUnderTest> move() = 0;
  virtual void assign(const ModuleUnderTest& other) = 0;
};

/// What a module computes, in the oracle's words. An empty function: the hook is the identity.
struct ReferenceModel {
  using Parameters = Named<Real>;

  struct Logit {
    int h;
    Real q, k;                         ///< positions
    std::span<const Real> query, key;  ///< as mod_qkv left them
    const reference::Row& relative;    ///< what `relative` below gives for q - k
  };

  std::function<std::vector<Real>(Real p, const Parameters&)> addend{};                 ///< mod_x adds this row
  std::function<void(std::span<Real> head, Real p, const Parameters&)> change_query{};  ///< mod_qkv of a query
  std::function<void(std::span<Real> head, Real p, const Parameters&)> change_key{};    ///< mod_qkv of a key
  /// mod_qkv adds this to feature f of head h of every query, wherever it is.
  std::function<Real(int h, int f, const Parameters&)> query_addend{};
  std::function<Real(const Logit&, const Parameters&)> bias{};  ///< mod_mask adds this
  /// and then, one after another, these.
  std::vector<std::function<Real(const Logit&, const Parameters&)>> further_biases{};
  /// What a bias needs of q - k alone and is dear: asked for once for each difference.
  std::function<reference::Row(Real q_minus_k, const Parameters&)> relative{};
  /// How large the terms are that a row or a bias is summed from, where that matters.
  std::function<Real(Real p, const Parameters&)> addend_terms{};
  std::function<Real(const Logit&, const Parameters&)> bias_terms{};
  bool sums_in_scalar = false;  ///< those sums run in the tensor's scalar, not in double
  /// By what positions are divided before sines and cosines are taken of them; infinity where none are.
  std::function<Real(const Parameters&)> angle_divisor = [](const Parameters&) { return Real(1); };
  bool integers_only = false;        ///< positions must be integers
  std::optional<Index> ids_below{};  ///< those of x must be integers in [0, ids_below)
};

template <class S>
struct Case {
  std::string name;
  Index heads;
  std::shared_ptr<const ModuleUnderTest<S>> tested;
  ReferenceModel reference_model;

  [[nodiscard]] Shape small() const { return {2, heads, 5, 7, 8, 8}; }
  [[nodiscard]] Shape square() const { return {2, heads, 7, 7, 8, 8}; }
  /// Longer than the blocks that loops are cut into.
  [[nodiscard]] Shape large() const { return {2, heads, 71, 137, 8, 8}; }

  [[nodiscard]] std::vector<PositionCase> position_cases(const Shape& shape) const {
    std::vector<PositionCase> all = posbias_test::position_cases(shape);
    if (reference_model.integers_only)
      std::erase_if(all, [](const PositionCase& position_case) { return !position_case.integral(); });
    if (reference_model.ids_below)
      std::erase_if(all, [&](const PositionCase& position_case) {
        return !position_case.q.ids_below(*reference_model.ids_below, shape.L1);
      });
    const bool integers = reference_model.integers_only;
    if ((reference_model.relative || (!POSBIAS_TEST_FLOAT && !reference_model.ids_below)) && shape.L1 > 50)
      std::erase_if(all, [=](const PositionCase& position_case) { return !is_for_dear(position_case, integers); });
    return all;
  }

 private:
  /// Where relative positions are dear, or sanitizers make everything so, long cases are no more than one of each way
  /// to find them: consecutive, in runs, descending, far apart, reals, fewer than tokens, too many for columns.
  static bool is_for_dear(const PositionCase& position_case, bool integers_only) {
    static const std::set<std::string> names{"range",
                                             "packed rows",
                                             "descending",
                                             "wide gaps per entry",
                                             "half-integers",
                                             "fewer positions per entry",
                                             "reals that do not repeat",
                                             "integers that do not repeat"};
    // Some of them are reals: others for those who take none.
    if (integers_only && (position_case.name == "scattered" || position_case.name == "offset 2^40")) return true;
    return names.contains(position_case.name);
  }
};

/// All cases of all modules that are linked in.
template <class S>
std::vector<Case<S>>& cases() {
  static std::vector<Case<S>> all;
  return all;
}

}  // namespace posbias_test
