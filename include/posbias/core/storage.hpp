// SPDX-License-Identifier: MIT
/// \file
/// How the elements of a tensor are stored, and the conversions to and from the scalar that computes.
///
/// A module of double reads and writes double. A module of float reads and writes float, `Eigen::bfloat16` and
/// `Eigen::half`: it computes in float and rounds once, to nearest even, at the store.
///
/// Conversions work on bits, so -ffast-math changes none of them, and loops over them vectorise.
#pragma once

#include <Eigen/Core>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "posbias/core/index.hpp"
#include "posbias/core/infinity.hpp"

namespace posbias::detail {

template <class S, class... List>
inline constexpr bool is_one_of = (std::same_as<S, List> || ...);

/// A storage type of 16 bits.
template <class S>
concept Storage16 = is_one_of<S, Eigen::bfloat16, Eigen::half>;

/// A type whose tensors a module of `Scalar` takes.
template <class S, class Scalar>
concept StoredFor = std::same_as<S, Scalar> ||(std::same_as<Scalar, float>&& Storage16<S>);

/// Which of the types a module's tensors may have it is.
enum class Storage : unsigned char { scalar, bfloat16, half };

template <class S>
inline constexpr Storage storage_of = std::same_as<S, Eigen::bfloat16> ? Storage::bfloat16
                                      : std::same_as<S, Eigen::half>   ? Storage::half
                                                                       : Storage::scalar;

/// The bits of a number of 16, read and written as an integer: copies of Eigen's classes keep g++ from vectorising.
#if defined(__GNUC__)
using Bits16 [[gnu::may_alias]] = std::uint16_t;
#else
using Bits16 = std::uint16_t;
#endif

template <Storage16 S>
std::uint32_t bits_of(const S& stored) {
  static_assert(sizeof(S) == sizeof(Bits16));
  return *reinterpret_cast<const Bits16*>(&stored);
}

/// The stored value as the scalar; exact.
template <class Scalar>
Scalar widen(const Scalar& stored) {
  return stored;
}
inline float widen(const Eigen::bfloat16& stored) {
  return std::bit_cast<float>(bits_of(stored) << 16);
}
inline float widen(const Eigen::half& stored) {
  const std::uint32_t bits = bits_of(stored);
  const std::uint32_t sign = (bits & 0x8000U) << 16, magnitude = (bits & 0x7fffU) << 13;
  constexpr std::uint32_t rebias = (127U - 15U) << 23, smallest_normal = 113U << 23;
  // A subnormal is its significand in units of 2^-24: as the fraction of 2^-14, which is then subtracted.
  const float subnormal = std::bit_cast<float>(magnitude + smallest_normal) - std::bit_cast<float>(smallest_normal);
  const std::uint32_t normal = magnitude + rebias, special = magnitude + 2 * rebias;  // 255 in the exponent
  const std::uint32_t finite = magnitude < (1U << 23) ? std::bit_cast<std::uint32_t>(subnormal) : normal;
  return std::bit_cast<float>((magnitude < (31U << 23) ? finite : special) | sign);
}

/// The value to round: any, or a result of arithmetic, which is no signalling NaN and saves an instruction.
enum class Rounded { any, result };

/// The nearest bfloat16 in the upper 16 bits, of which g++ vectorises a selection best.
template <Rounded what>
std::uint32_t round_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t half_unit = 0x7fffU + ((bits >> 16) & 1U);
  std::uint32_t rounded = bits + (is_nan(value) ? 0U : half_unit);
  if constexpr (what == Rounded::any) rounded |= is_nan(value) ? 0x400000U : 0U;  // quiet
  return rounded;
}

