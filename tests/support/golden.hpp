// SPDX-License-Identifier: MIT
/// \file
/// Recorded runs of the Python packages: reading a case, running a module on it, comparing.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <posbias/posbias.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"

namespace posbias_test {

using posbias::Index;

/// Names of the cases that begin with `prefix`, sorted.
std::vector<std::string> golden_names(std::string_view prefix);

/// A tensor in memory of its own that no allocator would align, seen through a map.
template <class Scalar, int Rank>
class MappedTensor {
 public:
  using Map = Eigen::TensorMap<Eigen::Tensor<Scalar, Rank, Eigen::RowMajor>>;
  explicit MappedTensor(const Eigen::Tensor<Scalar, Rank, Eigen::RowMajor>& from)
      : values_(static_cast<std::size_t>(from.size()) + 1), map_(values_.data() + 1, from.dimensions()) {
    std::copy_n(from.data(), from.size(), map_.data());
  }
  MappedTensor(const MappedTensor&) = delete;
  Map& tensor() { return map_; }

 private:
  std::vector<Scalar> values_;
  Map map_;
};

/// Owns its values, in either layout.
template <class Scalar, int Rank, int Layout>
class OwnedTensor {
 public:
  explicit OwnedTensor(Eigen::Tensor<Scalar, Rank, Layout> from) : tensor_(std::move(from)) {}
  auto& tensor() { return tensor_; }

 private:
  Eigen::Tensor<Scalar, Rank, Layout> tensor_;
};

struct RowMajorCase {
  static constexpr int layout = Eigen::RowMajor;
  template <class S, int Rank>
  using Holder = OwnedTensor<S, Rank, layout>;
};
struct ColMajorCase {
  static constexpr int layout = Eigen::ColMajor;
  template <class S, int Rank>
  using Holder = OwnedTensor<S, Rank, layout>;
};
struct MappedCase {
  static constexpr int layout = Eigen::RowMajor;
  template <class S, int Rank>
  using Holder = MappedTensor<S, Rank>;
};

/// Visits the values of any tensor in row-major order.
template <class Tensor, class Visit>
void for_each_index(Tensor& tensor, Visit visit) {
  constexpr int rank = posbias::detail::Traits<Tensor>::rank;
  if constexpr (rank == 0) {
    visit(tensor.data()[0]);  // Eigen cannot index it by an array
  } else {
    std::array<Index, static_cast<std::size_t>(rank)> at{};
    for (Index i = 0; i < tensor.size(); ++i) {
      visit(tensor(at));
      for (std::size_t d = at.size(); d-- > 0;) {
        if (++at[d] < tensor.dimensions()[d]) break;
        at[d] = 0;
      }
    }
  }
}

/// The values of any tensor in row-major order, as double.
template <class Tensor>
std::vector<double> flat(const Tensor& tensor) {
  std::vector<double> values;
  for_each_index(tensor, [&](auto value) { values.push_back(static_cast<double>(value)); });
  return values;
}

/// Tolerances: relative to each value, with a floor relative to the largest for what cancels.
template <class Scalar>
constexpr double golden_tolerance = std::is_same_v<Scalar, double> ? 1e-12 : 1e-5;

/// Fails unless each value is within `relative` of the expected one, or of a hundredth of the largest for what
/// cancels, plus `absolute`. Expected values of -1e37 and below count as blocked, which is -inf here.
void check_close(const std::vector<double>& actual, const std::vector<double>& expected, double relative,
                 double absolute = 0);

/// The largest absolute value.
inline double largest(const std::vector<double>& values) {
  double result = 0;
  for (double value : values) result = std::max(result, std::abs(value));
  return result;
}

/// One recorded run. Values come as double, which holds all of them exactly.
class GoldenCase {
 public:
  explicit GoldenCase(const std::string& name);

  [[nodiscard]] bool has(const std::string& tensor) const { return shapes_.contains(tensor); }
  [[nodiscard]] const std::vector<Index>& shape(const std::string& tensor) const { return shapes_.at(tensor); }
  [[nodiscard]] std::size_t rank(const std::string& tensor) const { return shape(tensor).size(); }
  [[nodiscard]] const std::vector<double>& values(const std::string& tensor) const { return values_.at(tensor); }

  /// A number or flag (1 or 0) among the constructor's arguments, "config", or the call's, "call".
  [[nodiscard]] double config(const std::string& key, double fallback) const {
    return argument("config", key, fallback);
  }
  [[nodiscard]] double call(const std::string& key, double fallback) const { return argument("call", key, fallback); }
  [[nodiscard]] Index size(const std::string& key, Index fallback = 0) const {
    return static_cast<Index>(config(key, static_cast<double>(fallback)));
  }

  /// A list of words among the constructor's arguments.
  [[nodiscard]] std::vector<std::string> words(const std::string& key) const;

  /// Frequency or slope tables were rounded to float32 upstream.
  [[nodiscard]] bool float32_tables() const { return float32_tables_; }

  /// A tensor as recorded; F64 is rounded where Scalar is float.
  template <class Scalar, int Rank, int Layout = Eigen::RowMajor>
  [[nodiscard]] auto tensor(const std::string& name) const {
    REQUIRE(rank(name) == static_cast<std::size_t>(Rank));
    std::array<Index, static_cast<std::size_t>(Rank)> sizes;
    std::ranges::copy(shape(name), sizes.begin());
    Eigen::Tensor<Scalar, Rank, Layout> result(sizes);
    for_each_index(result,
                   [&, i = std::size_t{0}](auto& value) mutable { value = static_cast<Scalar>(values(name)[i++]); });
    return result;
  }

