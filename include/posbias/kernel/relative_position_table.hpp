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

#include "posbias/core/executor.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias {

/// Linear maps of groups of features: outputs of group g depend on inputs of group g.
template <class Scalar>
struct GroupedLinear {
  ParameterTensor<Scalar, 3> weight{};  ///< (groups, inputs / groups, outputs / groups)
  ParameterTensor<Scalar, 2> bias{};    ///< (groups, outputs / groups)

  [[nodiscard]] Index groups() const { return weight.dimension(0); }  ///< groups of features, each mapped by itself
  /// Of a group.
  [[nodiscard]] Index inputs() const { return weight.dimension(1); }
  [[nodiscard]] Index outputs() const { return weight.dimension(2); }  ///< features of a group's result

  /// Weights start uniform in ±1/sqrt(inputs / groups), the bias at 0. `inputs` and `outputs` are of all groups.
  void start(Index groups, Index inputs, Index outputs, detail::Random& random) {
    weight.resize(groups, inputs / groups, outputs / groups);
    bias.resize(groups, outputs / groups);
    detail::fill_uniform(weight, 1 / std::sqrt(static_cast<double>(inputs / groups)), random);
    std::fill_n(bias.data(), bias.size(), Scalar(0));
  }

  /// Shows the parameters to a visitor, as `name` + ".weight" and `name` + ".bias".
  template <class Self, class Visitor>
  static void visit(const std::string& name, Self& self, Visitor& visitor) {
    visitor(std::string_view(name + ".weight"), self.weight);
    visitor(std::string_view(name + ".bias"), self.bias);
  }

  /// Writes y (count, outputs of all groups) of rows [first, first + count) of x (rows, inputs of all groups), both
  /// row-major.
  void apply(const ParameterTensor<Scalar, 2>& x, Index first, Index count, Scalar* y, const Executor& executor) const {
    using namespace detail;
    const Index width = round_up_to_lanes<Scalar>(outputs()), blocks = blocks_of(count);
    Workspace<Scalar> packed(packed_size<Scalar>(inputs(), outputs()));
    for (Index g = 0; g < groups(); ++g) {
      const auto panels = pack(MatrixView<Scalar>{group(weight, g), outputs(), 1}, inputs(), outputs(), packed.data());
      executor.parallel_for(blocks, [&](Index block) {
        const Index begin = block * rows_per_task, rows = (std::min)(rows_per_task, count - begin);
        Workspace<Scalar> product(rows * width);
        for (Index i = 0; i < rows; ++i) std::copy_n(&bias(g, 0), outputs(), product.data() + i * width);
        const MatrixView<Scalar> from{x.data() + (first + begin) * x.dimension(1) + g * inputs(), x.dimension(1), 1};
        multiply<Accumulate::extend>(rows, outputs(), inputs(), from, panels, product.data(), width);
        for (Index i = 0; i < rows; ++i)
          std::copy_n(product.data() + i * width, outputs(), y + ((begin + i) * groups() + g) * outputs());
      });
    }
  }

