// SPDX-License-Identifier: MIT
#include "support/golden.hpp"

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <posbias/io/safetensors.hpp>

namespace posbias_test {

std::vector<std::string> golden_names(std::string_view prefix) {
  std::vector<std::string> names;
  for (const auto& file : std::filesystem::directory_iterator(POSBIAS_GOLDEN_DIR)) {
    const std::string name = file.path().stem().string();
    if (name.starts_with(prefix)) names.push_back(name);
  }
  std::ranges::sort(names);
  return names;
}

void check_close(const std::vector<double>& actual, const std::vector<double>& expected, double relative,
                 double absolute) {
  constexpr double blocked = -1e37;
  REQUIRE(actual.size() == expected.size());
  double largest = 0;
  for (double value : expected)
    if (value > blocked) largest = std::max(largest, std::abs(value));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double allowed = absolute + relative * std::max(std::abs(expected[i]), largest / 100);
    const bool right = expected[i] <= blocked ? actual[i] == -std::numeric_limits<double>::infinity()
                                              : std::abs(actual[i] - expected[i]) <= allowed;
    if (right) continue;
    if (++wrong <= 5) UNSCOPED_INFO("value " << i << ": " << actual[i] << ", expected " << expected[i]);
  }
  CHECK(wrong == 0);
}

namespace {

template <class Scalar, int Rank>
Eigen::Tensor<Scalar, Rank, Eigen::RowMajor> shaped(const std::vector<Index>& shape,
                                                    const std::vector<double>& values) {
  std::array<Index, static_cast<std::size_t>(Rank)> sizes;
  std::ranges::copy(shape, sizes.begin());
  Eigen::Tensor<Scalar, Rank, Eigen::RowMajor> result(sizes);
  for (std::size_t i = 0; i < values.size(); ++i) result.data()[i] = static_cast<Scalar>(values[i]);
  return result;
}

/// Calls `make.template operator()<Rank>()` for the rank of a list of positions or flags.
template <class Make>
auto with_rank(std::size_t rank, const Make& make) {
  switch (rank) {
    case 1:
      return make.template operator()<1>();
    case 2:
      return make.template operator()<2>();
    case 3:
      return make.template operator()<3>();
    default:
      throw std::logic_error("no such positions were recorded");
  }
}

/// The values of a tensor of any rank up to 5, as double.
template <class Scalar>
std::vector<double> read(const posbias::io::SafeTensors& file, std::string_view name) {
  switch (file.shape(name).size()) {
    case 0:
      return flat(file.tensor<Scalar, 0>(name));
    case 1:
      return flat(file.tensor<Scalar, 1>(name));
    case 2:
      return flat(file.tensor<Scalar, 2>(name));
    case 3:
      return flat(file.tensor<Scalar, 3>(name));
    case 4:
      return flat(file.tensor<Scalar, 4>(name));
    default:
      return flat(file.tensor<Scalar, 5>(name));
  }
}

}  // namespace

GoldenCase::GoldenCase(const std::string& name) {
  const auto file = posbias::io::SafeTensors::read(std::string(POSBIAS_GOLDEN_DIR) + "/" + name + ".safetensors");
  for (const auto& entry : file.entries()) {
    shapes_[entry.name] = entry.shape;
    integers_[entry.name] = entry.dtype == "I64";
    values_[entry.name] = entry.dtype == "I64"    ? read<std::int64_t>(file, entry.name)
                          : entry.dtype == "BOOL" ? read<bool>(file, entry.name)
                                                  : read<double>(file, entry.name);
  }
  for (const std::string of : {"config", "call"}) {
    const auto found = file.metadata().find(of);
    if (found == file.metadata().end()) continue;
    const auto arguments = nlohmann::json::parse(found->second);
    for (const auto& [key, value] : arguments.items()) {
      if (value.is_number()) arguments_[of + "." + key] = value.get<double>();
      if (value.is_boolean()) arguments_[of + "." + key] = value.get<bool>() ? 1 : 0;
      if (value.is_array() && !value.empty() && value.front().is_string()) words_[of + "." + key] = value;
    }
  }
  const auto freqs = file.metadata().find("freqs");
  float32_tables_ = freqs != file.metadata().end() && freqs->second == "f32";
}

double GoldenCase::argument(const std::string& of, const std::string& key, double fallback) const {
  const auto found = arguments_.find(of + "." + key);
  return found == arguments_.end() ? fallback : found->second;
}

std::vector<std::string> GoldenCase::words(const std::string& key) const {
  const auto found = words_.find("config." + key);
  return found == words_.end() ? std::vector<std::string>() : found->second;
}

posbias::Positions GoldenCase::positions(const std::string& tensor) const {
  if (!has(tensor)) return {};
  return with_rank(rank(tensor), [&]<int Rank>() -> posbias::Positions {
    if (integers_.at(tensor)) return shaped<std::int64_t, Rank>(shape(tensor), values(tensor));
    return shaped<double, Rank>(shape(tensor), values(tensor));
  });
}

posbias::TokenMask GoldenCase::flags(const std::string& tensor) const {
  if (!has(tensor)) return {};
  return with_rank(rank(tensor),
                   [&]<int Rank>() -> posbias::TokenMask { return shaped<bool, Rank>(shape(tensor), values(tensor)); });
}

}  // namespace posbias_test
