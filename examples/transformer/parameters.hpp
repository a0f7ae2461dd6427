// SPDX-License-Identifier: MIT
/// \file
/// All that is learned, as a list of runs of numbers: what an optimiser needs to know of a model.
#pragma once

#include <algorithm>
#include <posbias/posbias.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "transformer/shape.hpp"

namespace demo {

template <class Scalar>
struct ParameterView {
  std::span<Scalar> values;
  bool decays = false;  ///< weight decay: for the transformer's matrices, not for vectors or positions
};

/// The parameters of a transformer or, in the same order, its gradients: an `owner` of `weights` and `position`.
template <class Owner>
auto parameter_views(Owner& owner) {
  using Scalar = typename Owner::Scalar;
  std::vector<ParameterView<Scalar>> views;
  const auto add = [&views](auto& values, bool decays) {
    views.push_back({{values.data(), static_cast<std::size_t>(values.size())}, decays});
  };
  owner.weights.visit([&add](auto& matrix) { add(matrix, matrix.rows() > 1); });
  posbias::for_each_parameter(owner.position, [&add](std::string_view, auto& tensor) { add(tensor, false); });
  return views;
}

template <class Scalar>
Index count_values(const std::vector<ParameterView<Scalar>>& views) {
  std::size_t count = 0;
  for (const auto& view : views) count += view.values.size();
  return static_cast<Index>(count);
}

template <class Scalar>
void set_zero(const std::vector<ParameterView<Scalar>>& views) {
  for (const auto& view : views) std::fill(view.values.begin(), view.values.end(), Scalar(0));
}

template <class Scalar>
void add(const std::vector<ParameterView<Scalar>>& from, const std::vector<ParameterView<Scalar>>& to) {
  for (std::size_t p = 0; p < to.size(); ++p)
    for (std::size_t i = 0; i < to[p].values.size(); ++i) to[p].values[i] += from[p].values[i];
}

}  // namespace demo
