// SPDX-License-Identifier: MIT
/// \file
/// A rectangle of logits: what a bias adds itself to.
///
/// `mod_mask` hands out tiles of the user's mask; fused attention hands out the tile it has in cache. Both call the
/// same `add_to`, so they can only agree.
#pragma once

#include <Eigen/Core>

#include "posbias/core/index.hpp"

namespace posbias {

/// Logits of batch entry `batch`, heads [head, head + heads), queries [query, query + queries) and keys [key, key +
/// keys); `data` is the first of them, strides count elements.
template <class Scalar>
struct LogitTile {
  Scalar* data;
  Index head_stride, query_stride, key_stride;
  Index batch;
  Index head, heads, query, queries, key, keys;

  /// The row of logits of one head and query, both counted within the tile.
  [[nodiscard]] Scalar* row(Index h, Index i) const { return data + h * head_stride + i * query_stride; }

  /// The same logits with keys in the place of queries.
  [[nodiscard]] LogitTile transposed() const {
    return {data, head_stride, key_stride, query_stride, batch, head, heads, key, keys, query, queries};
  }
};

namespace detail {

/// Adds values to logits `key_stride` apart.
template <class Scalar>
void add_values(const Scalar* values, Index count, Scalar* logits, Index key_stride) {
  using Values = Eigen::ArrayX<Scalar>;
  const Eigen::Map<const Values> from(values, count);
  if (key_stride == 1)  // told apart because Eigen's packets need it
    Eigen::Map<Values>(logits, count) += from;
  else
    Eigen::Map<Values, Eigen::Unaligned, Eigen::InnerStride<>>(logits, count, Eigen::InnerStride<>(key_stride)) += from;
}

}  // namespace detail
}  // namespace posbias
