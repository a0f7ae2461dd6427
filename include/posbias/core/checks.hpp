// SPDX-License-Identifier: MIT
/// \file
/// Checks of the tensors of one call: shapes that fit each other, and no memory written that another argument reads.
///
/// All throw ShapeError before anything is written, and name the hook that the user called and the argument.
#pragma once

#include <initializer_list>
#include <string_view>

#include "posbias/core/error.hpp"
#include "posbias/core/overlap.hpp"
#include "posbias/core/tensor.hpp"
#include "posbias/core/view.hpp"

namespace posbias::detail {

/// The sizes of an attention: (B, *), NH, L1 and L2.
struct AttentionShape {
  BatchShape leading;
  Index heads = 0, queries = 0, keys = 0;
  friend bool operator==(const AttentionShape&, const AttentionShape&) = default;
};

/// Throws ShapeError unless q (B, *, L1, NH, H), k (B, *, L2, NHk, H) and v (B, *, L2, NHk, any) have the same leading
/// dimensions and L2, and NHk is NH or a divisor of it (grouped queries).
inline AttentionShape attention_shape(const Hook& hook, const StridedShape<3>& q, const StridedShape<3>& k,
                                      const StridedShape<3>& v) {
  const auto reject = [&](std::string_view name, const StridedShape<3>& tensor, std::string_view expected) {
    fail<ShapeError>(hook, ": ", name, " has shape ", tensor.whole_shape().shape(), "; q has ", q.whole_shape().shape(),
                     " and needs ", expected);
  };
  const Index heads = q.shape[1];
  const Index groups = k.shape[1];
  if (k.leading != q.leading || k.shape[2] != q.shape[2] || !(groups == heads || (groups > 0 && heads % groups == 0)))
    reject("k", k, "(B, *, L2, NH, H) with the same B, *, NH (or a divisor of it) and H");
  if (v.leading != q.leading || v.shape[0] != k.shape[0] || v.shape[1] != groups)
    reject("v", v, "(B, *, L2, NH, any) with the same B, *, and the L2 and NH of k");
  return {q.leading, heads, q.shape[0], k.shape[0]};
}
template <HeadsTensor Q, HeadsTensor K, HeadsTensor V>
AttentionShape attention_shape(const Hook& hook, const Q& q, const K& k, const V& v) {
  return attention_shape(hook, view<3>(q), view<3>(k), view<3>(v));
}

/// The memory of a tensor that a call is given, with the tensor's name.
struct NamedRegion {
  template <class T>
  NamedRegion(std::string_view argument, const T& tensor) : name(argument), region(tensor.region()) {}

  std::string_view name;
  MemoryRegion region;
};

/// Throws ShapeError if a tensor that is written to shares memory with any of the others, or two of its elements share
/// memory, as with a stride of 0.
[[gnu::cold]] inline void check_apart(const Hook& hook, const NamedRegion& written,
                                      std::initializer_list<NamedRegion> others = {}) {
  for (const NamedRegion& other : others)
    if (share_element(written.region, other.region))
      fail<ShapeError>(hook, ": ", written.name, " shares memory with ", other.name, "; it is written to");
  if (overlaps_itself(written.region))
    fail<ShapeError>(hook, ": ", written.name, " has elements that share memory; it is written to");
}

/// Throws ShapeError unless the gradients of q, k and v have their shapes.
inline void check_gradient_shapes(const Hook& hook, const StridedShape<3>& grad_q, const StridedShape<3>& grad_k,
                                  const StridedShape<3>& grad_v, const StridedShape<3>& q, const StridedShape<3>& k,
                                  const StridedShape<3>& v) {
  const auto check = [&](std::string_view argument, const StridedShape<3>& grad, const StridedShape<3>& value) {
    if (grad.leading != value.leading || grad.shape != value.shape)
      fail<ShapeError>(hook, ": grad_", argument, " has shape ", grad.whole_shape().shape(), "; ", argument, " has ",
                       value.whole_shape().shape());
  };
  check("q", grad_q, q);
  check("k", grad_k, k);
  check("v", grad_v, v);
}
template <HeadsTensor GQ, HeadsTensor GK, HeadsTensor GV, HeadsTensor Q, HeadsTensor K, HeadsTensor V>
void check_gradient_shapes(const Hook& hook, const GQ& grad_q, const GK& grad_k, const GV& grad_v, const Q& q,
                           const K& k, const V& v) {
  check_gradient_shapes(hook, view<3>(grad_q), view<3>(grad_k), view<3>(grad_v), view<3>(q), view<3>(k), view<3>(v));
}

}  // namespace posbias::detail
