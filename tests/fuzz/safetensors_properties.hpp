// SPDX-License-Identifier: MIT
/// \file
/// What holds for any bytes that are taken for a safetensors file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz/require.hpp"
#include "posbias/embedding/learned_continuous.hpp"
#include "posbias/io/safetensors.hpp"

namespace posbias_fuzz {

using posbias::Index;
using posbias::io::SafeTensors;
using posbias::io::SafeTensorsEntry;
using posbias::io::SafeTensorsWriter;

inline std::optional<SafeTensors> parsed(std::vector<std::byte> bytes) {
  try {
    return SafeTensors::parse(std::move(bytes));
  } catch (const posbias::FormatError&) {
    return std::nullopt;
  }
}

/// A tensor of the file, where it has this rank and its values convert.
template <class Scalar, int Rank, int Layout>
auto tensor(const SafeTensors& file, std::string_view name) {
  std::optional<Eigen::Tensor<Scalar, Rank, Layout>> result;
  try {
    result = file.tensor<Scalar, Rank, Layout>(name);
  } catch (const posbias::FormatError&) {
  }
  return result;
}

/// The same file on disk: mapped, or if its size is odd, read as it is asked for.
inline std::optional<SafeTensors> opened(const std::vector<std::byte>& bytes) {
  namespace fs = std::filesystem;
  static const fs::path path = fs::temp_directory_path() / ("posbias-fuzz-" + std::to_string(std::random_device{}()));
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  std::optional<SafeTensors> file;
  try {
    file = bytes.size() % 2 == 0 ? SafeTensors::open(path) : SafeTensors(posbias::io::detail::FileBytes::stream(path));
  } catch (const posbias::FormatError&) {
  }
  fs::remove(path);
  return file;
}

/// A view shows the values of the tensor, or there is none.
template <class Scalar>
void check_view(const SafeTensors& file, const std::string& name) {
  try {
    const auto view = file.view<Scalar, 1>(name);
    const auto copy = file.tensor<Scalar, 1>(name);
    require(view.size() == copy.size() &&
                (copy.size() == 0 ||
                 std::memcmp(view.data(), copy.data(), static_cast<std::size_t>(copy.size()) * sizeof(Scalar)) == 0),
            "a view of other values: " + name);
  } catch (const posbias::FormatError&) {
  }
}

/// Any bytes as the index of a sharded checkpoint: no name of a shard leads out of the folder.
inline void check_index(std::string_view text) {
  try {
    for (const auto& [name, shard] : posbias::io::detail::parse_index(text)) {
      const std::filesystem::path path(shard);
      require(path.is_relative() && path.filename() == path && shard != "." && shard != "..", "a shard at " + shard);
    }
  } catch (const posbias::FormatError&) {
  }
}

/// Adds a tensor to what is written, where it has this rank and its values convert.
template <class Scalar, int Rank, int Layout>
bool copied(const SafeTensors& file, const SafeTensorsEntry& entry, SafeTensorsWriter& writer) {
  const auto values = tensor<Scalar, Rank, Layout>(file, entry.name);
  if (values) writer.add(entry.name, *values);
  return values.has_value();
}

/// Copies all tensors of which a C++ scalar holds every value; those of rank 3 through a column-major one.
inline std::vector<std::byte> rewritten(const SafeTensors& file) {
  SafeTensorsWriter writer;
  for (const auto& [key, value] : file.metadata()) writer.add_metadata(key, value);
  for (const SafeTensorsEntry& entry : file.entries()) {
    const auto copy_as = [&]<class Scalar>(Scalar) {
      return copied<Scalar, 0, Eigen::RowMajor>(file, entry, writer) ||
             copied<Scalar, 1, Eigen::RowMajor>(file, entry, writer) ||
             copied<Scalar, 2, Eigen::RowMajor>(file, entry, writer) ||
             copied<Scalar, 3, Eigen::ColMajor>(file, entry, writer);
    };
    if (entry.dtype == "F64")
      copy_as(double{});
    else if (entry.dtype == "F16")
      copy_as(Eigen::half{});
    else if (entry.dtype == "BF16")
      copy_as(Eigen::bfloat16{});
    else if (!copy_as(float{}) && !copy_as(bool{}) && !copy_as(std::int32_t{}))
      copy_as(std::int64_t{});
  }
  return writer.bytes();
}

using Weights = std::map<std::string, std::vector<double>>;

template <class Owner>
Weights weights_of(const Owner& owner) {
  Weights weights;
  posbias::for_each_parameter(owner, [&](std::string_view name, const auto& tensor) {
    weights[std::string(name)].assign(tensor.data(), tensor.data() + tensor.size());
  });
  return weights;
}

inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

/// The module that files are loaded into: parameters of ranks 0, 1 and 2.
inline posbias::LearnedContinuous<double> small_module() {
  return posbias::LearnedContinuous<double>({.dim = 2, .depth = 2, .learned_div = true});
}

/// Loads all parameters or throws FormatError and writes none.
inline void check_loading(const SafeTensors& file) {
  auto module = small_module();
  const Weights before = weights_of(module);
  bool loaded = true;
  try {
    posbias::io::load_parameters(module, file);
  } catch (const posbias::FormatError&) {
    loaded = false;
  }
  for (const auto& [name, values] : weights_of(module)) {
    if (!loaded) {
      require(same_bits(values, before.at(name)), "load_parameters wrote " + name + " and then threw");
    } else {
      std::vector<double> stored;
      const auto take = [&](const auto& from) {
        if (from) stored.assign(from->data(), from->data() + from->size());
      };
      take(tensor<double, 0, Eigen::RowMajor>(file, name));
      take(tensor<double, 1, Eigen::RowMajor>(file, name));
      take(tensor<double, 2, Eigen::RowMajor>(file, name));
      require(same_bits(values, stored), "load_parameters made something else of " + name);
    }
  }
}

/// Reads well, or throws FormatError and nothing else. What reads well loads or does not, and is the same after it was
/// written and read again.
inline std::optional<SafeTensors> check_file(const std::vector<std::byte>& bytes) {
  std::optional<SafeTensors> file = parsed(bytes);
  const std::optional<SafeTensors> on_disk = opened(bytes);
  require(on_disk.has_value() == file.has_value(), "memory and disk disagree");
  if (!file) return file;
  for (const SafeTensorsEntry& entry : file->entries()) {
    require(file->contains(entry.name) && entry.end <= bytes.size(), "an entry that is not in the file");
    check_view<float>(*file, entry.name);
    check_view<Eigen::half>(*file, entry.name);
    check_view<bool>(*file, entry.name);
    check_view<std::int64_t>(*file, entry.name);
  }
  check_loading(*file);

  const std::vector<std::byte> once = rewritten(*file);
  require(rewritten(*on_disk) == once, "other values on disk");
  const std::optional<SafeTensors> again = parsed(once);
  require(again.has_value(), "what was written does not read");
  require(again->metadata() == file->metadata(), "metadata changed");
  require(rewritten(*again) == once, "what was read and written again differs");
  for (const SafeTensorsEntry& entry : again->entries()) {
    const SafeTensorsEntry& from = file->entry(entry.name);
    require(entry.shape == from.shape, "a shape changed");
    if (entry.dtype != from.dtype) continue;
    const auto values = [](const std::vector<std::byte>& all, const SafeTensorsEntry& of) {
      const std::size_t header = 8 + static_cast<std::size_t>(posbias::io::detail::load<std::uint64_t>(all.data()));
      const auto first = all.begin() + static_cast<std::ptrdiff_t>(header + of.begin);
      return std::vector<std::byte>(first, first + static_cast<std::ptrdiff_t>(of.end - of.begin));
    };
    require(values(bytes, from) == values(once, entry), "values changed");
  }
  return file;
}

}  // namespace posbias_fuzz
