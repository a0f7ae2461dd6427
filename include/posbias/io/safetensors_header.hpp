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
#include <exception>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
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

/// Takes the header from nlohmann-json as SAX events: no document is built, duplicate keys are seen, and nesting
/// deeper than the format's ends the parse at once.
class HeaderReader {
 public:
  std::vector<SafeTensorsEntry> entries;
  std::map<std::string, std::string> metadata;

  bool null() {
    if (in_ != In::top || key_ != metadata_key) wrong("null");
    return true;
  }
  bool boolean(bool) { wrong("a boolean"); }
  bool number_integer(std::int64_t) { wrong("a negative integer"); }
  bool number_float(double, const std::string& digits) { wrong("the number " + digits.substr(0, 40)); }
  bool binary(nlohmann::json::binary_t&) { wrong("binary"); }

  bool number_unsigned(std::uint64_t value) {
    if (in_ != In::shape && in_ != In::offsets) wrong("a number");
    numbers_.push_back(value);
    return true;
  }

  bool string(std::string& value) {
    if (in_ == In::metadata) {
      metadata[key_] = std::move(value);
    } else if (in_ == In::tensor && key_ == "dtype") {
      const StoredType* type = find_stored_type(value);
      if (type == nullptr) fail<FormatError>(place(), "unknown dtype ", shown(value));
      entries.back().dtype = type->name;
    } else {
      wrong("a string");
    }
    return true;
  }

  bool key(std::string& name) {
    if (!keys_[in_ == In::top ? 0 : 1].insert(name).second)
      fail<FormatError>(place(), "the key ", shown(name), " occurs twice");
    if (in_ == In::tensor && std::ranges::find(tensor_keys, name) == tensor_keys.end())
      fail<FormatError>(place(), "expected the keys dtype, shape and data_offsets; got ", shown(name));
    key_ = std::move(name);
    return true;
  }

  bool start_object(std::size_t) {
    if (in_ == In::file) {
      in_ = In::top;
    } else if (in_ == In::top) {
      keys_[1].clear();
      in_ = key_ == metadata_key ? In::metadata : In::tensor;
      if (in_ == In::tensor) entries.emplace_back().name = key_;
    } else {
      wrong("an object");
    }
    return true;
  }

  bool end_object() {
    if (in_ == In::tensor)
      for (const std::string_view needed : tensor_keys)
        if (!keys_[1].contains(needed)) fail<FormatError>(place(), "has no ", needed);
    in_ = In::top;
    return true;
  }

  bool start_array(std::size_t) {
    if (in_ != In::tensor || key_ == "dtype") wrong("an array");
    in_ = key_ == "shape" ? In::shape : In::offsets;
    numbers_.clear();
    return true;
  }

  bool end_array() {
    SafeTensorsEntry& entry = entries.back();
    if (in_ == In::shape) {
      for (const std::uint64_t size : numbers_) {
        if (!std::in_range<Index>(size)) wrong(std::to_string(size));
        entry.shape.push_back(static_cast<Index>(size));
      }
    } else {
      if (numbers_.size() != 2) wrong(std::to_string(numbers_.size()) + " of them");
      std::tie(entry.begin, entry.end) = std::tie(numbers_[0], numbers_[1]);
    }
    in_ = In::tensor;
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const std::exception& error) {
    fail_json("header", byte, error);
  }

 private:
  enum class In { file, top, metadata, tensor, shape, offsets };
  static constexpr std::array<std::string_view, 3> tensor_keys{"dtype", "shape", "data_offsets"};

  [[nodiscard]] std::string place() const {
    if (in_ == In::file || in_ == In::top) return "SafeTensors: the header: ";
    if (in_ == In::metadata) return "SafeTensors: __metadata__: ";
    return "SafeTensors: tensor " + shown(entries.back().name) + ": ";
  }

  [[noreturn]] void wrong(const std::string& came) const {
    const std::string_view expected = in_ == In::top        ? "an object"
                                      : in_ == In::metadata ? "a string"
                                      : in_ == In::shape    ? "an array of integers from 0 to the largest Index"
                                      : in_ == In::offsets  ? "an array of two 64-bit unsigned integers"
                                      : key_ == "dtype"     ? "a string"
                                                            : "an array";
    fail<FormatError>(place(), shown(key_), " must be ", expected, "; got ", came);
  }

  In in_ = In::file;
  std::string key_;
  std::vector<std::uint64_t> numbers_;                      // of the array that is open
  std::array<std::set<std::string, std::less<>>, 2> keys_;  // of the header; of the object that is open in it
};

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

/// Checks a whole header against the number of bytes that follow it; its entries come out in order of offset.
inline HeaderReader parse_header(std::string_view text, std::uint64_t data_size) {
  check_json_size("header", text.size());
  if (!text.starts_with('{')) fail<FormatError>("SafeTensors: the header must start with '{'");
  text = text.substr(0, text.find_last_not_of(' ') + 1);
  if (!text.ends_with('}'))
    fail<FormatError>("SafeTensors: the header must be one JSON object, followed by nothing but spaces");

  HeaderReader header;
  parse_json("header", text, header);
  std::ranges::sort(header.entries, {}, [](const SafeTensorsEntry& e) { return std::tie(e.begin, e.end, e.name); });
  std::uint64_t next = 0;
  for (const SafeTensorsEntry& entry : header.entries) {
    const auto check = [&](bool right, const auto&... message) {
      if (!right)
        fail<FormatError>("SafeTensors: tensor ", shown(entry.name), ": data_offsets [", entry.begin, ", ", entry.end,
                          ") ", message...);
    };
    check(entry.begin <= entry.end, "end before they begin");
    check(entry.begin == next, entry.begin < next ? "overlap" : "leave a hole after", " the values before; ",
          "expected them to begin at ", next);
    const std::uint64_t needed = stored_size(entry);
    check(entry.end - entry.begin == needed, "are ", entry.end - entry.begin, " bytes; shape ", std::span(entry.shape),
          " of ", entry.dtype, " takes ", needed);
    next = entry.end;
  }
  if (next != data_size)
    fail<FormatError>("SafeTensors: the header describes ", next, " bytes of values; the file has ", data_size);
  return header;
}

}  // namespace detail
}  // namespace posbias::io
