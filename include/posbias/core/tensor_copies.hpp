// SPDX-License-Identifier: MIT
/// \file
/// Copies of tensors that a call must not change.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "posbias/core/tensor_view.hpp"

namespace posbias::detail {

/// Copies of tensors, to write to. Tensors that are one memory have one copy: what is done to one shows in the other.
class TensorCopies {
 public:
  /// A map of the tensor's copy, in its layout; valid as long as this object.
  template <TensorLike T>
  auto operator()(const T& tensor) {
    using Scalar = typename Traits<T>::Scalar;
    const std::size_t size = static_cast<std::size_t>(tensor.size()) * sizeof(Scalar);
    auto* values = static_cast<Scalar*>(memory_for(tensor.data(), size));
    std::copy_n(tensor.data(), tensor.size(), values);
    return Eigen::TensorMap<Eigen::Tensor<Scalar, Traits<T>::rank, Traits<T>::layout>>(values, shape_of(tensor));
  }

 private:
  struct Copy {
    const void* of;
    std::vector<std::byte> bytes;
  };

  /// Where the copy of some bytes is, or will be.
  void* memory_for(const void* address, std::size_t size) {
    for (Copy& copy : copies_)
      if (copy.of == address && copy.bytes.size() == size) return copy.bytes.data();
    copies_.push_back({address, std::vector<std::byte>(size)});
    return copies_.back().bytes.data();
  }

  std::vector<Copy> copies_;
};

}  // namespace posbias::detail
