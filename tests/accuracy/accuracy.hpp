// SPDX-License-Identifier: MIT
/// \file
/// The parts of ./run accuracy, and what they have in common: tables in Markdown, errors, numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <posbias/posbias.hpp>
#include <string>
#include <vector>

#include "reference/reference.hpp"
#include "support/numbers.hpp"

namespace posbias_accuracy {

using posbias::Index;
using posbias_test::reference::Real;

void print_angles();
void print_biases();
void print_attention();
void print_gradients();
void print_bits();

inline void print_row(const std::vector<std::string>& cells) {
  for (const std::string& cell : cells) std::printf("| %s ", cell.c_str());
  std::puts("|");
}

inline void print_header(const std::vector<std::string>& names) {
  print_row(names);
  print_row(std::vector<std::string>(names.size(), "---"));
}

/// Two digits: 3.1e-08.
inline std::string shown(Real error) {
  char text[32];
  std::snprintf(text, sizeof text, error == 0 ? "0" : "%.1e", static_cast<double>(error));
  return text;
}

template <class Scalar, int Rank>
using Tensor = Eigen::Tensor<Scalar, Rank, Eigen::RowMajor>;

/// Numbers in [-1, 1), exact in float.
template <class Scalar, int Rank>
Tensor<Scalar, Rank> numbers(const Eigen::array<Index, Rank>& sizes, std::uint64_t seed) {
  Tensor<Scalar, Rank> tensor(sizes);
  posbias_test::Numbers values(seed);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<Scalar>(values.value());
  return tensor;
}

/// The parameters of a module as the oracle takes them.
template <class Module>
posbias_test::reference::Weights weights_of(const Module& module) {
  posbias_test::reference::Weights weights;
  posbias::for_each_parameter(module, [&](std::string_view name, const auto& tensor) {
    weights[std::string(name)] = std::vector<Real>(tensor.data(), tensor.data() + tensor.size());
  });
  return weights;
}

/// The largest difference from what is true, and the largest value that is true.
struct Worst {
  Real error = 0, value = 0;

  void see(Real computed, Real reference_model) {
    error = std::max(error, std::abs(computed - reference_model));
    value = std::max(value, std::abs(reference_model));
  }
  [[nodiscard]] std::string absolute() const { return shown(error); }
  [[nodiscard]] std::string relative() const { return value == 0 ? "" : shown(error / value); }
};

}  // namespace posbias_accuracy
