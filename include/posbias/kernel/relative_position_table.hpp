// SPDX-License-Identifier: MIT
/// \file
/// A learned embedding of each clamped relative position, projected to keys and to queries: what disentangled attention
/// (He et al., 2020, arXiv 2006.03654) multiplies content by.
///
/// Features come in groups, one a coordinate, that are projected apart: for text there is one, for boxes on a page two.
/// Names and shapes are edspdf's.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "posbias/core/parameters.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias {

/// Linear maps of groups of features: outputs of group g depend on inputs of group g.
template <class Scalar>
struct GroupedLinear {
  ParameterTensor<Scalar, 3> weight{};  ///< (groups, inputs / groups, outputs / groups)
  ParameterTensor<Scalar, 2> bias{};    ///< (groups, outputs / groups)

  [[nodiscard]] Index groups() const { return weight.dimension(0); }
  /// Of a group.
  [[nodiscard]] Index inputs() const { return weight.dimension(1); }
  [[nodiscard]] Index outputs() const { return weight.dimension(2); }

  /// Weights start uniform in ±1/sqrt(inputs / groups), the bias at 0. `inputs` and `outputs` are of all groups.
  void start(Index groups, Index inputs, Index outputs, detail::Random& random) {
    weight.resize(groups, inputs / groups, outputs / groups);
    bias.resize(groups, outputs / groups);
    detail::fill_uniform(weight, 1 / std::sqrt(static_cast<double>(inputs / groups)), random);
    std::fill_n(bias.data(), bias.size(), Scalar(0));
  }

  template <class Self, class Visitor>
  static void visit(const std::string& name, Self& self, Visitor& visitor) {
    visitor(std::string_view(name + ".weight"), self.weight);
    visitor(std::string_view(name + ".bias"), self.bias);
  }

  /// Writes y (rows, outputs of all groups) of x (rows, inputs of all groups), both row-major.
  void apply(const ParameterTensor<Scalar, 2>& x, Scalar* y) const {
    using namespace detail;
    const Index rows = x.dimension(0), width = whole_lanes<Scalar>(outputs());
    Workspace<Scalar> packed(packed_size<Scalar>(inputs(), outputs())), product(rows * width);
    for (Index g = 0; g < groups(); ++g) {
      const auto panels = pack(Factor<Scalar>{group(weight, g), outputs(), 1}, inputs(), outputs(), packed.data());
      for (Index i = 0; i < rows; ++i) std::copy_n(&bias(g, 0), outputs(), product.data() + i * width);
      multiply<Sum::continued>(rows, outputs(), inputs(), columns_of(x, g), panels, product.data(), width);
      for (Index i = 0; i < rows; ++i)
        std::copy_n(product.data() + i * width, outputs(), y + (i * groups() + g) * outputs());
    }
  }

  /// Adjoint of `apply`, in double: adds to `grads` and, if there is one, to grad_x.
  void backward(const ParameterTensor<Scalar, 2>& x, const double* grad_y, GroupedLinear& grads,
                ParameterTensor<Scalar, 2>* grad_x) const {
    using namespace detail;
    const Index rows = x.dimension(0), width = whole_lanes<double>(outputs()), x_width = whole_lanes<double>(inputs());
    std::vector<double> gradient(size(rows, width)), of_weight(size(inputs(), width)), of_x(size(rows, x_width));
    for (Index g = 0; g < groups(); ++g) {
      for (Index i = 0; i < rows; ++i)
        std::copy_n(grad_y + (i * groups() + g) * outputs(), outputs(), gradient.data() + i * width);
      for (Index o = 0; o < outputs(); ++o) {
        double sum = 0;
        for (Index i = 0; i < rows; ++i) sum += gradient[size(i, width) + static_cast<std::size_t>(o)];
        grads.bias(g, o) += static_cast<Scalar>(sum);
      }
      std::fill(of_weight.begin(), of_weight.end(), 0);
      add_product(inputs(), width, rows, columns_of(x, g).transposed(), gradient.data(), width, of_weight.data(),
                  width);
      for (Index d = 0; d < inputs(); ++d)
        for (Index o = 0; o < outputs(); ++o)
          grads.weight(g, d, o) += static_cast<Scalar>(of_weight[size(d, width) + static_cast<std::size_t>(o)]);
      if (grad_x == nullptr) continue;
      const std::vector<double> weights(group(weight, g), group(weight, g) + inputs() * outputs());
      std::fill(of_x.begin(), of_x.end(), 0);
      add_product_transposed(rows, inputs(), outputs(), Factor<double>{gradient.data(), width, 1}, weights.data(),
                             outputs(), of_x.data(), x_width);
      for (Index i = 0; i < rows; ++i)
        for (Index d = 0; d < inputs(); ++d)
          (*grad_x)(i, g * inputs() + d) += static_cast<Scalar>(of_x[size(i, x_width) + static_cast<std::size_t>(d)]);
    }
  }

