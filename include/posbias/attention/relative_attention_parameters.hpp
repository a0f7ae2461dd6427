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
  std::optional<RelativePositionTable<Scalar>> table{};
  std::optional<ParameterTensor<Scalar, 1>> bias{};  // (heads)
  Linear<Scalar> key{};
  std::optional<Linear<Scalar>> query{}, value{};  // no query: as key

  [[nodiscard]] const Linear<Scalar>& query_projection() const { return query ? *query : key; }
  [[nodiscard]] Linear<Scalar>& query_projection() { return query ? *query : key; }

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
