// SPDX-License-Identifier: MIT
/// \file
/// A bundle's tensors as views of larger ones, of any storage type.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "laws/subject.hpp"
#include "support/placed.hpp"

namespace posbias_test {

/// Where the tensors of a bundle lie. Heads first: the first two dimensions behind (B, *) have changed places, also of x
/// and mask. Narrowed: some slots of a cache, with room between heads, features and entries, too. Fused: q, k and v are
/// parts of one tensor, as far as they are of one type; x and mask run backwards.
struct Places {
  Place x, q, k, v, mask;

  Places(const Form& form, const Shape& s)
      : x(joined(form.leading, {s.L1, s.D})),
        q(joined(form.leading, {s.L1, s.NH, s.H})),
        k(joined(form.leading, {s.L2, s.NH, s.H})),
        v(k),
        mask(joined(form.leading, {s.NH, s.L1, s.L2})) {
    const std::size_t first = form.leading.size();
    for (Place* place : {&x, &q, &k, &v, &mask}) {
      if (form.storage == Storage::heads_first) std::swap(place->order[first], place->order[first + 1]);
      if (form.storage != Storage::narrowed) continue;
      for (Place::Dimension& dimension : place->dimensions) dimension.after = 1;
      for (std::size_t d = first; d < place->dimensions.size(); ++d) place->dimensions[d].before = d == first ? 4 : 1;
    }
    if (form.storage != Storage::fused) return;
    Index part = 0;
    for (Place* place : {&q, &k, &v}) {
      Place::Dimension &tokens = place->dimensions[first], &heads = place->dimensions[first + 1];
      tokens.after = std::max(s.L1, s.L2) - tokens.size;
      heads.before = part * s.NH;
      heads.after = (2 - part++) * s.NH;
    }
    x.dimensions.back().step = -2;
    mask.dimensions.back().step = -1;
  }
};

/// The tensors of a bundle with two leading dimensions at `Places`, with elements of these types.
template <class S, class X, class Q, class K, class V, class M>
struct PlacedBundle {
  Placed<X, 4> x;
  Placed<Q, 5> q;
  Placed<K, 5> k;
  Placed<V, 5> v;
  Placed<M, 5> mask;

  PlacedBundle(const Bundle<S>& b, const Form& form) : PlacedBundle(b, Places(form, b.shape), form.storage) {}
  PlacedBundle(const Bundle<S>& b, const Places& at, Storage storage)
      : x(b.x, at.x),
        q(b.q, at.q),
        k(b.k, at.k, shared_memory<K>(q, storage)),
        v(b.v, at.v, shared_memory<V>(k, storage)),
        mask(b.mask, at.mask) {}

  void give_back(Bundle<S>& b) const {
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
  static std::shared_ptr<Memory<E>> shared_memory(const Other& other, Storage storage) {
    if constexpr (std::is_same_v<decltype(other.memory()), const std::shared_ptr<Memory<E>>&>)
      if (storage == Storage::fused) return other.memory();
    return nullptr;
  }
};

}  // namespace posbias_test