 private:
  [[nodiscard]] static std::size_t size(Index rows, Index columns) { return static_cast<std::size_t>(rows * columns); }
  [[nodiscard]] static const Scalar* group(const ParameterTensor<Scalar, 3>& weight, Index g) {
    return weight.data() + g * weight.dimension(1) * weight.dimension(2);
  }
  /// The columns of x that belong to a group.
  [[nodiscard]] detail::Factor<Scalar> columns_of(const ParameterTensor<Scalar, 2>& x, Index g) const {
    return {x.data() + g * inputs(), x.dimension(1), 1};
  }
};

/// Parameters: an embedding of each relative position, and its projections.
template <class Scalar>
struct RelativePositionTable {
  ParameterTensor<Scalar, 2> embedding{};        ///< (n_positions, position_size)
  GroupedLinear<Scalar> key{};                   ///< to keys, for content-to-position terms
  std::optional<GroupedLinear<Scalar>> query{};  ///< to queries, for position-to-content; none: as to keys
  bool learn_embedding = true;                   ///< otherwise its gradient is 0

  /// What a table consists of.
  struct Sizes {
    Index positions, position_size, groups, outputs;
    bool same_projections;
  };

  /// The embedding starts normal, projections as `GroupedLinear` does.
  void start(const Sizes& sizes, detail::Random& random) {
    embedding.resize(sizes.positions, sizes.position_size);
    detail::fill_normal(embedding, random);
    key.start(sizes.groups, sizes.position_size, sizes.outputs, random);
    if (!sizes.same_projections) query.emplace().start(sizes.groups, sizes.position_size, sizes.outputs, random);
  }

  [[nodiscard]] Index positions() const { return embedding.dimension(0); }
  /// Features of a projected position, of all groups.
  [[nodiscard]] Index outputs() const { return key.groups() * key.outputs(); }

  /// Writes the positions projected to keys, or to queries: (positions, outputs).
  void project(bool to_queries, Scalar* projected) const { projection(*this, to_queries).apply(embedding, projected); }

  /// Adjoint of `project`: adds to `grads`.
  void project_backward(bool to_queries, const double* grad_projected, RelativePositionTable& grads) const {
    projection(*this, to_queries)
        .backward(embedding, grad_projected, projection(grads, to_queries),
                  learn_embedding ? &grads.embedding : nullptr);
  }

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor(std::string_view("position_embedding"), self.embedding);
    visit_projection("position_key_proj", self.key, visitor);
    if (self.query) visit_projection("position_query_proj", *self.query, visitor);
  }

 private:
  template <class Self>
  static auto& projection(Self& self, bool to_queries) {
    return to_queries && self.query ? *self.query : self.key;
  }
  template <class Projection, class Visitor>
  static void visit_projection(const char* name, Projection& projection, Visitor& visitor) {
    GroupedLinear<Scalar>::visit(name, projection, visitor);
  }
};

}  // namespace posbias
