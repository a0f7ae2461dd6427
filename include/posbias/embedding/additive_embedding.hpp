// SPDX-License-Identifier: MIT
/// \file
/// Family base of the modules that add a row to each token: x(n, l, :) += row(position(n, l)).
///
/// A module supplies the rows of some positions and their adjoint; the base handles batches, positions to the right
/// of tokens without one, masks, layouts and threads. Rows of positions that the batch shares are found once, in
/// blocks of a few dozen tokens, so the workspace is O(dim).
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "posbias/core/checked_positions.hpp"
#include "posbias/core/checks.hpp"
#include "posbias/core/module.hpp"
#include "posbias/core/token_mask.hpp"
#include "posbias/kernel/token_blocks.hpp"
#include "posbias/kernel/token_rows.hpp"

namespace posbias {

/// What a module of the family supplies to be added to tokens.
template <class M, class Scalar>
concept EmbeddingModule = requires(const M& m, std::span<const double> positions, detail::TokenRows<Scalar>& rows) {
  { m.dim() } -> std::convertible_to<Index>;
  m.rows()(positions, rows);
};

/// `Derived` supplies
///   - `static constexpr std::string_view name`, `Index dim() const`;
///   - `auto rows() const`: what finds rows in a call, `find(std::span<const double> positions,
///     detail::TokenRows<Scalar>&)`, from several threads;
///   - `auto rows_backward() const`: its adjoint, `add(positions, const double* grad_rows, Gradients&)`, given the
///     gradients of rows (positions, dim), adds to the parameters'; or `add(positions, grad_rows, Gradients&, const
///     Executor&)`, given those of many positions; or `add(positions, feature, features, grad_rows, Gradients&)`, given
///     those of some features, if every parameter belongs to one feature and one position;
///   - if not every position has a row, `void check_positions(std::string_view hook, const CheckedPositions&) const`,
///     which throws PositionError. Tokens that flags leave out may be at position 0, which must have a row.
template <class Derived, class Scalar_, class Parameters = NoParameters>
class AdditiveEmbedding : public Module<Derived, Parameters> {
  using Base = Module<Derived, Parameters>;

 public:
  using Scalar = Scalar_;  ///< of its tensors and parameters
  using typename Base::Gradients;
  static_assert(detail::is_float_or_double<Scalar>, "posbias: modules and tensors are of float or double");

  /// x (B, *, L, H = dim) += rows of its positions. Tokens without a position, or whose flag is false, stay as they
  /// are. Cost O(L·dim) for the rows, O(B·L·dim) for the sum. Throws ShapeError, PositionError.
  template <WritableStoredTensorOf<Scalar, 2> X>
  void mod_x(X&& x, const TokenPositions& at = {}) const {
    plan_mod_x(x, at)();
  }

  /// Adjoint of `mod_x`: grad_x passes through, the parameters' gradients are summed over the batch. Throws ShapeError,
  /// PositionError.
  template <StoredTensorOf<Scalar, 2> G>
  void mod_x_backward(const G& grad_x, const TokenPositions& at, Gradients& grads) const {
    plan_mod_x_backward(grad_x, at, grads)();
  }

  /// `mod_x`, checked, to be called (see `Module`).
  template <WritableStoredTensorOf<Scalar, 2> X>
  [[nodiscard]] auto plan_mod_x(X&& x, const TokenPositions& at = {}) const {
    return [this, tokens = checked(detail::view<2>(x), at), executor = at.executor] { add_rows(tokens, executor); };
  }
  /// `mod_x_backward`, checked, to be called.
  template <StoredTensorOf<Scalar, 2> G>
  [[nodiscard]] auto plan_mod_x_backward(const G& grad_x, const TokenPositions& at, Gradients& grads) const {
    return [this, tokens = checked_backward(detail::view<2>(grad_x), at, grads), executor = at.executor, &grads] {
      add_gradients(tokens, executor, grads);
    };
  }

  /// Throws PositionError where a module cannot embed the positions; a module that is particular has its own.
  void check_positions(std::string_view /*hook*/, const CheckedPositions&) const {}

 protected:
  using Base::Base;
  /// This object, as the module that derives from it.
  using Base::derived;

 private:
  template <class S>
  struct Tokens;
  using View = detail::TensorView<Scalar, 2>;
  using ConstView = detail::TensorView<const Scalar, 2>;

  /// The hooks, past the tensors.
  [[nodiscard]] Tokens<Scalar> checked(const View& x, const TokenPositions& at) const;
  void add_rows(const Tokens<Scalar>& tokens, const Executor& executor) const;
  [[nodiscard]] Tokens<const Scalar> checked_backward(const ConstView& grad_x, const TokenPositions& at,
                                                      const Gradients& grads) const;
  void add_gradients(const Tokens<const Scalar>& tokens, const Executor& executor, Gradients& grads) const;

