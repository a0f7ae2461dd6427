// SPDX-License-Identifier: MIT
/// \file
/// What two translation units of one program both do with posbias and with what it has to opt into.
#pragma once

#include <algorithm>
#include <posbias/posbias.hpp>
// After Eigen's tensors, which is the harder order.
#include <posbias/io/safetensors.hpp>
#include <posbias/parallel/thread_pool.hpp>

/// Writes a module's parameters, reads them into another, and compares what the two do, one of them on two threads.
inline bool units_work() {
  const posbias::RelativePositionBias<float> module({.n_heads = 3}, /*seed=*/1);
  posbias::RelativePositionBias<float> other({.n_heads = 3}, /*seed=*/2);
  posbias::io::SafeTensorsWriter writer;
  posbias::io::save_parameters(writer, module);
  posbias::io::load_parameters(other, posbias::io::SafeTensors::parse(writer.bytes()));

  const posbias::ThreadPool pool(2);
  const auto one = module.bias(50, 70), two = other.bias(50, 70, {.executor = pool});
  return std::equal(one.data(), one.data() + one.size(), two.data(), two.data() + two.size());
}
