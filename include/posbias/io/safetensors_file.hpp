// SPDX-License-Identifier: MIT
/// \file
/// Reads safetensors files.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/io/safetensors_header.hpp"

namespace posbias::io {

/// A parsed file: owns the bytes, converts tensors on request.
class SafeTensors {
 public:
  /// Takes a whole file's bytes.
  static SafeTensors parse(std::vector<std::byte> file) {
    using detail::fail;
    constexpr std::size_t prefix = sizeof(std::uint64_t);
    if (file.size() < prefix)
      fail<FormatError>("SafeTensors: expected 8 bytes for the header's length; the file has ", file.size());
    const auto length = detail::load<std::uint64_t>(file.data());
    if (length > file.size() - prefix)
      fail<FormatError>("SafeTensors: the header has ", length, " bytes; the file has ", file.size() - prefix,
                        " after its length");
    SafeTensors result;
    result.data_ = prefix + static_cast<std::size_t>(length);
    const std::string_view text(reinterpret_cast<const char*>(file.data()) + prefix, result.data_ - prefix);
    auto header = detail::parse_header(text, file.size() - result.data_);
    result.entries_ = std::move(header.entries);
    result.metadata_ = std::move(header.metadata);
    for (std::size_t i = 0; i < result.entries_.size(); ++i) result.by_name_[result.entries_[i].name] = i;
    result.file_ = std::move(file);
    return result;
  }

  /// Reads a whole file from disk.
  static SafeTensors read(const std::filesystem::path& path) {
    std::error_code error;
    const std::uintmax_t size = std::filesystem::file_size(path, error);
    std::ifstream stream(path, std::ios::binary);
    if (error || !stream) detail::fail<FormatError>("SafeTensors::read: cannot open ", path.string());
    std::vector<std::byte> file(size);
    if (!stream.read(reinterpret_cast<char*>(file.data()), static_cast<std::streamsize>(size)))
      detail::fail<FormatError>("SafeTensors::read: cannot read ", size, " bytes of ", path.string());
    try {
      return parse(std::move(file));
    } catch (const FormatError& reason) {
      detail::fail<FormatError>(reason.what(), " (", path.string(), ")");
    }
  }

  /// All tensors, in order of offset.
  [[nodiscard]] const std::vector<SafeTensorsEntry>& entries() const { return entries_; }
  /// The texts that are kept beside the tensors.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Whether a tensor has this name.
  [[nodiscard]] bool contains(std::string_view name) const { return by_name_.find(name) != by_name_.end(); }
  /// The shape of a tensor. Throws FormatError if there is none of this name; so do the next.
  [[nodiscard]] const std::vector<Index>& shape(std::string_view name) const { return entry(name).shape; }
  /// What its values are stored as: "F32", "BF16", "I64", "BOOL", ...
  [[nodiscard]] std::string_view dtype(std::string_view name) const { return entry(name).dtype; }

