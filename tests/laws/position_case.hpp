// SPDX-License-Identifier: MIT
/// \file
/// Cases: where the tokens of a test are, written down independently of the library, so that a law can cut, permute
/// and shift them and the oracle can read them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "posbias/core/positions.hpp"
#include "support/numbers.hpp"

namespace posbias_test {

using posbias::Index;
using Real = long double;
using BatchShape = std::vector<Index>;

inline Index product(const BatchShape& sizes) {
  Index result = 1;
  for (const Index size : sizes) result *= size;
  return result;
}

/// Sizes of a test's tensors: x (B, L1, D), q (B, L1, NH, H), k and v (B, L2, NH, H), mask (B, NH, L1, L2).
struct Shape {
  Index B = 2, NH = 3, L1 = 5, L2 = 7, H = 8, D = 8;
};

enum class PositionType { int32, int64, float32, float64 };

/// Positions of a row of tokens, or of one row for each batch entry.
struct Where {
  enum class Kind { not_given, range, listed };
  Kind kind = Kind::not_given;
  std::int64_t start = 0;      ///< of a range
  Index rows = 0;              ///< of a list; 0: one row for the whole batch
  Index count = 0;             ///< of a list, positions per row, for the rightmost tokens
  std::vector<Real> values{};  ///< of a list, row by row

  static Where range(std::int64_t from) { return {Kind::range, from, 0, 0, {}}; }

  /// position(n, i) for batch entry n and position i.
  template <class Position>
  static Where listed(Index rows, Index count, const Position& position) {
    Where where{Kind::listed, 0, rows, count, {}};
    for (Index n = 0; n < std::max<Index>(rows, 1); ++n)
      for (Index i = 0; i < count; ++i) where.values.push_back(static_cast<Real>(position(n, i)));
    return where;
  }

  [[nodiscard]] std::optional<Real> at(Index n, Index token, Index tokens) const {
    if (kind != Kind::listed) return static_cast<Real>(start + token);
    const Index i = token - (tokens - count);
    if (i < 0) return std::nullopt;
    return values[static_cast<std::size_t>((rows == 0 ? 0 : n) * count + i)];
  }

  [[nodiscard]] bool integral() const {
    return std::all_of(values.begin(), values.end(), [](Real value) { return value == std::floor(value); });
  }
  /// The positions of `tokens` tokens are integers in [0, end).
  [[nodiscard]] bool ids_below(Index end, Index tokens) const {
    if (kind != Kind::listed) return start >= 0 && start <= end - tokens;
    const auto inside = [&](Real value) { return value >= 0 && value < static_cast<Real>(end); };
    return integral() && std::all_of(values.begin(), values.end(), inside);
  }
  [[nodiscard]] Real furthest() const {
    Real result = std::abs(static_cast<Real>(start));
    for (const Real value : values) result = std::max(result, std::abs(value));
    return result;
  }

  /// The positions of tokens [begin, end) alone.
  [[nodiscard]] Where cut(Index begin, Index end, Index tokens) const {
    if (kind != Kind::listed) return range(start + begin);
    const Index first = tokens - count;
    const Index from = std::max<Index>(begin - first, 0);
    const Index to = std::max<Index>(end - first, 0);
    return listed(rows, to - from, [&](Index n, Index i) { return *at(n, first + from + i, tokens); });
  }

  /// Those of one batch entry, as a shared row.
  [[nodiscard]] Where entry(Index n) const {
    if (kind != Kind::listed) return *this;
    return listed(0, count, [&](Index, Index i) { return *at(n, i, count); });
  }

  [[nodiscard]] Where permuted(const std::vector<Index>& order) const {
    if (rows == 0) return *this;
    return listed(rows, count, [&](Index n, Index i) { return *at(order[static_cast<std::size_t>(n)], i, count); });
  }

  [[nodiscard]] Where shifted(std::int64_t offset) const {
    if (kind != Kind::listed) return range(start + offset);
    Where result = *this;
    for (Real& value : result.values) value += static_cast<Real>(offset);
    return result;
  }

  /// For the library: integers as int64 and reals as double, unless told otherwise.
  [[nodiscard]] posbias::Positions positions(const BatchShape& leading,
                                             std::optional<PositionType> type = std::nullopt) const {
    if (kind == Kind::not_given) return {};
    if (kind == Kind::range) return posbias::Positions::range(static_cast<Index>(start));
    switch (type.value_or(integral() ? PositionType::int64 : PositionType::float64)) {
      case PositionType::int32:
        return tensor<std::int32_t>(leading);
      case PositionType::int64:
        return tensor<std::int64_t>(leading);
      case PositionType::float32:
        return tensor<float>(leading);
      case PositionType::float64:
        break;
    }
    return tensor<double>(leading);
  }