  /// `rows` of a module that has them; compilers say of another what it needs, and no more.
  [[nodiscard]] auto checked_rows() const {
    static_assert(EmbeddingModule<Derived, Scalar>,
                  "posbias: a module of AdditiveEmbedding needs dim() and rows() const");
    if constexpr (EmbeddingModule<Derived, Scalar>)
      return derived().rows();
    else
      return [](std::span<const double>, detail::TokenRows<Scalar>&) {};
  }

  /// Adds the gradients of rows by tasks that each take a range of blocks and a range of features. Where every parameter
  /// belongs to one position and one feature, blocks of consecutive positions meet in no parameter, and other blocks only
  /// in parameters of the same feature. Otherwise a range of blocks has gradients of its own, and they are added in order:
  /// the ranges are the same for any number of threads.
  template <class Add>
  void backward_by_ranges(const Tokens<const Scalar>& tokens, const Add& add, const Executor& executor,
                          Gradients& grads) const {
    constexpr Index max_ranges = 8;
    constexpr bool by_feature =
        std::invocable<const Add&, std::span<const double>, Index, Index, const double*, Gradients&>;
    const Index blocks = detail::token_blocks(tokens.locations), dim = derived().dim();
    const bool apart = !by_feature || (tokens.locations.shared() && tokens.locations.consecutive());
    const Index range_size = apart ? (blocks + max_ranges - 1) / max_ranges : blocks;
    const Index ranges = apart ? (std::min)(blocks, max_ranges) : 1;
    const Index max_features = apart || executor.serial() ? dim : 128;
    const Index slices = (dim + max_features - 1) / max_features;
    std::vector<Gradients> parts;
    if constexpr (!by_feature) parts.assign(static_cast<std::size_t>(ranges), this->zero_gradients());
    executor.parallel_for(slices * ranges, [&](Index task) {
      const Index feature = task % slices * max_features, features = (std::min)(max_features, dim - feature);
      const Index range = task / slices, begin = range * range_size, end = (std::min)(blocks, begin + range_size);
      Eigen::ArrayXd sums(detail::TokenBlock::max_tokens * features);
      for (Index index = begin; index < end; ++index)
        tokens.visit(index, [&](const detail::TokenBlock& block) {
          tokens.sum(block, feature, features, sums.data());
          if constexpr (by_feature)
            add(block.positions, feature, features, sums.data(), grads);
          else
            add(block.positions, sums.data(), parts[static_cast<std::size_t>(range)]);
        });
    });
    for (const Gradients& part : parts) detail::add_gradients(part, grads);
  }

  /// Adds the gradients of rows by an adjoint with threads of its own: it is given 256 tokens at once.
  template <class Add>
  void backward_by_adjoint(const Tokens<const Scalar>& tokens, Add& add, const Executor& executor,
                           Gradients& grads) const {
    constexpr Index max_blocks = 8;
    const Index blocks = detail::token_blocks(tokens.locations), dim = derived().dim();
    Eigen::ArrayXd sums((std::min)(max_blocks, blocks) * detail::TokenBlock::max_tokens * dim);
    for (Index begin = 0; begin < blocks; begin += max_blocks) {
      std::vector<double> positions;
      std::vector<Index> first;
      for (Index index = begin; index < (std::min)(blocks, begin + max_blocks); ++index)
        tokens.visit(index, [&](const detail::TokenBlock& block) {
          first.push_back(std::ssize(positions));
          positions.insert(positions.end(), block.positions.begin(), block.positions.end());
        });
      executor.parallel_for(std::ssize(first), [&](Index i) {
        tokens.visit(begin + i, [&](const detail::TokenBlock& block) {
          tokens.sum(block, 0, dim, sums.data() + first[static_cast<std::size_t>(i)] * dim);
        });
      });
      add(positions, sums.data(), grads, executor);
    }
  }

  /// Adds a row to tokens. Two at a time, processors fetch them side by side; more would be too many streams.
  template <class... S>
  static void add_to_each(const Scalar* __restrict row, Index count, S* __restrict... to) {
    for (Index f = 0; f < count; ++f) (detail::put(to[f], detail::widen(to[f]) + row[f]), ...);
  }

  /// A checked view of x, or of its gradient, with where its tokens are.
  template <class S>
  struct Tokens {
    detail::TensorView<S, 2> view;
    CheckedTokenMask flags;
    CheckedPositions locations;

    Tokens(std::string_view hook, std::string_view argument, const detail::TensorView<S, 2>& x,
           const TokenPositions& at, const Derived& module)
        : view(x),
          flags({Derived::name, hook}, at.mask, x.leading, x.shape[0]),
          locations({Derived::name, hook}, "pos", at.pos, x.leading, x.shape[0], &flags) {
      if (x.shape[1] != module.dim())
        detail::fail<ShapeError>(Derived::name, "::", hook, ": ", argument, " has ", x.shape[1],
                                 " features; dim = ", module.dim());
      if constexpr (!std::is_const_v<S>) detail::check_apart({Derived::name, hook}, {argument, x});
      module.check_positions(hook, locations);
    }

