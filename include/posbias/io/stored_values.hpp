// SPDX-License-Identifier: MIT
/// \file
/// From the values of a file to a program's scalars.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>

#include "posbias/core/error.hpp"
#include "posbias/io/json_text.hpp"
#include "posbias/io/safetensors_header.hpp"

namespace posbias::io::detail {

/// Calls act(Stored()) for the type that values are stored as. Throws unless it is of the same kind as Scalar.
template <class Scalar, class Act>
void with_stored(const SafeTensorsEntry& from, Act act) {
  const std::string_view type = from.dtype;
  if constexpr (std::floating_point<Scalar>) {
    if (type == "F16") return act(Eigen::half{});
    if (type == "BF16") return act(Eigen::bfloat16{});
    if (type == "F32") return act(float{});
    if (type == "F64") return act(double{});
  } else if constexpr (std::same_as<Scalar, bool>) {
    if (type == "BOOL") return act(std::uint8_t{});
  } else if constexpr (!std::integral<Scalar>) {
    if (type == stored_as<Scalar>()) return act(Scalar{});
  } else {
    if (type == "I8") return act(std::int8_t{});
    if (type == "U8") return act(std::uint8_t{});
    if (type == "I16") return act(std::int16_t{});
    if (type == "U16") return act(std::uint16_t{});
    if (type == "I32") return act(std::int32_t{});
    if (type == "U32") return act(std::uint32_t{});
    if (type == "I64") return act(std::int64_t{});
    if (type == "U64") return act(std::uint64_t{});
  }
  fail<FormatError>("SafeTensors: ", shown(from.name), " has dtype ", type, ", which does not convert to ",
                    stored_as<Scalar>());
}

/// Whether a Scalar holds every value of the stored type.
template <class Scalar, class Stored>
inline constexpr bool always_converts = !std::integral<Stored>;

template <class Scalar, std::integral Stored>
inline constexpr bool always_converts<Scalar, Stored> = std::in_range<Scalar>((std::numeric_limits<Stored>::min)()) &&
                                                        std::in_range<Scalar>((std::numeric_limits<Stored>::max)());

template <std::integral Stored>
inline constexpr bool always_converts<bool, Stored> = false;

/// A stored value of the tensor `from` as a Scalar.
template <class Scalar, class Stored>
Scalar convert(Stored value, const SafeTensorsEntry& from) {
  if constexpr (std::same_as<Scalar, Stored>) {
    return value;
  } else if constexpr (std::floating_point<Stored>) {
    return static_cast<Scalar>(value);
  } else if constexpr (!std::integral<Stored>) {
    return static_cast<Scalar>(static_cast<float>(value));  // exact: half and bfloat16 are subsets of float
  } else {
    using Target = std::conditional_t<std::same_as<Scalar, bool>, std::uint8_t, Scalar>;
    if (!std::in_range<Target>(value) || (std::same_as<Scalar, bool> && value > 1))
      fail<FormatError>("SafeTensors: ", shown(from.name), " holds ", value, ", which does not convert to ",
                        stored_as<Scalar>());
    return static_cast<Scalar>(value);
  }
}

}  // namespace posbias::io::detail