 private:
  template <class S>
  [[nodiscard]] posbias::Positions tensor(const BatchShape& leading) const {
    const auto of_rank = [&]<int Rank>(std::integral_constant<int, Rank>) -> posbias::Positions {
      Eigen::array<Index, Rank> sizes{};
      for (std::size_t d = 0; d + 1 < static_cast<std::size_t>(Rank); ++d) sizes[d] = leading[d];
      sizes[Rank - 1] = count;
      Eigen::Tensor<S, Rank, Eigen::RowMajor> result(sizes);
      std::transform(values.begin(), values.end(), result.data(), [](Real value) { return static_cast<S>(value); });
      return result;
    };
    if (rows == 0 || leading.empty()) return of_rank(std::integral_constant<int, 1>());
    if (leading.size() == 1) return of_rank(std::integral_constant<int, 2>());
    if (leading.size() == 2) return of_rank(std::integral_constant<int, 3>());
    return of_rank(std::integral_constant<int, 4>());
  }
};

/// Everything a hook is told about its tokens.
struct PositionCase {
  std::string name;
  Where q{}, k{};
  bool together = false;      ///< q = k, given as q_k
  Index flag_rows = 0;        ///< 0: one row of flags for the whole batch
  Index flag_count = 0;       ///< flags per row, for the rightmost tokens
  std::vector<bool> flags{};  ///< of mod_x
  std::optional<PositionType> type{};

  [[nodiscard]] bool flag(Index n, Index token, Index tokens) const {
    const Index i = token - (tokens - flag_count);
    return i < 0 || flags[static_cast<std::size_t>((flag_rows == 0 ? 0 : n) * flag_count + i)];
  }

  [[nodiscard]] PositionCase cut_queries(Index begin, Index end, const Shape& shape) const {
    PositionCase result{name,      q.cut(begin, end, shape.L1),     k,  false,
                        flag_rows, flags.empty() ? 0 : end - begin, {}, type};
    if (!flags.empty())
      for (Index n = 0; n < std::max<Index>(flag_rows, 1); ++n)
        for (Index l = begin; l < end; ++l) result.flags.push_back(flag(n, l, shape.L1));
    return result;
  }
  [[nodiscard]] PositionCase cut_keys(Index begin, Index end, const Shape& shape) const {
    PositionCase result = *this;
    result.k = k.cut(begin, end, shape.L2);
    result.together = false;
    return result;
  }
  [[nodiscard]] PositionCase entry(Index n) const { return permuted_flags({n}, q.entry(n), k.entry(n), true); }
  [[nodiscard]] PositionCase permuted(const std::vector<Index>& order) const {
    return permuted_flags(order, q.permuted(order), k.permuted(order), false);
  }
  [[nodiscard]] PositionCase shifted(std::int64_t offset) const {
    PositionCase result = *this;
    result.q = q.shifted(offset);
    result.k = k.shifted(offset);
    return result;
  }

  [[nodiscard]] bool integral() const { return q.integral() && k.integral(); }
  [[nodiscard]] Real furthest() const { return std::max(q.furthest(), k.furthest()); }

  [[nodiscard]] posbias::TokenPositions token_positions(const BatchShape& leading, posbias::Executor executor) const {
    posbias::TokenPositions at;
    at.pos = q.positions(leading, type);
    at.executor = executor;
    if (!flags.empty()) {
      const auto fill = [&](auto tensor) {
        std::copy(flags.begin(), flags.end(), tensor.data());
        at.mask = tensor;
      };
      if (flag_rows == 0 || leading.empty())
        fill(Eigen::Tensor<bool, 1, Eigen::RowMajor>(flag_count));
      else if (leading.size() == 1)
        fill(Eigen::Tensor<bool, 2, Eigen::RowMajor>(leading[0], flag_count));
      else if (leading.size() == 2)
        fill(Eigen::Tensor<bool, 3, Eigen::RowMajor>(leading[0], leading[1], flag_count));
      else
        fill(Eigen::Tensor<bool, 4, Eigen::RowMajor>(leading[0], leading[1], leading[2], flag_count));
    }
    return at;
  }

  [[nodiscard]] posbias::PairPositions pair_positions(const BatchShape& leading, posbias::Executor executor) const {
    posbias::PairPositions at;
    at.executor = executor;
    if (together) {
      at.q_k = q.positions(leading, type);
    } else {
      at.q = q.positions(leading, type);
      at.k = k.positions(leading, type);
    }
    return at;
  }