  /// Where and what a tensor is.
  [[nodiscard]] const SafeTensorsEntry& entry(std::string_view name) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) detail::fail<FormatError>("SafeTensors: no tensor is named ", detail::shown(name));
    return entries_[found->second];
  }

  /// The values of a tensor. F16, BF16, F32 and F64 come as float or double, rounded once; integers of any
  /// size as 32- or 64-bit ones, if all of them fit; BOOL as bool. There is no other conversion.
  template <detail::StorableScalar Scalar, int Rank, int Layout = Eigen::RowMajor>
  [[nodiscard]] Eigen::Tensor<Scalar, Rank, Layout> tensor(std::string_view name) const {
    const std::vector<Index>& from = shape(name);
    if (from.size() != static_cast<std::size_t>(Rank))
      detail::fail<FormatError>("SafeTensors::tensor: ", detail::shown(name), " has shape ", std::span(from),
                                "; expected rank ", Rank);
    std::array<Index, static_cast<std::size_t>(Rank)> sizes;
    std::ranges::copy(from, sizes.begin());
    Eigen::Tensor<Scalar, Rank, Layout> result(sizes);
    copy_to(name, result);
    return result;
  }

  /// Throws unless `copy_to` would succeed: the shape is the same and every value converts.
  template <detail::StorableTensor Tensor>
  void check_fits(std::string_view name, const Tensor& tensor) const {
    const std::vector<Index> wanted = detail::shape_of(tensor);
    if (shape(name) != wanted)
      detail::fail<FormatError>("SafeTensors: ", detail::shown(name), " has shape ", std::span(shape(name)),
                                "; expected ", std::span(wanted));
    visit_values<typename Tensor::Scalar>(entry(name), [](Index, auto) {});
  }

  /// Overwrites a tensor of exactly the stored shape; on failure it is as it was.
  template <detail::StorableTensor Tensor>
  void copy_to(std::string_view name, Tensor& tensor) const {
    check_fits(name, tensor);
    const SafeTensorsEntry& from = entry(name);
    visit_values<typename Tensor::Scalar>(
        from, [&](Index n, auto value) { tensor.data()[detail::memory_index<Tensor::Layout>(n, from.shape)] = value; });
  }

 private:
  SafeTensors() = default;

  /// Calls sink(n, value) for all values in row-major order.
  template <class Scalar, class Sink>
  void visit_values(const SafeTensorsEntry& from, Sink sink) const {
    const auto visit_as = [&]<class Stored>(Stored) {
      const std::byte* bytes = file_.data() + data_ + from.begin;
      const auto count = static_cast<Index>((from.end - from.begin) / sizeof(Stored));
      for (Index n = 0; n < count; ++n, bytes += sizeof(Stored))
        sink(n, convert<Scalar>(detail::load<Stored>(bytes), from));
    };
    const std::string_view type = from.dtype;
    if constexpr (std::floating_point<Scalar>) {
      if (type == "F16") return visit_as(Eigen::half{});
      if (type == "BF16") return visit_as(Eigen::bfloat16{});
      if (type == "F32") return visit_as(float{});
      if (type == "F64") return visit_as(double{});
    } else if constexpr (std::same_as<Scalar, bool>) {
      if (type == "BOOL") return visit_as(std::uint8_t{});
    } else {
      if (type == "I8") return visit_as(std::int8_t{});
      if (type == "U8") return visit_as(std::uint8_t{});
      if (type == "I16") return visit_as(std::int16_t{});
      if (type == "U16") return visit_as(std::uint16_t{});
      if (type == "I32") return visit_as(std::int32_t{});
      if (type == "U32") return visit_as(std::uint32_t{});
      if (type == "I64") return visit_as(std::int64_t{});
      if (type == "U64") return visit_as(std::uint64_t{});
    }
    detail::fail<FormatError>("SafeTensors: ", detail::shown(from.name), " has dtype ", type,
                              ", which does not convert to ", detail::stored_as<Scalar>());
  }

  template <class Scalar, class Stored>
  static Scalar convert(Stored value, const SafeTensorsEntry& from) {
    if constexpr (std::floating_point<Stored>) {
      return static_cast<Scalar>(value);
    } else if constexpr (!std::integral<Stored>) {
      return static_cast<Scalar>(static_cast<float>(value));  // exact: half and bfloat16 are subsets of float
    } else {
      using Target = std::conditional_t<std::same_as<Scalar, bool>, std::uint8_t, Scalar>;
      if (!std::in_range<Target>(value) || (std::same_as<Scalar, bool> && value > 1))
        detail::fail<FormatError>("SafeTensors: ", detail::shown(from.name), " holds ", value,
                                  ", which does not convert to ", detail::stored_as<Scalar>());
      return static_cast<Scalar>(value);
    }
  }

  std::vector<std::byte> file_;
  std::size_t data_ = 0;  // where the values begin in file_
  std::vector<SafeTensorsEntry> entries_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace posbias::io
