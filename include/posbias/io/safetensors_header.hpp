// SPDX-License-Identifier: MIT
/// \file
/// The header of a safetensors file: its grammar, its types, and every check on it.
///
///     {"__metadata__": {"key": "text"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/io/json_text.hpp"

namespace posbias::io {

/// One tensor of a file, as the header describes it; all of it checked.
struct SafeTensorsEntry {
  std::string name;          ///< as in the state dict
  std::string_view dtype;    ///< the format's own name: "F32", "BF16", "BOOL" ...
  std::vector<Index> shape;  ///< empty for a scalar
  std::uint64_t begin = 0;   ///< first byte, counted from the end of the header
  std::uint64_t end = 0;     ///< one past the last byte
};

namespace detail {

inline constexpr std::string_view metadata_key = "__metadata__";

struct StoredType {
  std::string_view name;
  std::uint64_t bits;
};

/// Every type of the format has a size, also those whose values this library does not read: a checkpoint with
/// 4-bit weights in it still opens.
inline constexpr StoredType stored_types[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6},     {"F6_E3M2", 6},     {"U8", 8},   {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E4M3FNUZ", 8}, {"I16", 16}, {"F8_E8M0", 8},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},       {"I32", 32},        {"U32", 32}, {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},        {"U64", 64}};

inline const StoredType* find_stored_type(std::string_view name) {
  const auto found = std::ranges::find(stored_types, name, &StoredType::name);
  return found == std::end(stored_types) ? nullptr : found;
}

/// The type in which a C++ scalar is written; empty for scalars that are not.
template <class Scalar>
constexpr std::string_view stored_as() {
  if constexpr (std::same_as<Scalar, float>) return "F32";
  if constexpr (std::same_as<Scalar, double>) return "F64";
  if constexpr (std::same_as<Scalar, Eigen::half>) return "F16";
  if constexpr (std::same_as<Scalar, Eigen::bfloat16>) return "BF16";
  if constexpr (std::same_as<Scalar, bool>) return "BOOL";
  if constexpr (std::same_as<Scalar, int> || std::same_as<Scalar, long> || std::same_as<Scalar, long long>)
    return sizeof(Scalar) == 4 ? "I32" : "I64";
  return {};
}

template <class Scalar>
concept StorableScalar = !stored_as<Scalar>().empty();

/// An Eigen::Tensor or Eigen::TensorMap of a scalar that the format stores.
template <class Tensor>
concept StorableTensor = StorableScalar<std::remove_const_t<typename Tensor::Scalar>> && requires(Tensor& tensor) {
  tensor.data();
  tensor.dimensions().begin();
  Tensor::Layout;
};

static_assert(std::endian::native == std::endian::little, "values are copied as they lie in the file");

/// A value from bytes that may lie unaligned.
template <class Stored>
Stored load(const std::byte* from) {
  std::array<std::byte, sizeof(Stored)> bytes;
  std::memcpy(bytes.data(), from, sizeof(Stored));
  return std::bit_cast<Stored>(bytes);
}

template <class Tensor>
std::vector<Index> shape_of(const Tensor& tensor) {
  const auto& sizes = tensor.dimensions();
  return {sizes.begin(), sizes.end()};
}

/// Where the n-th value in row-major order lies in memory. For ColMajor: n, its mixed-radix digits reversed.
template <int Layout>
Index memory_index(Index n, const std::vector<Index>& shape) {
  if constexpr (Layout == Eigen::RowMajor) return n;
  Index reversed = 0;
  for (std::size_t d = shape.size(); d-- > 0; n /= shape[d]) reversed = reversed * shape[d] + n % shape[d];
  return reversed;
}

/// Bytes that a tensor takes. Zeros are left out of the product until its end, so that no order of the sizes,
/// and no stride computed from them later, can overflow.
inline std::uint64_t stored_size(const SafeTensorsEntry& entry) {
  constexpr std::uint64_t limit = (std::numeric_limits<Index>::max)();
  std::uint64_t bits = find_stored_type(entry.dtype)->bits;
  bool empty = false;
  for (const Index size : entry.shape) {
    const auto factor = static_cast<std::uint64_t>(std::max<Index>(size, 1));
    if (bits > limit / factor)
      fail<FormatError>("SafeTensors: tensor ", shown(entry.name), ": its shape overflows the largest Index");
    bits *= factor;
    empty = empty || size == 0;
  }
  if (bits % 8 != 0 && !empty)
    fail<FormatError>("SafeTensors: tensor ", shown(entry.name), ": ", bits, " bits of ", entry.dtype,
                      " are no whole number of bytes");
  return empty ? 0 : bits / 8;
}

/// A header's content.
struct Header {
  std::vector<SafeTensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// Checks a whole header against the number of bytes that follow it; its entries come out in order of offset. Throws
/// FormatError. A template, so that posbias::compiled may hold it.
template <class = void>
Header parse_header(std::string_view text, std::uint64_t data_size);

}  // namespace detail
}  // namespace posbias::io
