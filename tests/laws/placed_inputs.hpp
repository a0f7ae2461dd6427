// SPDX-License-Identifier: MIT
/// \file
/// A set of inputs's tensors as views of larger ones, of any storage type.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "laws/module_under_test.hpp"
#include "support/placed.hpp"

namespace posbias_test {

/// To the nearest numbers that E holds, as Eigen rounds.
template <class E>
void round_to(std::vector<float>& values) {
  for (float& value : values) value = static_cast<float>(static_cast<E>(value));
}

inline void round_to(Elements elements, HookInputs<float>& inputs) {
  using Eigen::bfloat16, Eigen::half;
  if (elements == Elements::bfloat16) inputs.for_each(round_to<bfloat16>);
  if (elements == Elements::half) inputs.for_each(round_to<half>);
  if (elements != Elements::several) return;
  for (auto* values : {&inputs.x, &inputs.k, &inputs.v}) round_to<bfloat16>(*values);
  round_to<half>(inputs.mask);
}

/// Where the tensors of a set of inputs lie. Heads first: the first two dimensions behind (B, *) have changed places, also of x
/// and mask. Narrowed: some slots of a cache, with room between heads, features and entries, too. Fused: q, k and v are
/// parts of one tensor, as far as they are of one type; x and mask run backwards.
struct Placements {
  Placement x, q, k, v, mask;
  bool fused = false;

  /// Each whole and row-major.
  Placements(const std::vector<Index>& x_sizes, const std::vector<Index>& q_sizes, const std::vector<Index>& k_sizes,
             const std::vector<Index>& v_sizes, const std::vector<Index>& mask_sizes)
      : x(x_sizes), q(q_sizes), k(k_sizes), v(v_sizes), mask(mask_sizes) {}

  friend bool operator==(const Placements&, const Placements&) = default;

  Placements(const LayoutCase& layout_case, const Shape& s)
      : Placements(joined(layout_case.leading, {s.L1, s.D}), joined(layout_case.leading, {s.L1, s.NH, s.H}),
                   joined(layout_case.leading, {s.L2, s.NH, s.H}), joined(layout_case.leading, {s.L2, s.NH, s.H}),
                   joined(layout_case.leading, {s.NH, s.L1, s.L2})) {
    lie(layout_case.storage, layout_case.leading.size());
  }

  void lie(Storage storage, std::size_t leading) {
    for (Placement* tensor : {&x, &q, &k, &v, &mask}) {
      if (storage == Storage::heads_first) std::swap(tensor->order[leading], tensor->order[leading + 1]);
      if (storage != Storage::narrowed) continue;
      for (Placement::Dimension& dimension : tensor->dimensions) dimension.after = 1;
      for (std::size_t d = leading; d < tensor->dimensions.size(); ++d)
        tensor->dimensions[d].before = d == leading ? 4 : 1;
    }
    fused = storage == Storage::fused;
    if (!fused) return;
    const Index tokens = std::max(q.dimensions[leading].size, k.dimensions[leading].size);
    const Index heads = q.dimensions[leading + 1].size;
    Index part = 0;
    for (Placement* tensor : {&q, &k, &v}) {
      tensor->dimensions[leading].after = tokens - tensor->dimensions[leading].size;
      tensor->dimensions[leading + 1].before = part * heads;
      tensor->dimensions[leading + 1].after = (2 - part++) * heads;
    }
    x.dimensions.back().step = -2;
    mask.dimensions.back().step = -1;
  }
};

/// The tensors of a set of inputs with `Rank` leading dimensions at `Placements`, with elements of these types.
template <class S, int Rank, class X, class Q, class K, class V, class M>
struct PlacedInputs {
  Placed<X, Rank + 2> x;
  Placed<Q, Rank + 3> q;
  Placed<K, Rank + 3> k;
  Placed<V, Rank + 3> v;
  Placed<M, Rank + 3> mask;

  PlacedInputs(const HookInputs<S>& b, const LayoutCase& layout_case)
      : PlacedInputs(b, Placements(layout_case, b.shape)) {}
  PlacedInputs(const HookInputs<S>& b, const Placements& at)
      : x(b.x, at.x),
        q(b.q, at.q),
        k(b.k, at.k, shared_memory<K>(q, at.fused)),
        v(b.v, at.v, shared_memory<V>(k, at.fused)),
        mask(b.mask, at.mask) {}

  void give_back(HookInputs<S>& b) const {
    b.x = x.template values<S>();
    b.q = q.template values<S>();
    b.k = k.template values<S>();
    b.v = v.template values<S>();
    b.mask = mask.template values<S>();
    check_rest();
  }

  void check_rest() const {
    const auto untouched = [](const auto&... tensors) { return (tensors.memory()->rest_is_untouched() && ...); };
    if (!untouched(x, q, k, v, mask)) throw std::logic_error("a hook wrote beside its tensors");
  }

 private:
  template <class E, class Other>
  static std::shared_ptr<Memory<E>> shared_memory(const Other& other, bool fused) {
    if constexpr (std::is_same_v<decltype(other.memory()), const std::shared_ptr<Memory<E>>&>)
      if (fused) return other.memory();
    return nullptr;
  }
};

/// Calls `use` with the type of the set of inputs that has these elements.
template <class S, int Rank, class Use>
void with_elements(Elements elements, const Use& use) {
  using Eigen::bfloat16, Eigen::half;
  if (elements == Elements::scalar) return use(std::type_identity<PlacedInputs<S, Rank, S, S, S, S, S>>());
  if constexpr (std::is_same_v<S, float>) {
    if (elements == Elements::bfloat16)
      return use(std::type_identity<PlacedInputs<S, Rank, bfloat16, bfloat16, bfloat16, bfloat16, bfloat16>>());
    if (elements == Elements::half)
      return use(std::type_identity<PlacedInputs<S, Rank, half, half, half, half, half>>());
    return use(std::type_identity<PlacedInputs<S, Rank, bfloat16, S, bfloat16, bfloat16, half>>());
  }
  throw std::logic_error("elements that a module of this scalar does not take");
}

}  // namespace posbias_test