    template <class Visit>
    void visit(Index index, const Visit& visit) const {
      detail::visit_token_block(locations, view.batches(), index, visit);
    }

    /// Calls `visit(token of the block, first feature, count, where)` for the features [feature, feature + features) of
    /// each token, `where` being their places in each batch entry where it is to be encoded. All at once if they lie
    /// together; otherwise feature by feature, because tokens do.
    template <class Visit>
    void for_each(const detail::TokenBlock& block, Index feature, Index features, const Visit& visit) const {
      const Index token_stride = view.strides[0], feature_stride = view.strides[1];
      const std::vector<detail::Elements<S>> batches = detail::block_in_batches(view, block);
      const bool encode_all = flags.all();
      view.data.visit([&](auto* as_stored) {
        std::vector<decltype(as_stored)> where;
        const auto each = [&](Index first, Index count) {
          for (Index token = 0; token < std::ssize(block.positions); ++token) {
            where.clear();
            for (std::size_t n = 0; n < batches.size(); ++n)
              if (encode_all || flags(block.first_batch + static_cast<Index>(n), block.first_token + token))
                where.push_back(static_cast<decltype(as_stored)>(batches[n].address()) + token * token_stride +
                                first * feature_stride);
            visit(token, first, count, where);
          }
        };
        if (feature_stride == 1)
          each(feature, features);
        else
          for (Index f = feature; f < feature + features; ++f) each(f, 1);
      });
    }

    /// Adds tokens to a row, one after another.
    static void sum_each(double* __restrict row, Index count, const auto* __restrict... from) {
      for (Index f = 0; f < count; ++f) ((row[f] += static_cast<double>(detail::widen(from[f]))), ...);
    }

    /// Sums some features of a block's tokens over the batch, in rows of them.
    void sum(const detail::TokenBlock& block, Index feature, Index features, double* rows) const {
      std::fill_n(rows, std::ssize(block.positions) * features, 0.0);
      for_each(block, feature, features, [&](Index token, Index first, Index count, const auto& where) {
        double* row = rows + token * features + (first - feature);
        std::size_t n = 0;
        for (; n + 4 <= where.size(); n += 4) sum_each(row, count, where[n], where[n + 1], where[n + 2], where[n + 3]);
        for (; n < where.size(); ++n) sum_each(row, count, where[n]);
      });
    }
  };
};

template <class Derived, class Scalar, class Parameters>
auto AdditiveEmbedding<Derived, Scalar, Parameters>::checked(const View& x, const TokenPositions& at) const
    -> Tokens<Scalar> {
  return Tokens<Scalar>("mod_x", "x", x, at, derived());
}

template <class Derived, class Scalar, class Parameters>
auto AdditiveEmbedding<Derived, Scalar, Parameters>::checked_backward(const ConstView& grad_x, const TokenPositions& at,
                                                                      const Gradients& grads) const
    -> Tokens<const Scalar> {
  Tokens<const Scalar> tokens("mod_x_backward", "grad_x", grad_x, at, derived());
  this->check_gradients("mod_x_backward", grads);
  return tokens;
}

template <class Derived, class Scalar, class Parameters>
void AdditiveEmbedding<Derived, Scalar, Parameters>::add_rows(const Tokens<Scalar>& tokens,
                                                              const Executor& executor) const {
  const auto find = checked_rows();
  executor.parallel_for(detail::token_blocks(tokens.locations), [&](Index index) {
    tokens.visit(index, [&](const detail::TokenBlock& block) {
      detail::TokenRows<Scalar> rows;
      find(block.positions, rows);
      const auto add = [&](Index token, Index feature, Index count, const auto& where) {
        const Scalar* row = rows[token] + feature;
        std::size_t n = 0;
        for (; n + 2 <= where.size(); n += 2) add_to_each(row, count, where[n], where[n + 1]);
        if (n < where.size()) add_to_each(row, count, where[n]);
      };
      tokens.for_each(block, 0, derived().dim(), add);
    });
  });
}

template <class Derived, class Scalar, class Parameters>
void AdditiveEmbedding<Derived, Scalar, Parameters>::add_gradients(const Tokens<const Scalar>& tokens,
                                                                   const Executor& executor, Gradients& grads) const {
  if (!this->has_parameters()) return;
  auto add = derived().rows_backward();
  if constexpr (std::invocable<decltype(add)&, std::span<const double>, const double*, Gradients&, const Executor&>)
    backward_by_adjoint(tokens, add, executor, grads);
  else
    backward_by_ranges(tokens, add, executor, grads);
}

}  // namespace posbias