/// The bits of the nearest number of 16, ties to even. NaN stays NaN; beyond the range is infinite. Signed comparisons,
/// because AVX2 has no others.
template <Storage16 S, Rounded what = Rounded::any>
std::uint16_t rounded_bits(float value) {
  if constexpr (std::same_as<S, Eigen::bfloat16>) {
    return static_cast<std::uint16_t>(round_to_bfloat16<what>(value) >> 16);
  } else {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto magnitude = static_cast<std::int32_t>(bits & 0x7fffffffU);
    constexpr std::int32_t infinity = 0x7f800000;
    constexpr std::int32_t smallest_normal = 113 << 23, overflow = (127 + 16) << 23, rebias = (127 - 15) << 23;
    // Adding 2^-1 rounds to 2^-24, the unit of subnormals; the sum's low bits count these units.
    const float half_unit = 0.5F;
    const std::int32_t subnormal = std::bit_cast<std::int32_t>(std::bit_cast<float>(magnitude) + half_unit) -
                                   std::bit_cast<std::int32_t>(half_unit);
    const std::int32_t normal = (magnitude - rebias + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const std::int32_t finite = magnitude < smallest_normal ? subnormal : normal;
    const std::int32_t special = magnitude > infinity ? 0x7e00 : 0x7c00;
    const std::int32_t result = magnitude < overflow ? finite : special;
    return static_cast<std::uint16_t>(static_cast<std::uint32_t>(result) | ((bits >> 16) & 0x8000U));
  }
}

/// Stores a value, rounded once.
template <Rounded what = Rounded::any, class S, class Scalar>
requires StoredFor<S, Scalar>
void put(S& to, Scalar value) {
  if constexpr (std::same_as<S, Scalar>)
    to = value;
  else
    *reinterpret_cast<Bits16*>(&to) = rounded_bits<S, what>(value);
}
/// Stores a result of arithmetic.
template <class S, class Scalar>
void put_result(S& to, Scalar result) {
  put<Rounded::result>(to, result);
}

/// The nearest stored value.
template <class S, class Scalar>
requires StoredFor<S, Scalar> S round_to(Scalar value) {
  S result;
  put(result, value);
  return result;
}

/// Where an element of a tensor is, and how the tensor's elements are stored: a pointer whose type is known at run time,
/// so that kernels are compiled once per scalar. `Scalar` is const where elements are only read.
template <class Scalar>
class Elements {
  using Value = std::remove_const_t<Scalar>;
  template <class S>
  using Const = std::conditional_t<std::is_const_v<Scalar>, const S, S>;

 public:
  Elements() = default;

  template <class S>
  requires StoredFor<std::remove_const_t<S>, Value> &&(std::is_const_v<Scalar> || !std::is_const_v<S>)Elements(S* first)
      : address_(first), storage_(storage_of<std::remove_const_t<S>>) {}

  /// Elements to write serve where elements to read are wanted.
  operator Elements<const Value>() const requires(!std::is_const_v<Scalar>) {
    return visit([](auto* first) { return Elements<const Value>(first); });
  }

  [[nodiscard]] bool given() const { return address_ != nullptr; }
  [[nodiscard]] Storage storage() const { return storage_; }
  [[nodiscard]] Const<void>* address() const { return address_; }
  [[nodiscard]] Index element_size() const {
    return storage_ == Storage::scalar ? static_cast<Index>(sizeof(Value)) : Index{2};
  }

  /// Whether elements are stored as the scalar, so that kernels may work in place.
  [[nodiscard]] bool native() const { return storage_ == Storage::scalar; }
  /// The elements themselves; only if native().
  [[nodiscard]] Scalar* data() const { return static_cast<Scalar*>(address_); }

  /// Calls `use(pointer)` with a pointer of the storage type.
  template <class Use>
  decltype(auto) visit(const Use& use) const {
    if constexpr (std::same_as<Value, float>) {
      if (storage_ == Storage::bfloat16) return use(static_cast<Const<Eigen::bfloat16>*>(address_));
      if (storage_ == Storage::half) return use(static_cast<Const<Eigen::half>*>(address_));
    }
    return use(data());
  }

  /// The element `count` further on.
  [[nodiscard]] Elements operator+(Index count) const {
    Elements result = *this;
    if (address_ != nullptr) result.address_ = static_cast<Const<char>*>(address_) + count * element_size();
    return result;
  }

  friend bool operator==(const Elements&, const Elements&) = default;

 private:
  Const<void>* address_ = nullptr;
  Storage storage_ = Storage::scalar;
};

/// Reads `count` elements, `stride` apart.
template <class Scalar>
void load(Elements<const Scalar> from, Index stride, Index count, Scalar* __restrict to) {
  from.visit([&](const auto* first) {
    if (stride == 1)
      for (Index i = 0; i < count; ++i) to[i] = widen(first[i]);
    else
      for (Index i = 0; i < count; ++i) to[i] = widen(first[i * stride]);
  });
}

/// Writes `count` elements, `stride` apart, each rounded once.
template <class Scalar>
void store(const Scalar* __restrict from, Index count, Elements<Scalar> to, Index stride) {
  to.visit([&](auto* first) {
    if (stride == 1)
      for (Index i = 0; i < count; ++i) put(first[i], from[i]);
    else
      for (Index i = 0; i < count; ++i) put(first[i * stride], from[i]);
  });
}

}  // namespace posbias::detail
