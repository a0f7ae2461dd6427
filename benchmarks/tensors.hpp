// SPDX-License-Identifier: MIT
/// \file
/// Tensors to work on, and the least that can be done with them: a memset of new ones, an in-place scale.
#pragma once

#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <posbias/core/positions.hpp>
#include <string>
#include <unsupported/Eigen/CXX11/Tensor>
#include <vector>

#include "compare.hpp"

namespace posbias_benchmarks {

using posbias::Executor;
using posbias::Index;

/// "12x256x256".
template <class... Sizes>
std::string shape_text(Index first, Sizes... sizes) {
  return (std::to_string(first) + ... + ("x" + std::to_string(sizes)));
}

/// A tensor that pieces of work share, with numbers from [-1, 1) that follow no pattern.
template <int Layout = Eigen::RowMajor, class... Sizes>
auto shared_tensor(Sizes... sizes) {
  auto tensor = std::make_shared<Eigen::Tensor<float, sizeof...(Sizes), Layout>>(static_cast<Index>(sizes)...);
  for (Index i = 0; i < tensor->size(); ++i) {
    auto bits = static_cast<std::uint32_t>(i);
    for (int mix = 0; mix < 2; ++mix) bits = (bits ^ (bits >> 16)) * 0x45d9f3bU;
    tensor->data()[i] = static_cast<float>(bits >> 8) * 0x1p-23F - 1;
  }
  return tensor;
}

/// Calls `visit(begin, size)` for parts of [0, size) on the executor's threads, or for all of it at once.
template <class Visit>
void in_parts(const Executor& executor, Index size, const Visit& visit) {
  const Index parts = executor.serial() ? 1 : 8;
  executor.parallel_for(parts, [&](Index i) { visit(size * i / parts, size * (i + 1) / parts - size * i / parts); });
}

/// A memset of a tensor that is newly allocated.
template <class... Sizes>
Task memset_of_new(Sizes... sizes) {
  return [=](const Executor& executor) {
    Eigen::Tensor<float, sizeof...(Sizes), Eigen::RowMajor> tensor(sizes...);
    in_parts(executor, tensor.size(), [&](Index begin, Index size) {
      std::memset(tensor.data() + begin, 0, static_cast<std::size_t>(size) * sizeof(float));
    });
    benchmark::DoNotOptimize(tensor);
  };
}

/// Reads and writes every value of tensors once.
template <class... Tensors>
Task in_place_scale(const std::shared_ptr<Tensors>&... tensors) {
  return [=](const Executor& executor) {
    float factor = 1;
    benchmark::DoNotOptimize(factor);
    const auto scale = [&](auto& tensor) {
      in_parts(executor, tensor.size(),
               [&](Index begin, Index size) { Eigen::Map<Eigen::ArrayXf>(tensor.data() + begin, size) *= factor; });
    };
    (scale(*tensors), ...);
  };
}

/// Sequences of 100 tokens packed in a row, each counted from 0.
inline posbias::Positions packed(Index length) {
  Eigen::Tensor<std::int64_t, 1> ids(length);
  for (Index i = 0; i < length; ++i) ids(i) = i % 100;
  return ids;
}

}  // namespace posbias_benchmarks
