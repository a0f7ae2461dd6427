// SPDX-License-Identifier: MIT
/// \file
/// A rectangle of logits: what a bias adds itself to.
///
/// `mod_mask` hands out tiles of the user's mask; fused attention hands out the tile it has in cache. Both call the
/// same `add_to`, so they can only agree.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <type_traits>

#include "posbias/core/index.hpp"
#include "posbias/core/storage.hpp"
#include "posbias/core/write.hpp"

namespace posbias {

/// Logits of batch entry `batch`, heads [head, head + heads), queries [query, query + queries) and keys [key, key +
/// keys); `data` is the first of them, strides count elements.
template <class Scalar>
struct LogitTile {
  Scalar* data;       ///< the first logit
  Index head_stride,  ///< from one head to the next
      query_stride,   ///< from one query to the next
      key_stride;     ///< from one key to the next
  Index batch;        ///< which batch entry
  Index head,         ///< the first head
      heads,          ///< how many
      query,          ///< the first query
      queries,        ///< how many
      key,            ///< the first key
      keys;           ///< how many

  /// The row of logits of one head and query, both counted within the tile.
  [[nodiscard]] Scalar* row(Index h, Index i) const { return data + h * head_stride + i * query_stride; }

  /// The same logits, to be read.
  [[nodiscard]] LogitTile<const Scalar> read_only() const {
    return {data, head_stride, query_stride, key_stride, batch, head, heads, query, queries, key, keys};
  }

  /// The same logits with keys in the place of queries.
  [[nodiscard]] LogitTile transposed() const {
    return {data, head_stride, key_stride, query_stride, batch, head, heads, key, keys, query, queries};
  }
};

namespace detail {

/// A tile to be read, as it is stored (see core/storage.hpp).
template <class Scalar>
struct StoredTile {
  Elements<const Scalar> data;  ///< the first logit
  LogitTile<const Scalar> at;   ///< where the logits are; its own `data` is none

  StoredTile(Elements<const Scalar> first, const LogitTile<const Scalar>& place) : data(first), at(place) {}
  template <class S>
  requires StoredFor<S, Scalar> StoredTile(const LogitTile<const S>& tile)
      : data(tile.data), at{nullptr,    tile.head_stride, tile.query_stride, tile.key_stride, tile.batch, tile.head,
                            tile.heads, tile.query,       tile.queries,      tile.key,        tile.keys} {}

  [[nodiscard]] StoredTile transposed() const { return {data, at.transposed()}; }
};

/// As many values as are read at a time: 32 bytes. Rows of logits seldom begin where columns do, and more bytes than that
/// nearly always lie across two cache lines.
template <class Scalar>
using SomeValues = Eigen::Array<Scalar, 32 / sizeof(Scalar), 1>;

/// Adds some values to neighbouring logits.
template <Write how, class Scalar>
void add_some(const SomeValues<Scalar>& values, Scalar* logits) {
  Eigen::Map<SomeValues<Scalar>> to(logits);
  if constexpr (how == Write::add)
    to += values;
  else
    to = Scalar(0) + values;
}

/// Adds values to logits `key_stride` apart.
template <Write how = Write::add, class Scalar, class S>
void add_values(const Scalar* __restrict values, Index count, S* __restrict logits, Index key_stride) {
  const auto add = [&](Index j, S& logit) {
    put_result(logit, (how == Write::add ? widen(logit) : Scalar(0)) + values[j]);
  };
  Index j = 0;
  if (key_stride == 1) {
    if constexpr (std::is_same_v<S, Scalar>) {
      constexpr Index some = SomeValues<Scalar>::SizeAtCompileTime;
      for (; j + some <= count; j += some)
        add_some<how, Scalar>(Eigen::Map<const SomeValues<Scalar>>(values + j), logits + j);
    }
    for (; j < count; ++j) add(j, logits[j]);
  }
  for (; j < count; ++j) add(j, logits[j * key_stride]);
}

/// Adds gradients of logits to sums in double.
template <class Values>
void add_to_sums(const Eigen::ArrayBase<Values>& gradients, double* sums) {
  Eigen::Map<Eigen::Array<double, Values::RowsAtCompileTime, 1>> to(sums, gradients.size());
  to += gradients.template cast<double>();
}

/// Adds values at some places to neighbouring logits.
template <Write how, class Scalar>
void add_values_at(const Scalar* values, const std::int64_t* places, Index count, Scalar* logits) {
  for (Index j = 0; j < count; ++j) logits[j] = (how == Write::add ? logits[j] : Scalar(0)) + values[places[j]];
}

}  // namespace detail
}  // namespace posbias
