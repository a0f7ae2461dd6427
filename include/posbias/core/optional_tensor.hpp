// SPDX-License-Identifier: MIT
/// \file
/// A tensor that a call may be given or not, of a scalar known only at run time.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <type_traits>
#include <variant>

#include "posbias/core/tensor_view.hpp"

namespace posbias {

/// A tensor of one of these scalars, of any rank from 1 on and either layout, or none. Refers to the tensor, which must
/// outlive it: a temporary does not compile.
template <class... Scalars>
class OptionalTensor {
 public:
  /// None.
  OptionalTensor() = default;

  template <TensorLike T>
  requires(TensorOf<T, Scalars, 1> || ...) OptionalTensor(const T& tensor) : entries_(detail::view<0>(tensor)) {}
  template <class S, int Rank, int Layout, class I>
  OptionalTensor(const Eigen::Tensor<S, Rank, Layout, I>&& temporary) = delete;

  [[nodiscard]] bool given() const { return !std::holds_alternative<std::monostate>(entries_); }

  /// Calls `visit(view)` with the entries as a `detail::TensorView<const Scalar, 0>`, if there is a tensor.
  template <class Visit>
  void visit(const Visit& visit) const {
    std::visit(
        [&]<class Entries>(const Entries& entries) {
          if constexpr (!std::is_same_v<Entries, std::monostate>) visit(entries);
        },
        entries_);
  }

  /// Where its entries are; nowhere, if there is none.
  [[nodiscard]] std::span<const std::byte> memory() const {
    std::span<const std::byte> result;
    visit([&](const auto& entries) { result = entries.memory(); });
    return result;
  }

 private:
  std::variant<std::monostate, detail::TensorView<const Scalars, 0>...> entries_;
};

namespace detail {

/// Inserts a dimension of size 1 at a place.
template <class Entry>
void insert_dimension(TensorView<Entry, 0>& entries, std::size_t place) {
  Leading& dimensions = entries.leading;
  for (std::size_t d = dimensions.rank++; d > place; --d) {
    dimensions.sizes[d] = dimensions.sizes[d - 1];
    entries.leading_strides[d] = entries.leading_strides[d - 1];
  }
  dimensions.sizes[place] = 1;
  entries.leading_strides[place] = 0;
}

/// Sets a view of shape (B, *, ...), its sizes given, to the entries of a tensor, in which a dimension of size 1 may stand
/// for any size: all leading ones, and the trailing ones that `repeat`. False if the shapes do not fit.
template <class Entry, int Trailing>
bool broadcast(const TensorView<Entry, 0>& entries, const std::array<bool, Trailing>& repeat,
               TensorView<Entry, Trailing>& to) {
  const std::size_t leading = to.leading.rank;
  if (entries.leading.rank != leading + repeat.size()) return false;
  to.data = entries.data;
  for (std::size_t d = 0; d < entries.leading.rank; ++d) {
    const bool trails = d >= leading;
    const Index given = entries.leading.sizes[d], wanted = trails ? to.shape[d - leading] : to.leading.sizes[d];
    if (given != wanted && !(given == 1 && (!trails || repeat[d - leading]))) return false;
    (trails ? to.strides[d - leading] : to.leading_strides[d]) = given == wanted ? entries.leading_strides[d] : 0;
  }
  return true;
}

}  // namespace detail
}  // namespace posbias