  template <class Scalar, int Rank, class LayoutCase>
  [[nodiscard]] auto input(const std::string& name) const {
    return typename LayoutCase::template Holder<Scalar, Rank>(tensor<Scalar, Rank, LayoutCase::layout>(name));
  }

  /// What a run in Scalar must give: the float64 run, or the float32 one where it was recorded.
  template <class Scalar>
  [[nodiscard]] const std::vector<double>& expected(const std::string& name) const {
    const std::string as_float = "f32." + name;
    return values(std::is_same_v<Scalar, float> && has(as_float) ? as_float : name);
  }

  /// Not given if there is no such tensor.
  [[nodiscard]] posbias::Positions positions(const std::string& tensor) const;
  [[nodiscard]] posbias::TokenMask flags(const std::string& tensor) const;
  [[nodiscard]] posbias::PairPositions pair_positions() const {
    return {.q_k = positions("in.pos_q_k"), .q = positions("in.pos_q"), .k = positions("in.pos_k")};
  }

  /// Gives a module the recorded parameters; every one must have been recorded, or been a constant there.
  template <class Module>
  void load_parameters(Module& module) const {
    posbias::for_each_parameter(module, [&](std::string_view parameter, auto& tensor) {
      const bool constant = has("buffer." + std::string(parameter));
      const auto& recorded = values((constant ? "buffer." : "param.") + std::string(parameter));
      REQUIRE(recorded.size() == static_cast<std::size_t>(tensor.size()));
      for (std::size_t i = 0; i < recorded.size(); ++i)
        tensor.data()[i] = static_cast<typename std::remove_cvref_t<decltype(tensor)>::Scalar>(recorded[i]);
    });
  }

  /// The gradients were recorded in float64; a float run is held to float's tolerance, and may be off by `of_largest` times
  /// a gradient's largest value beside.
  template <class Scalar, class Gradients>
  void check_gradients(const Gradients& grads, double of_largest = 0) const {
    posbias::for_each_parameter(grads, [&](std::string_view parameter, const auto& gradient) {
      INFO("gradient of " << parameter);
      const std::string key = "grad_param." + std::string(parameter);
      if (has("buffer." + std::string(parameter))) {
        CHECK(flat(gradient) == std::vector<double>(static_cast<std::size_t>(gradient.size())));
        return;
      }
      REQUIRE(has(key));
      check_close(flat(gradient), values(key), golden_tolerance<Scalar>, of_largest * largest(values(key)));
    });
  }

 private:
  [[nodiscard]] double argument(const std::string& of, const std::string& key, double fallback) const;

  std::map<std::string, std::vector<Index>> shapes_;
  std::map<std::string, std::vector<double>> values_;
  std::map<std::string, bool> integers_;
  std::map<std::string, double> arguments_;
  std::map<std::string, std::vector<std::string>> words_;
  bool float32_tables_ = false;
};

/// Calls `body.template operator()<Form>()` for tensors and maps of both layouts.
template <class Body>
void for_each_layout_case(const Body& body) {
  SECTION("row-major") {
    body.template operator()<RowMajorCase>();
  }
  SECTION("column-major") {
    body.template operator()<ColMajorCase>();
  }
  SECTION("map") {
    body.template operator()<MappedCase>();
  }
}

/// The largest explicit position of a case, divided.
inline double largest_position(const GoldenCase& golden) {
  double largest = 0;
  for (const char* name : {"in.pos", "in.pos_q_k", "in.pos_q", "in.pos_k"})
    if (golden.has(name))
      for (double value : golden.values(name)) largest = std::max(largest, std::abs(value));
  return largest / golden.config("divide", 1);
}

/// What a sine or cosine may be off by beside the tolerance: the rounding of the angle, 4·2^-52·|angle|, or, where
/// upstream's frequencies were rounded to float32, that rounding.
inline double angle_rounding(const GoldenCase& golden) {
  return (golden.float32_tables() ? 0x1p-24 : 4 * 0x1p-52) * largest_position(golden);
}

/// Recorded results that depend on angles. Beyond ordinary positions upstream's float32 angles are wrong, so there
/// a float run is held to the float64 record.
template <class Scalar>
std::vector<double> expected_of_angles(const GoldenCase& golden, const std::string& tensor) {
  return largest_position(golden) > 128 ? golden.values(tensor) : golden.expected<Scalar>(tensor);
}

/// mod_x and its adjoint on one case.
template <class Scalar, int Rank, class Module>
void check_mod_x(const GoldenCase& golden, Module module) {
  constexpr double tolerance = golden_tolerance<Scalar>;
  golden.load_parameters(module);
  const posbias::TokenPositions at{.pos = golden.positions("in.pos"), .mask = golden.flags("in.mask")};
  for_each_layout_case([&]<class LayoutCase>() {
    auto x = golden.input<Scalar, Rank, LayoutCase>("in.x");
    module.mod_x(x.tensor(), at);
    check_close(flat(x.tensor()), expected_of_angles<Scalar>(golden, "out.x"), tolerance, angle_rounding(golden));
    if (!golden.has("grad_out.x")) return;
    auto grad_x = golden.input<Scalar, Rank, LayoutCase>("grad_out.x");
    auto grads = module.zero_gradients();
    module.mod_x_backward(grad_x.tensor(), at, grads);
    check_close(flat(grad_x.tensor()), golden.values("grad_in.x"), tolerance);
    golden.check_gradients<Scalar>(grads);
  });
}

}  // namespace posbias_test