 private:
  [[nodiscard]] PositionCase permuted_flags(const std::vector<Index>& order, Where queries, Where keys,
                                            bool one) const {
    PositionCase result = *this;
    result.q = std::move(queries);
    result.k = std::move(keys);
    if (flag_rows != 0) {
      result.flags.clear();
      for (const Index n : order)
        for (Index i = 0; i < flag_count; ++i) result.flags.push_back(flag(n, i, flag_count));
      if (one) result.flag_rows = 0;
    }
    return result;
  }
};

/// The cases of these sizes. Positions are 100 and more wherever that is not what a case is about.
inline std::vector<PositionCase> position_cases(const Shape& shape) {
  const Index B = shape.B;
  const Index L1 = shape.L1;
  const Index L2 = shape.L2;
  const auto both = [&](const auto& position) {
    return std::pair(Where::listed(0, L1, position), Where::listed(0, L2, position));
  };
  const auto each = [&](const auto& position) {
    return std::pair(Where::listed(B, L1, position), Where::listed(B, L2, position));
  };
  std::vector<PositionCase> all;
  const auto add = [&](std::string name, std::pair<Where, Where> where) {
    all.push_back({std::move(name), std::move(where.first), std::move(where.second)});
  };
  const auto row = [](auto f) { return [f](Index n, Index i) { return f(n, i); }; };

  add("default", {});
  add("range", {Where::range(100), Where::range(100)});
  add("only q", {Where::range(1000), {}});
  add("only k", {{}, Where::listed(0, L2, row([](Index, Index i) { return 300 + i; }))});
  add("consecutive list", both(row([](Index, Index i) { return 137 + i; })));
  add("rows of their own", each(row([](Index n, Index i) { return 100 + 31 * n + i; })));
  add("packed rows", each(row([](Index n, Index i) { return 100 + i % (3 + n); })));
  add("gaps", both(row([](Index, Index i) { return 100 + i + i * i / 3; })));
  add("wide gaps", both(row([](Index, Index i) { return i % 2 == 0 ? i : 1000000000000 + i; })));
  add("wide gaps per entry", each(row([](Index n, Index i) { return 100 + 1000 * n + i * (i % 3) * 100003; })));
  add("descending", both(row([](Index, Index i) { return 300 - i; })));
  add("duplicates", both(row([](Index, Index i) { return 100 + i / 3; })));
  add("negative", both(row([](Index n, Index i) { return -150 + 2 * i - n; })));
  add("one position for all", both(row([](Index, Index) { return 123; })));
  add("half-integers", both(row([](Index, Index i) { return 100.5L + static_cast<Real>(i); })));
  add("reals per entry", each(row([](Index n, Index i) { return 100.25L + 0.375L * static_cast<Real>(i * (n + 1)); })));
  add("real queries, integer keys",
      {Where::listed(B, L1, row([](Index n, Index i) { return 101.5L + static_cast<Real>(3 * i - n); })),
       Where::range(100)});
  add("offset 2^40", {Where::range(std::int64_t{1} << 40), Where::range((std::int64_t{1} << 40) - 3)});
  add("fewer positions", {Where::listed(0, L1 - 2, row([](Index, Index i) { return 100 + i; })),
                          Where::listed(0, L2 - 3, row([](Index, Index i) { return 101 + i; }))});
  add("fewer positions per entry", {Where::listed(B, L1 - 1, row([](Index n, Index i) { return 100 + 7 * n + i; })),
                                    Where::listed(B, L2 - 2, row([](Index n, Index i) { return 100 + i * (n + 2); }))});
  add("fewer reals", {Where::listed(0, L1 - 3, row([](Index, Index i) { return 100.5L + static_cast<Real>(i); })),
                      Where::listed(0, L2 - 1, row([](Index, Index i) { return 100 + 2 * i; }))});
  add("fewer, far apart",
      {Where::listed(B, L1 - 1, row([](Index n, Index i) { return 100 + i + n; })),
       Where::listed(B, L2 - 2, row([](Index n, Index i) { return 100 + (i % 2) * 7000000 + n; }))});
  add("no positions", {Where::listed(0, 0, row([](Index, Index) { return 0; })), Where::range(100)});

  Numbers numbers(5);
  std::vector<Index> scattered;
  for (Index i = 0; i < B * std::max(L1, L2); ++i) scattered.push_back(static_cast<Index>(100 + numbers.below(40)));
  add("scattered", each(row([=](Index n, Index i) { return scattered[static_cast<std::size_t>(n + B * i)]; })));

  // Differences of cubes hardly repeat, and each costs a bias all it has: not every token of the longest shapes.
  const auto no_repeats = [&](const auto& position) {
    return std::pair(Where::listed(B, std::min<Index>(L1, 30), position),
                     Where::listed(B, std::min<Index>(L2, 50), position));
  };
  add("reals that do not repeat",
      no_repeats(row([](Index n, Index i) { return 100 + static_cast<Real>(i * i * i * (5 + 2 * n)) / 16; })));
  add("integers that do not repeat", no_repeats(row([](Index n, Index i) { return 100 + i * i * i * (5 + 2 * n); })));

  all.push_back({"shared flags", Where::range(100), Where::range(100), false, 0, L1, {}});
  for (Index l = 0; l < L1; ++l) all.back().flags.push_back(l % 3 != 1);
  all.push_back({"fewer flags per entry",
                 Where::listed(B, L1 - 1, row([](Index n, Index i) { return 100 + 5 * n + i; })),
                 {},
                 false,
                 B,
                 L1 - 2,
                 {}});
  for (Index n = 0; n < B; ++n)
    for (Index l = 0; l < L1 - 2; ++l) all.back().flags.push_back((l + n) % 2 == 0);

  if (L1 == L2) {
    all.push_back({"q_k", Where::range(100), Where::range(100), true, 0, 0, {}});
    const Where some = Where::listed(B, L1 - 2, row([](Index n, Index i) { return 100 + 3 * n + i * i; }));
    all.push_back({"q_k, fewer", some, some, true, 0, 0, {}});
  }
  return all;
}

}  // namespace posbias_test
