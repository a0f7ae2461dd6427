// SPDX-License-Identifier: MIT
/// \file
/// A tensor that a call may be given or not, of a scalar known only at run time; shapes that stand for larger ones.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/core/standard.hpp"
#include "posbias/core/view.hpp"

namespace posbias {

namespace detail {

/// Elements whose type is not known here.
template <int Trailing>
struct UntypedView : StridedShape<Trailing> {
  const void* data = nullptr;
};

/// Entries of one of these scalars, or none. Which scalar it is matters only where entries are read.
template <int Trailing, class... Scalars>
struct OptionalView {
  UntypedView<Trailing> entries{};
  std::size_t scalar = 0;  // the place of the scalar, counted from 1; 0: there are none

  [[nodiscard]] bool given() const { return scalar != 0; }

  /// Calls `visit(first entry)` with a pointer to the scalar, if there are entries.
  template <class Visit>
  void visit(const Visit& visit) const {
    std::size_t place = 0;
    ((++place == scalar ? visit(static_cast<const Scalars*>(entries.data)) : void()), ...);
  }

  /// The same with the first entry of block n.
  template <class Visit>
  void visit_batch(Index n, const Visit& visit_first) const {
    if (!given()) return;
    const Index offset = entries.offset(n);
    visit([&](const auto* data) { visit_first(data + offset); });
  }
};

/// An Eigen expression that has no entries in memory.
template <class E>
concept TensorExpression = !TensorLike<E> && std::derived_from<E, Eigen::TensorBase<E, Eigen::ReadOnlyAccessors>>;

}  // namespace detail

/// A tensor of one of these scalars, of any rank from 1 on and either layout, or none. A tensor that has a name, and the
/// memory of an `Eigen::TensorMap`, are borrowed and must outlive it; a temporary `Eigen::Tensor`, or one that is moved in,
/// is kept, and copies share it.
template <class... Scalars>
class OptionalTensor {
 public:
  /// None.
  OptionalTensor() = default;

  /// Borrows a tensor of rank 1 or more, in either layout, or keeps one that is a temporary.
  template <class T>
  requires(TensorOf<T, Scalars, 1> || ...) OptionalTensor(T&& tensor) {
    if constexpr (std::is_lvalue_reference_v<T> || detail::Traits<T>::is_reference) {
      refer_to(tensor);
    } else {
      auto kept = std::make_shared<const std::remove_cvref_t<T>>(std::forward<T>(tensor));
      refer_to(*kept);
      kept_ = std::move(kept);
    }
  }
  /// Evaluate the expression first: `Eigen::Tensor<float, 2>(mask.exp())` is kept.
  template <detail::TensorExpression E>
  OptionalTensor(const E& evaluate_this_to_a_tensor_first) = delete;

  [[nodiscard]] bool given() const { return view_.given(); }  ///< whether there is a tensor

  /// The entries, whatever their scalar.
  [[nodiscard]] const detail::OptionalView<0, Scalars...>& view() const { return view_; }

  /// Where its entries are; nowhere, if there is none.
  [[nodiscard]] detail::MemoryRegion region() const { return view_.entries.region(view_.entries.data, element_size_); }

 private:
  template <class T>
  void refer_to(const T& tensor) {
    const auto view = detail::view<0>(tensor);
    view_.entries = {view, view.data.address()};
    element_size_ = view.data.element_size();
    (void)((++view_.scalar, TensorOf<T, Scalars>) || ...);
  }

  detail::OptionalView<0, Scalars...> view_;
  Index element_size_ = 0;
  std::shared_ptr<const void> kept_;
};

namespace detail {

/// Inserts a dimension of size 1 at a place.
inline void insert_dimension(StridedShape<0>& entries, std::size_t place) {
  BatchShape& dimensions = entries.leading;
  for (std::size_t d = dimensions.rank++; d > place; --d) {
    dimensions.sizes[d] = dimensions.sizes[d - 1];
    entries.leading_strides[d] = entries.leading_strides[d - 1];
  }
  dimensions.sizes[place] = 1;
  entries.leading_strides[place] = 0;
}

/// Gives a shape (B, *, ...) the strides of a tensor, in which a dimension of size 1 may stand for any size: all leading
/// ones, and the trailing ones that `repeat`. False if the shapes do not fit.
template <int Trailing>
bool broadcast(const StridedShape<0>& entries, const std::array<bool, static_cast<std::size_t>(Trailing)>& repeat,
               StridedShape<Trailing>& to) {
  const std::size_t leading = to.leading.rank;
  if (entries.leading.rank != leading + repeat.size()) return false;
  for (std::size_t d = 0; d < entries.leading.rank; ++d) {
    const bool trails = d >= leading;
    const Index given = entries.leading.sizes[d], wanted = trails ? to.shape[d - leading] : to.leading.sizes[d];
    if (given != wanted && !(given == 1 && (!trails || repeat[d - leading]))) return false;
    (trails ? to.strides[d - leading] : to.leading_strides[d]) = given == wanted ? entries.leading_strides[d] : 0;
  }
  return true;
}

/// The same, with the scalar. None has every shape.
template <class... Scalars, int Trailing>
bool broadcast(const OptionalView<0, Scalars...>& from,
               const std::array<bool, static_cast<std::size_t>(Trailing)>& repeat,
               OptionalView<Trailing, Scalars...>& to) {
  to.scalar = from.scalar;
  to.entries.data = from.entries.data;
  return !from.given() || broadcast(from.entries, repeat, to.entries);
}

/// Which row of `given` each row of `wanted` reads, rows being counted in row-major order of (B, *): a dimension of 1, or
/// one that is missing from the left, is for all. None if the shapes do not fit.
[[gnu::cold]] inline std::optional<std::vector<Index>> broadcast_rows(const BatchShape& given,
                                                                      const BatchShape& wanted) {
  StridedShape<0> from{given};
  Index stride = 1;
  for (std::size_t d = given.rank; d-- > 0; stride *= given.sizes[d]) from.leading_strides[d] = stride;
  while (from.leading.rank < wanted.rank) insert_dimension(from, 0);
  StridedShape<0> to{wanted};
  if (!broadcast(from, {}, to)) return std::nullopt;
  std::vector<Index> rows(static_cast<std::size_t>(wanted.count()));
  for (std::size_t n = 0; n < rows.size(); ++n) rows[n] = to.offset(static_cast<Index>(n));
  return rows;
}

}  // namespace detail
}  // namespace posbias