  /// Adjoint of `apply`: adds to `grads` and, if there is one, to grad_x. Sums over rows run in Scalar over 64 at most, and
  /// in double from there on.
  void backward(const ParameterTensor<Scalar, 2>& x, Index first, Index count, const double* grad_y,
                GroupedLinear& grads, ParameterTensor<Scalar, 2>* grad_x, const Executor& executor) const {
    using namespace detail;
    constexpr Index max_sum = 64;
    const Index width = round_up_to_lanes<Scalar>(outputs()), x_width = round_up_to_lanes<Scalar>(inputs());
    Workspace<Scalar> by_row(packed_size<Scalar>(count, outputs())),
        by_output(packed_size<Scalar>(outputs(), inputs()));
    std::vector<Scalar> rows_of_y(static_cast<std::size_t>(count * outputs()));
    const MatrixView<Scalar> gradient{rows_of_y.data(), outputs(), 1};
    for (Index g = 0; g < groups(); ++g) {
      std::vector<double> bias_sums(static_cast<std::size_t>(outputs()));
      for (Index i = 0; i < count; ++i)
        for (Index o = 0; o < outputs(); ++o) {
          const double value = grad_y[(i * groups() + g) * outputs() + o];
          rows_of_y[static_cast<std::size_t>(i * outputs() + o)] = static_cast<Scalar>(value);
          bias_sums[static_cast<std::size_t>(o)] += value;
        }
      for (Index o = 0; o < outputs(); ++o)
        grads.bias(g, o) += static_cast<Scalar>(bias_sums[static_cast<std::size_t>(o)]);

      const PackedMatrix<Scalar> gradients = pack(gradient, count, outputs(), by_row.data());
      const Scalar* rows_of_x = x.data() + first * x.dimension(1) + g * inputs();
      executor.parallel_for(blocks_of(inputs()), [&](Index block) {
        const Index begin = block * rows_per_task, rows = (std::min)(rows_per_task, inputs() - begin);
        Workspace<Scalar> product(rows * width);
        std::vector<double> sums(static_cast<std::size_t>(rows * width));
        for (Index i = 0; i < count; i += max_sum) {
          const MatrixView<Scalar> columns{rows_of_x + i * x.dimension(1) + begin, 1, x.dimension(1)};
          multiply<Accumulate::overwrite>(rows, outputs(), (std::min)(max_sum, count - i), columns,
                                          gradients.from(i, 0), product.data(), width);
          for (std::size_t s = 0; s < sums.size(); ++s) sums[s] += static_cast<double>(product.data()[s]);
        }
        for (Index d = 0; d < rows; ++d)
          for (Index o = 0; o < outputs(); ++o)
            grads.weight(g, begin + d, o) += static_cast<Scalar>(sums[static_cast<std::size_t>(d * width + o)]);
      });
      if (grad_x == nullptr) continue;
      const PackedMatrix<Scalar> transposed =
          pack(MatrixView<Scalar>{group(weight, g), 1, outputs()}, outputs(), inputs(), by_output.data());
      executor.parallel_for(blocks_of(count), [&](Index block) {
        const Index begin = block * rows_per_task, rows = (std::min)(rows_per_task, count - begin);
        Workspace<Scalar> product(rows * x_width);
        multiply<Accumulate::overwrite>(rows, inputs(), outputs(), gradient.from_row(begin), transposed, product.data(),
                                        x_width);
        for (Index i = 0; i < rows; ++i)
          for (Index d = 0; d < inputs(); ++d)
            (*grad_x)(first + begin + i, g * inputs() + d) += product.data()[i * x_width + d];
      });
    }
  }

 private:
  static constexpr Index rows_per_task = 32;

  [[nodiscard]] static Index blocks_of(Index rows) { return (rows + rows_per_task - 1) / rows_per_task; }
  [[nodiscard]] static const Scalar* group(const ParameterTensor<Scalar, 3>& weight, Index g) {
    return weight.data() + g * weight.dimension(1) * weight.dimension(2);
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
    Index positions,        ///< rows of the table
        position_size,      ///< features of a row
        groups,             ///< of features, each mapped by itself
        outputs;            ///< features that a row is projected to
    bool same_projections;  ///< to queries as to keys
  };

  /// The embedding starts normal, projections as `GroupedLinear` does.
  void start(const Sizes& sizes, detail::Random& random) {
    embedding.resize(sizes.positions, sizes.position_size);
    detail::fill_normal(embedding, random);
    key.start(sizes.groups, sizes.position_size, sizes.outputs, random);
    if (!sizes.same_projections) query.emplace().start(sizes.groups, sizes.position_size, sizes.outputs, random);
  }

  [[nodiscard]] Index positions() const { return embedding.dimension(0); }  ///< rows of the table
  /// Features of a projected position, of all groups.
  [[nodiscard]] Index outputs() const { return key.groups() * key.outputs(); }

  /// Writes positions [first, first + count) projected to keys, or to queries: (count, outputs).
  void project(bool to_queries, Index first, Index count, Scalar* projected, const Executor& executor) const {
    projection(*this, to_queries).apply(embedding, first, count, projected, executor);
  }

  /// Adjoint of `project`: adds to `grads`.
  void project_backward(bool to_queries, Index first, Index count, const double* grad_projected,
                        RelativePositionTable& grads, const Executor& executor) const {
    projection(*this, to_queries)
        .backward(embedding, first, count, grad_projected, projection(grads, to_queries),
                  learn_embedding ? &grads.embedding : nullptr, executor);
  }

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor(std::string_view("position_embedding"), self.embedding);
    GroupedLinear<Scalar>::visit("position_key_proj", self.key, visitor);
    if (self.query) GroupedLinear<Scalar>::visit("position_query_proj", *self.query, visitor);
  }

 private:
  template <class Self>
  static auto& projection(Self& self, bool to_queries) {
    return to_queries && self.query ? *self.query : self.key;
  }
};

}  // namespace posbias
