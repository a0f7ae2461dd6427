// SPDX-License-Identifier: MIT
/// \file
/// -inf as data, the logit of a masked key, and NaN: written and recognised by their bits.
///
/// -ffast-math and -ffinite-math-only let compilers assume that no number is infinite or NaN: a comparison with infinity
/// is folded away, and with clang an infinite constant makes the whole expression undefined. Integers are left alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "posbias/core/index.hpp"

namespace posbias::detail {

/// The integer with the bits of a float or double.
template <class Scalar>
using Bits = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;

template <class Scalar>
constexpr Bits<Scalar> sign_bit = Bits<Scalar>{1} << (8 * sizeof(Scalar) - 1);
/// The bits of infinity: of the exponents, and none below.
template <class Scalar>
constexpr Bits<Scalar> infinity_bits = sizeof(Scalar) == 4 ? 0x7f800000U : 0x7ff0000000000000U;

template <class Scalar>
constexpr Scalar minus_infinity() {
  return std::bit_cast<Scalar>(infinity_bits<Scalar> | sign_bit<Scalar>);
}

template <class Scalar>
constexpr bool is_minus_infinity(Scalar value) {
  return std::bit_cast<Bits<Scalar>>(value) == (infinity_bits<Scalar> | sign_bit<Scalar>);
}

/// Whether a value is NaN; also where compilers fold comparisons with NaN away.
inline bool is_nan(float value) {
#if defined(_M_FP_FAST) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
  return static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(value) & 0x7fffffffU) > 0x7f800000;
#else
  return value != value;
#endif
}

/// The value if it is visible, or else -inf.
template <class Scalar>
constexpr Scalar visible_or_hidden(bool visible, Scalar value) {
  return std::bit_cast<Scalar>(visible ? std::bit_cast<Bits<Scalar>>(value) : infinity_bits<Scalar> | sign_bit<Scalar>);
}

/// Whether values `stride` apart are all 0: no gradient comes of them, whatever they are multiplied by.
template <class Scalar>
bool all_zero(const Scalar* values, Index count, Index stride) {
  Index i = 0;
  while (i < count && values[i * stride] == 0) ++i;
  return i == count;
}

/// Whether none of some values is infinite or NaN.
template <class Scalar>
bool all_finite(const Scalar* values, Index count) {
  constexpr Bits<Scalar> lowest_exponent_bit = infinity_bits<Scalar> & (~infinity_bits<Scalar> + 1);
  Bits<Scalar> carries = 0;  // into the sign, where all bits of the exponent are set
  for (Index i = 0; i < count; ++i) {
    const Bits<Scalar> magnitude = std::bit_cast<Bits<Scalar>>(values[i]) & ~sign_bit<Scalar>;
    carries |= magnitude + lowest_exponent_bit;
  }
  return (carries & sign_bit<Scalar>) == 0;
}

/// Whether what is prepared may be -inf, which hides keys.
template <class Prepared>
bool hides_keys(const Prepared& prepared) {
  if constexpr (requires { prepared.hides(); })
    return prepared.hides();
  else
    return false;
}

/// Makes -inf the logits of a tile where what is prepared is, which a NaN would not become by adding it. Several that are
/// prepared as one hide keys one by one.
template <class Prepared, class Tile>
void hide_keys(const Prepared& prepared, const Tile& tile) {
  if (!hides_keys(prepared)) return;
  if constexpr (requires { prepared.hide(tile); }) {
    prepared.hide(tile);
  } else {
    using Scalar = std::remove_pointer_t<decltype(tile.data)>;
    std::vector<Scalar> values(static_cast<std::size_t>(tile.heads * tile.keys));
    for (Index i = 0; i < tile.queries; ++i) {
      Tile row = tile;
      row.data = values.data();
      row.head_stride = tile.keys;
      row.key_stride = 1;
      row.query += i;
      row.queries = 1;
      std::fill(values.begin(), values.end(), Scalar(0));
      prepared.add_to(row);
      for (Index h = 0; h < tile.heads; ++h)
        for (Index j = 0; j < tile.keys; ++j) {
          Scalar& logit = tile.row(h, i)[j * tile.key_stride];
          logit = visible_or_hidden(!is_minus_infinity(row.row(h, 0)[j]), logit);
        }
    }
  }
}

}  // namespace posbias::detail
