// SPDX-License-Identifier: MIT
/// \file
/// Copies of tensors that a call must not change.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>
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
    std::vector<std::byte>& bytes = copies_[{tensor.data(), size}];
    bytes.resize(size);
    auto* values = reinterpret_cast<Scalar*>(bytes.data());
    std::copy_n(tensor.data(), tensor.size(), values);
    return Eigen::TensorMap<Eigen::Tensor<Scalar, Traits<T>::rank, Traits<T>::layout>>(values, shape_of(tensor));
  }

 private:
  std::map<std::pair<const void*, std::size_t>, std::vector<std::byte>> copies_;  // by memory: address and bytes
};

}  // namespace posbias::detail
