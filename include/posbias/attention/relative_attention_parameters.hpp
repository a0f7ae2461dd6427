// SPDX-License-Identifier: MIT
/// \file
/// What RelativeAttention learns.
#pragma once

#include <optional>

#include "posbias/core/parameters.hpp"
#include "posbias/kernel/linear.hpp"
#include "posbias/kernel/relative_position_table.hpp"

namespace posbias {

/// Names and shapes are those of edspdf's state_dict. What is shared appears once, under the name of the keys'.
template <class Scalar>
struct RelativeAttentionParameters {
  std::optional<RelativePositionTable<Scalar>> table{};  ///< none without positional terms
  std::optional<ParameterTensor<Scalar, 1>> bias{};      ///< (heads)
  Linear<Scalar> key{};                                  ///< content to keys
  std::optional<Linear<Scalar>> query{},                 ///< content to queries; none: as to keys
      value{};                                           ///< content to values; none: nothing is pooled

  /// How content becomes queries: as keys, where the projection is shared.
  [[nodiscard]] const Linear<Scalar>& query_projection() const { return query ? *query : key; }
  /// The same, to be written.
  [[nodiscard]] Linear<Scalar>& query_projection() { return query ? *query : key; }

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    if (self.table) RelativePositionTable<Scalar>::visit(*self.table, visitor);
    if (self.bias) visitor("bias", *self.bias);
    Linear<Scalar>::visit("content_key_proj", self.key, visitor);
    if (self.query) Linear<Scalar>::visit("content_query_proj", *self.query, visitor);
    if (self.value) Linear<Scalar>::visit("content_value_proj", *self.value, visitor);
  }
};

}  // namespace posbias
