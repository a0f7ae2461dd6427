// SPDX-License-Identifier: MIT
/// \file
/// Positions of any kind, right or hostile, and whether they are right, from what Positions promises.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "laws/position_case.hpp"
#include "posbias/core/positions.hpp"

namespace posbias_fuzz {

using posbias_test::BatchShape;
using posbias_test::Index;
using posbias_test::PositionCase;
using posbias_test::PositionType;
using posbias_test::Real;
using posbias_test::Where;

inline bool one_in(FuzzedDataProvider& input, unsigned count) {
  return input.ConsumeIntegralInRange(1U, count) == count;
}

/// Whether a tensor with these leading dimensions has batch entries for those of another.
inline bool broadcasts(const BatchShape& given, const BatchShape& wanted) {
  return std::equal(given.begin(), given.end(), wanted.begin(), wanted.end(),
                    [](Index one, Index other) { return one == other || one == 1; });
}

/// Where some tokens are, as a tensor of a type.
struct Place {
  Where where{};
  PositionType type = PositionType::int64;
  BatchShape leading{};  ///< of the tensor, where it has a row per batch entry

  [[nodiscard]] posbias::Positions positions() const { return where.positions(leading, type); }

  [[nodiscard]] bool of_integers() const { return type == PositionType::int32 || type == PositionType::int64; }

  /// Reals that are not all integers, so that positions are doubles.
  [[nodiscard]] bool reals() const {
    return !of_integers() && !std::all_of(where.values.begin(), where.values.end(), [](Real value) {
      return std::abs(value) < 0x1p62L && value == std::floor(value);
    });
  }

  /// Whether the positions of `tokens` tokens in batch entries of shape `of`, whose flags are right. Those of tokens that
  /// flags leave out are not looked at.
  [[nodiscard]] bool right(const BatchShape& of, Index tokens, const PositionCase& flags = {}) const {
    if (where.kind == Where::Kind::not_given) return true;
    constexpr std::int64_t limit = posbias::Positions::limit;
    if (where.kind == Where::Kind::range && (flags.flags.empty() || tokens == 0))
      return where.start >= -limit && where.start <= limit - std::max<Index>(tokens - 1, 0);
    if (where.count > tokens || (where.rows != 0 && !broadcasts(leading, of))) return false;
    const std::vector<Real> values = looked_at(of, tokens, flags);
    const bool integers = of_integers() || where.kind == Where::Kind::range;
    return std::all_of(values.begin(), values.end(), [&](Real value) {
      return std::isfinite(value) && std::abs(value) <= (integers ? Real(limit) : 0x1p1022L);
    });
  }

  /// Whether they are also integers in [0, end), rows of a table.
  [[nodiscard]] bool ids_below(Index end, const BatchShape& of, Index tokens, const PositionCase& flags) const {
    if (flags.flags.empty()) return tokens == 0 || where.ids_below(end, tokens);
    Where seen{.kind = Where::Kind::listed};
    seen.values = looked_at(of, tokens, flags);
    return seen.ids_below(end, tokens);
  }

  /// The same as doubles, which is what positions are beside reals.
  [[nodiscard]] Where rounded(Index tokens) const {
    if (where.kind == Where::Kind::listed)
      return Where::listed(where.rows, where.count, [&](Index n, Index i) {
        return static_cast<double>(where.values[static_cast<std::size_t>(n * where.count + i)]);
      });
    return Where::listed(0, tokens, [&](Index, Index i) {
      return static_cast<double>(static_cast<Real>(where.start) + static_cast<Real>(i));
    });
  }

