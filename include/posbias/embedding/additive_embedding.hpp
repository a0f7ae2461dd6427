// SPDX-License-Identifier: MIT
/// \file
/// Family base of the modules that add a row to each token: x(n, l, :) += embed(position(n, l)).
///
/// A module supplies the rows of some positions and their adjoint; the base handles batches, positions to the right
/// of tokens without one, masks, layouts and threads. Rows of positions that the batch shares are computed once, in
/// blocks of a few dozen tokens, so the workspace is O(dim).
#pragma once

#include <Eigen/Core>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "posbias/core/module.hpp"

namespace posbias {

/// `Derived` supplies
///   - `static constexpr std::string_view name`, `Index dim() const`;
///   - `void embed(std::span<const double> positions, Scalar* rows) const`: rows (positions, dim), row-major;
///   - `void embed_backward(positions, const double* grad_rows, Gradients&) const`: its adjoint, adding to the
///     parameters' gradients;
///   - if not every position has a row, `void check_positions(std::string_view hook, const TokenLocations&) const`,
///     which throws PositionError.
template <class Derived, class Scalar_, class Parameters>
class AdditiveEmbedding : public Module<Derived, Parameters> {
  using Base = Module<Derived, Parameters>;

 public:
  using Scalar = Scalar_;
  using typename Base::Gradients;

  /// x (B, *, L, H = dim) += rows of its positions. Tokens without a position, or whose flag is false, stay as they
  /// are. Cost O(L·dim) for the rows, O(B·L·dim) for the sum. Throws ShapeError, PositionError.
  template <WritableTensorOf<Scalar, 2> X>
  void mod_x(X&& x, const TokenPositions& at = {}) const {
    const Tokens<Scalar> tokens("mod_x", "x", detail::view<2>(x), at, derived());
    at.executor.parallel_for(detail::token_blocks(tokens.locations), [&](Index index) {
      detail::visit_token_block(tokens.locations, tokens.view.batches(), index, [&](detail::TokenBlock block) {
        const Index dim = derived().dim();
        std::vector<Scalar> rows(block.positions.size() * static_cast<std::size_t>(dim));
        derived().embed(block.positions, rows.data());
        tokens.for_each(block, [&](Index row, Scalar* token, Index stride) {
          const Row<const Scalar> addend(rows.data() + row * dim, dim);
          Strided<Scalar>(token, dim, Eigen::InnerStride<>(stride)) += addend;
        });
      });
    });
  }

  /// Adjoint of `mod_x`: grad_x passes through, the parameters' gradients are summed over the batch, on the calling
  /// thread. Throws ShapeError, PositionError.
  template <TensorOf<Scalar, 2> G>
  void mod_x_backward(const G& grad_x, const TokenPositions& at, Gradients& grads) const {
    const Tokens<const Scalar> tokens("mod_x_backward", "grad_x", detail::view<2>(grad_x), at, derived());
    this->check_gradients("mod_x_backward", grads);
    if (!this->has_parameters()) return;
    std::vector<double> rows;
    for (Index index = 0; index < detail::token_blocks(tokens.locations); ++index) {
      detail::visit_token_block(tokens.locations, tokens.view.batches(), index, [&](detail::TokenBlock block) {
        const Index dim = derived().dim();
        rows.assign(block.positions.size() * static_cast<std::size_t>(dim), 0);
        tokens.for_each(block, [&](Index row, const Scalar* token, Index stride) {
          Row<double>(rows.data() + row * dim, dim) +=
              Strided<const Scalar>(token, dim, Eigen::InnerStride<>(stride)).template cast<double>();
        });
        derived().embed_backward(block.positions, rows.data(), grads);
      });
    }
  }

  template <WritableTensorOf<Scalar, 2> X>
  void check_mod_x(X&& x, const TokenPositions& at = {}) const {
    (void)Tokens<Scalar>("mod_x", "x", detail::view<2>(x), at, derived());
  }
  template <TensorOf<Scalar, 2> G>
  void check_mod_x_backward(const G& grad_x, const TokenPositions& at, const Gradients& grads) const {
    (void)Tokens<const Scalar>("mod_x_backward", "grad_x", detail::view<2>(grad_x), at, derived());
    this->check_gradients("mod_x_backward", grads);
  }

  void check_positions(std::string_view /*hook*/, const TokenLocations&) const {}

 protected:
  using Base::Base;
  using Base::derived;

 private:
  template <class S>
  using Values = std::conditional_t<std::is_const_v<S>, const Eigen::ArrayX<std::remove_const_t<S>>, Eigen::ArrayX<S>>;
  template <class S>
  using Row = Eigen::Map<Values<S>>;
  template <class S>
  using Strided = Eigen::Map<Values<S>, Eigen::Unaligned, Eigen::InnerStride<>>;

  /// A checked view of x, or of its gradient, with where its tokens are.
  template <class S>
  struct Tokens {
    detail::TensorView<S, 2> view;
    TokenLocations locations;
    TokenFlags flags;

    Tokens(std::string_view hook, std::string_view argument, const detail::TensorView<S, 2>& x,
           const TokenPositions& at, const Derived& module)
        : view(x),
          locations(Derived::name, hook, "pos", at.pos, x.leading, x.shape[0]),
          flags(Derived::name, hook, at.mask, x.leading, x.shape[0]) {
      if (x.shape[1] != module.dim())
        detail::fail<ShapeError>(Derived::name, "::", hook, ": ", argument, " has ", x.shape[1],
                                 " features; dim = ", module.dim());
      module.check_positions(hook, locations);
    }

    /// Calls `visit(row of the block, first feature, stride)` for each token of the block to be encoded.
    template <class Visit>
    void for_each(const detail::TokenBlock& block, const Visit& visit) const {
      for (Index n = block.first_batch; n < block.end_batch; ++n) {
        S* batch = view.batch(n);
        for (Index row = 0; row < static_cast<Index>(block.positions.size()); ++row) {
          const Index token = block.first_token + row;
          if (flags(n, token)) visit(row, batch + token * view.strides[0], view.strides[1]);
        }
      }
    }
  };
};

}  // namespace posbias
