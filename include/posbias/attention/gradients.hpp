// SPDX-License-Identifier: MIT
/// \file
/// Where `attention_backward` writes gradients, by name.
#pragma once

#include <string_view>
#include <variant>

#include "posbias/core/error.hpp"
#include "posbias/core/strided_map.hpp"
#include "posbias/core/tensor_copies.hpp"
#include "posbias/core/view.hpp"

namespace posbias {

/// A tensor (B, *, L, NH, H) that a gradient is written to: any that `attention_backward` takes. It is borrowed.
class HeadsGradient {
 public:
  /// None.
  HeadsGradient() = default;

  /// Borrows a tensor.
  template <class T>
  requires(WritableStoredTensorOf<T, float, 3> || WritableStoredTensorOf<T, double, 3>) HeadsGradient(T&& tensor)
      : view_(detail::view<3>(tensor)) {}

  /// The tensor, if it is of `Scalar` or stored for it, or else null.
  template <class Scalar>
  [[nodiscard]] const detail::TensorView<Scalar, 3>* view() const {
    return std::get_if<detail::TensorView<Scalar, 3>>(&view_);
  }

  [[nodiscard]] bool given() const { return view_.index() != 0; }  ///< whether there is a tensor

 private:
  std::variant<std::monostate, detail::TensorView<float, 3>, detail::TensorView<double, 3>> view_;
};

/// Where the gradients of an attention's q, k and v are written: `{.q = grad_q, .k = grad_k, .v = grad_v}`.
struct AttentionGradients {
  HeadsGradient q{},  ///< of q (B, *, L1, NH, H)
      k{},            ///< of k (B, *, L2, NHk, H)
      v{};            ///< of v (B, *, L2, NHk, Hv)
};

namespace detail {

/// The gradient as a view. Throws ShapeError unless it is there, of q's scalar and with `rank` dimensions.
template <class Scalar>
TensorView<Scalar, 3> checked_gradient(std::string_view name, const HeadsGradient& gradient, std::size_t rank) {
  const TensorView<Scalar, 3>* view = gradient.view<Scalar>();
  if (!gradient.given()) fail<ShapeError>("posbias::attention_backward: gradients.", name, " is missing");
  if (view == nullptr)
    fail<ShapeError>("posbias::attention_backward: gradients.", name, " is of ",
                     sizeof(Scalar) == 4 ? "double" : "float", "; q is computed in ",
                     sizeof(Scalar) == 4 ? "float" : "double");
  if (const BatchShape shape = view->whole_shape(); shape.rank != rank)
    fail<ShapeError>("posbias::attention_backward: gradients.", name, " has shape ", shape.shape(), "; q has ", rank,
                     " dimensions");
  return *view;
}

/// A view of the scalar that computes, as a tensor.
template <int Rank, class Scalar>
StridedMap<Scalar, Rank> map_of(const TensorView<Scalar, 3>& view) {
  std::array<Index, static_cast<std::size_t>(Rank)> sizes{}, strides{};
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    const bool leads = d < view.leading.rank;
    sizes[d] = leads ? view.leading.sizes[d] : view.shape[d - view.leading.rank];
    strides[d] = leads ? view.leading_strides[d] : view.strides[d - view.leading.rank];
  }
  return {view.data.data(), sizes, strides};
}

}  // namespace detail
}  // namespace posbias
