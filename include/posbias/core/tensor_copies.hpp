// SPDX-License-Identifier: MIT
/// \file
/// Copies of tensors in the scalar that computes: of tensors that a call must not change, and of tensors that are stored
/// in 16 bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "posbias/core/storage.hpp"
#include "posbias/core/tensor.hpp"
#include "posbias/core/view.hpp"

namespace posbias::detail {

/// The rows of a tensor: its last dimension, all others numbered.
template <class Scalar, int Trailing>
TensorView<Scalar, 1> rows_of(const TensorView<Scalar, Trailing>& tensor) {
  if constexpr (Trailing == 1) {
    return tensor;
  } else {
    TensorView<Scalar, Trailing - 1> rows;
    rows.data = tensor.data;
    rows.leading = tensor.leading;
    rows.leading_strides = tensor.leading_strides;
    rows.leading_strides[rows.leading.rank] = tensor.strides[0];
    rows.leading.sizes[rows.leading.rank++] = tensor.shape[0];
    std::copy(tensor.shape.begin() + 1, tensor.shape.end(), rows.shape.begin());
    std::copy(tensor.strides.begin() + 1, tensor.strides.end(), rows.strides.begin());
    return rows_of(rows);
  }
}

/// Reads a tensor into memory, row-major.
template <class Scalar>
void load_all(const TensorView<const Scalar, 1>& rows, Scalar* to) {
  for (Index n = 0; n < rows.batches(); ++n)
    load<Scalar>(rows.batch(n), rows.strides[0], rows.shape[0], to + n * rows.shape[0]);
}

/// Writes a tensor from memory, row-major, each element rounded once.
template <class Scalar>
void store_all(const Scalar* from, const TensorView<Scalar, 1>& rows) {
  for (Index n = 0; n < rows.batches(); ++n)
    store<Scalar>(from + n * rows.shape[0], rows.shape[0], rows.batch(n), rows.strides[0]);
}

/// Row-major copies of tensors in the scalar that computes, valid as long as this object. A tensor that is given twice has
/// one copy.
template <class Scalar>
class CopyTable {
 public:
  struct Copy {
    TensorView<const Scalar, 1> rows;
    std::vector<Scalar> values;
    std::optional<TensorView<Scalar, 1>> write_to{};
  };

  Copy& copy_of(const TensorView<const Scalar, 1>& rows) {
    for (Copy& copy : copies_)
      if (same_tensor(copy.rows, rows)) return copy;
    const auto count = static_cast<std::size_t>(rows.whole_shape().count());
    Copy& copy = copies_.emplace_back(Copy{rows, std::vector<Scalar>(count)});
    load_all<Scalar>(rows, copy.values.data());
    return copy;
  }

  /// Rounds the copies of tensors that may be written to, to where they came from.
  void write_back() const {
    for (const Copy& copy : copies_)
      if (copy.write_to) store_all<Scalar>(copy.values.data(), *copy.write_to);
  }

 private:
  std::list<Copy> copies_;
};

/// Values in row-major order, as a tensor of this one's shape.
template <class Scalar, TensorLike T>
auto row_major_map(const T& tensor, Scalar* values) {
  return Eigen::TensorMap<Eigen::Tensor<Scalar, Traits<T>::rank, Eigen::RowMajor>>(values, shape_of(tensor));
}

/// Copies of tensors, to write to: changes to one show in the other, if they are of one tensor.
class TensorCopies {
 public:
  /// A row-major map of the tensor's copy, valid as long as this object.
  template <TensorLike T>
  auto operator()(const T& tensor) {
    const auto rows = view<1>(tensor);
    using Scalar = std::remove_const_t<typename decltype(rows)::Scalar>;
    return row_major_map(tensor, std::get<CopyTable<Scalar>>(tables_).copy_of(rows).values.data());
  }

 private:
  std::tuple<CopyTable<float>, CopyTable<double>> tables_;
};

/// Views to compute with in `Scalar`: the tensors themselves, or copies of those that are stored otherwise.
template <class Scalar>
class NativeCopies {
 public:
  /// The tensor, or its copy, valid as long as this object.
  template <class S, int Trailing>
  TensorView<S, Trailing> operator()(TensorView<S, Trailing> tensor) {
    if (tensor.native()) return tensor;
    auto& copy = table_.copy_of(rows_of(TensorView<const Scalar, Trailing>(tensor)));
    if constexpr (!std::is_const_v<S>) copy.write_to = rows_of(tensor);
    tensor.data = Elements<S>(copy.values.data());
    Index stride = 1;
    for (std::size_t d = tensor.shape.size(); d-- > 0; stride *= tensor.shape[d]) tensor.strides[d] = stride;
    for (std::size_t d = tensor.leading.rank; d-- > 0; stride *= tensor.leading.sizes[d])
      tensor.leading_strides[d] = stride;
    return tensor;
  }
  template <class S, int Trailing>
  std::optional<TensorView<S, Trailing>> operator()(const std::optional<TensorView<S, Trailing>>& tensor) {
    if (!tensor) return tensor;
    return (*this)(*tensor);
  }

  /// Rounds the copies of tensors that may be written to, to where they came from.
  void write_back() const { table_.write_back(); }

 private:
  CopyTable<Scalar> table_;
};

/// A tensor of 16 bits as a map of its copy in float; any other, and one that is only read, as it is.
template <TensorLike T>
decltype(auto) widened(T& tensor, NativeCopies<float>& copies) {
  if constexpr (Storage16<std::remove_pointer_t<decltype(first_element(tensor))>>)
    return row_major_map(tensor, copies(view<1>(tensor)).data.data());
  else
    return (tensor);
}

/// Calls `use(tensors...)`, which may write to each many times: those of 16 bits are copies in float, rounded once in the
/// end. A tensor that is given twice has one copy.
template <class Use, TensorLike... T>
void rounded_once(const Use& use, T&... tensors) {
  if constexpr ((Storage16<ScalarOf<T>> || ...)) {
    NativeCopies<float> copies;
    use(widened(tensors, copies)...);
    copies.write_back();
  } else {
    use(tensors...);
  }
}

}  // namespace posbias::detail
