// SPDX-License-Identifier: MIT
/// \file
/// Learned absolute position embedding, a table with a row per position, as in BERT (Devlin et al., 2018, arXiv
/// 1810.04805).
///
///     x(n, l, :) += emb.weight(p, :),    p = pos(n, l) in [0, max_seq_len)
///
/// Positions are ids of rows. A table has no row beyond its last: integers outside [0, max_seq_len) are refused, and
/// so are reals. Ids of tokens that the mask leaves out are not looked at.
///
/// Shapes: x (B, *, L, H = dim). Cost: one pass over x. The adjoint is a scatter-add: a row gets the gradients of all
/// tokens at its position.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "posbias/embedding/additive_embedding.hpp"

namespace posbias {

/// Options of `LearnedVocab`.
struct LearnedVocabOptions {
  Index dim = 0;          ///< features per token, H; required
  Index max_seq_len = 0;  ///< rows of the table, so positions go up to max_seq_len - 1; required
};

/// The learned rows of the positions.
template <class Scalar>
struct PositionTable {
  ParameterTensor<Scalar, 2> weight;  ///< (max_seq_len, dim)

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor("emb.weight", self.weight);
  }
};

/// Adds a learned row per position to each token (hook `mod_x`). Parameters: "emb.weight" (max_seq_len, dim), starting
/// as N(0, 1).
template <class Scalar>
class LearnedVocab : public AdditiveEmbedding<LearnedVocab<Scalar>, Scalar, PositionTable<Scalar>> {
  using Base = AdditiveEmbedding<LearnedVocab, Scalar, PositionTable<Scalar>>;

 public:
  using Options = LearnedVocabOptions;  ///< what it is made from
  using typename Base::Gradients;
  static constexpr std::string_view name = "LearnedVocab";  ///< in messages

  /// Throws OptionError.
  explicit LearnedVocab(const Options& options, std::uint64_t seed = 0);

  [[nodiscard]] const Options& options() const { return options_; }  ///< with defaults filled in
  [[nodiscard]] Index dim() const { return options_.dim; }           ///< features of a token, H

  /// Finds the rows of positions, which are integers in [0, max_seq_len).
  [[nodiscard]] auto rows() const {
    return [this](std::span<const double> positions, detail::TokenRows<Scalar>& rows) {
      for (std::size_t token = 0; token < positions.size(); ++token)
        rows.refer(token, this->parameters_.weight.data() + offset(positions[token]));
    };
  }

  /// Adjoint of `rows`. The tokens of one position in a block are summed in double and rounded once.
  [[nodiscard]] auto rows_backward() const {
    return [this](std::span<const double> positions, Index feature, Index features, const double* grad_rows,
                  Gradients& grads) {
      const auto add = [&](double position, const auto& sum) {
        Eigen::Map<Eigen::ArrayX<Scalar>>(grads.weight.data() + offset(position) + feature, features) +=
            sum.template cast<Scalar>();
      };
      const auto row = [&](std::size_t token) {
        return Eigen::Map<const Eigen::ArrayXd>(grad_rows + static_cast<Index>(token) * features, features);
      };
      std::vector<std::size_t> order(positions.size());
      std::iota(order.begin(), order.end(), std::size_t{0});
      if (std::adjacent_find(positions.begin(), positions.end(), std::greater_equal<>()) ==
          positions.end()) {  // ascending
        for (const std::size_t token : order) add(positions[token], row(token));
        return;
      }
      std::ranges::stable_sort(order, {}, [&](std::size_t i) { return positions[i]; });
      Eigen::ArrayXd sum(features);
      for (auto token = order.begin(); token != order.end();) {
        const double position = positions[*token];
        sum.setZero();
        for (; token != order.end() && positions[*token] == position; ++token) sum += row(*token);
        add(position, sum);
      }
    };
  }

  /// Throws PositionError unless every position is an integer with a row in the table.
  void check_positions(std::string_view hook, const CheckedPositions& at) const {
    at.require_ids({name, hook}, "pos", options_.max_seq_len);
  }

 private:
  /// Where the row of a position begins.
  [[nodiscard]] Index offset(double position) const { return static_cast<Index>(position) * dim(); }

  Options options_;
};

template <class Scalar>
LearnedVocab<Scalar>::LearnedVocab(const Options& options, std::uint64_t seed) : options_(options) {
  const auto require = [](std::string_view option, Index value) {
    if (value < 1)
      detail::fail<OptionError>(name, ": ", option, " = ", value, "; it is required, and must be positive");
  };
  require("dim", options.dim);
  require("max_seq_len", options.max_seq_len);
  this->parameters_.weight.resize(options.max_seq_len, options.dim);
  detail::Random random(seed);
  detail::fill_normal(this->parameters_.weight, random);
}

}  // namespace posbias