 private:
  [[nodiscard]] std::vector<Real> looked_at(const BatchShape& of, Index tokens, const PositionCase& flags) const {
    if (flags.flags.empty()) return where.values;
    std::vector<Real> values;
    const Index first = where.kind == Where::Kind::listed ? tokens - where.count : 0;
    for (Index n = 0; n < posbias_test::product(of); ++n)
      for (Index token = first; token < tokens; ++token)
        if (flags.flag(n, token, tokens)) values.push_back(*where.at(n, token, tokens));
    return values;
  }
};

/// An integer: near 0, at an edge, or any.
inline std::int64_t draw_integer(FuzzedDataProvider& input) {
  constexpr std::int64_t limit = posbias::Positions::limit;
  switch (input.ConsumeIntegralInRange(0, 7)) {
    case 0:
      return input.ConsumeIntegral<std::int64_t>();
    case 1:
      return input.PickValueInArray({limit, limit + 1, -limit, -limit - 1, std::numeric_limits<std::int64_t>::min(),
                                     std::numeric_limits<std::int64_t>::max(), std::int64_t{1} << 53,
                                     (std::int64_t{1} << 40) + 1, std::int64_t{1} << 31, limit - 11});
    case 2:
      return input.ConsumeIntegral<std::int32_t>();
    case 3:
      return input.ConsumeIntegral<std::int16_t>();
    default:
      return input.ConsumeIntegralInRange<std::int64_t>(-20, 140);
  }
}

/// A real: a fraction, at an edge, or any.
inline double draw_real(FuzzedDataProvider& input) {
  using limits = std::numeric_limits<double>;
  switch (input.ConsumeIntegralInRange(0, 7)) {
    case 0:
      return input.PickValueInArray({limits::quiet_NaN(), limits::infinity(), -limits::infinity(), 0x1p1022, -0x1p1022,
                                     0x1.8p1022, limits::max(), limits::denorm_min(), -0.0, 1e300, 1e30, 0x1p62, 1e18});
    case 1:
      return input.ConsumeFloatingPoint<double>();
    case 2:
      return static_cast<double>(draw_integer(input));
    default:
      return static_cast<double>(input.ConsumeIntegralInRange(-400, 400)) / 8;
  }
}

inline Place draw_place(FuzzedDataProvider& input, const BatchShape& leading, Index tokens) {
  const int kind = input.ConsumeIntegralInRange(0, 7);
  if (kind == 0) return {};
  if (kind == 1) return {Where::range(draw_integer(input))};

  Place place{{}, static_cast<PositionType>(input.ConsumeIntegralInRange(0, 3)), leading};
  if (one_in(input, 24)) place.leading.push_back(1);
  if (one_in(input, 24)) place.leading[0] += 1;
  const Index batches = posbias_test::product(place.leading);
  const Index rows = one_in(input, 2) ? batches : 0;
  if (rows == 0) place.leading = {};  // one row for the whole batch, or no row
  const Index fewer = one_in(input, 3) ? input.ConsumeIntegralInRange<Index>(-1, tokens) : 0;
  const std::int64_t start = draw_integer(input);
  const int pattern = input.ConsumeIntegralInRange(0, 5);
  const auto value = [&](Index n, Index i) -> double {
    switch (pattern) {
      case 0:
        return static_cast<double>(start) + static_cast<double>(i);
      case 1:
        return static_cast<double>(start) + static_cast<double>(i + n);
      case 2:
        return static_cast<double>(input.ConsumeIntegralInRange(0, 9));
      case 3:
        return static_cast<double>(draw_integer(input));
      default:
        return draw_real(input);
    }
  };
  const auto in_type = [&](Index n, Index i) -> Real {
    if (place.of_integers()) {
      // A tensor of integers holds any of them, also those that no double does.
      const std::int64_t integer =
          pattern == 0   ? static_cast<std::int64_t>(static_cast<std::uint64_t>(start) + static_cast<std::uint64_t>(i))
          : pattern == 2 ? input.ConsumeIntegralInRange(0, 9)
                         : draw_integer(input);
      if (place.type == PositionType::int64) return static_cast<Real>(integer);
      return static_cast<Real>(static_cast<std::int32_t>(integer));
    }
    const double real = value(n, i);
    return place.type == PositionType::float32 ? static_cast<Real>(static_cast<float>(real)) : static_cast<Real>(real);
  };
  place.where = Where::listed(rows, tokens - fewer, in_type);
  return place;
}

}  // namespace posbias_fuzz
