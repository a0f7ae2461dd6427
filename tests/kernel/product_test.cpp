// SPDX-License-Identifier: MIT
#include "posbias/kernel/product.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Index;
using posbias::detail::Accumulate;
using posbias::detail::lanes;
using posbias::detail::MatrixView;
using posbias::detail::multiply;
using posbias::detail::pack;
using posbias::detail::packed_size;
using posbias::detail::PackedMatrix;
using posbias::detail::round_up_to_lanes;

namespace {

template <class S>
std::vector<S> numbers(Index count, std::uint64_t seed) {
  posbias_test::Numbers from(seed);
  std::vector<S> values(static_cast<std::size_t>(count));
  // Divided by 3, so that every product and every sum of them is rounded.
  for (S& value : values) value = static_cast<S>(from.value() / 3);
  return values;
}

constexpr Index terms = 29;

/// c (rows, columns) += a (rows, terms) · b (terms, columns), where b and c are row-major.
template <class S>
void add_product(Index rows, Index columns, Index count, MatrixView<S> a, const S* b, Index b_stride, S* c,
                 Index c_stride) {
  multiply<Accumulate::extend>(rows, columns, count, a, PackedMatrix<S>::of_rows(b, b_stride), c, c_stride);
}

/// The same, without gaps.
template <class S>
std::vector<S> product(Index rows, Index columns, const S* a, const S* b, std::vector<S> c) {
  add_product(rows, columns, terms, MatrixView<S>{a, terms, 1}, b, columns, c.data(), columns);
  return c;
}

/// Entries are off by no more than the roundings of 29 products and sums of values below 1.
template <class S>
void check_values(Index rows, Index columns, const std::vector<S>& a, const std::vector<S>& b,
                  const std::vector<S>& before, const std::vector<S>& after) {
  const double rounding = std::is_same_v<S, float> ? 0x1p-24 : 0x1p-53;
  double worst = 0;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) {
      const auto at = static_cast<std::size_t>(i * columns + j);
      auto expected = static_cast<long double>(before[at]);
      for (Index t = 0; t < terms; ++t)
        expected += static_cast<long double>(a[static_cast<std::size_t>(i * terms + t)]) *
                    static_cast<long double>(b[static_cast<std::size_t>(t * columns + j)]);
      worst = std::max(worst, static_cast<double>(std::abs(static_cast<long double>(after[at]) - expected)));
    }
  CHECK(worst <= (terms + 1) * rounding);
  CHECK(worst > 0);
}

template <class S>
void check_products() {
  const Index columns = 3 * lanes<S>;
  for (const Index rows : {1, 7, 8, 9, 17}) {
    INFO(rows << " rows");
    const auto a = numbers<S>(rows * terms, 1);
    const auto b = numbers<S>(terms * columns, 2);
    const auto before = numbers<S>(rows * columns, 3);
    const auto c = product(rows, columns, a.data(), b.data(), before);
    check_values(rows, columns, a, b, before, c);

    // A row by itself.
    for (Index i = 0; i < rows; ++i) {
      const std::vector<S> row(before.begin() + i * columns, before.begin() + (i + 1) * columns);
      CHECK(product(1, columns, a.data() + i * terms, b.data(), row) ==
            std::vector<S>(c.begin() + i * columns, c.begin() + (i + 1) * columns));
    }

    // The columns from j on, so that each stands at every place of a lane.
    for (Index j = 0; j <= lanes<S>; ++j) {
      std::vector<S> shifted = before;
      add_product(rows, columns - lanes<S>, terms, MatrixView<S>{a.data(), terms, 1}, b.data() + j, columns,
                  shifted.data() + j, columns);
      for (Index i = 0; i < rows; ++i)
        for (Index column = 0; column < columns; ++column) {
          const auto at = static_cast<std::size_t>(i * columns + column);
          const bool inside = column >= j && column < j + columns - lanes<S>;
          if (shifted[at] != (inside ? c : before)[at]) FAIL_CHECK("from column " << j << ": " << i << ", " << column);
        }
    }

    // The terms in two calls.
    for (const Index cut : {0, 1, 16, 28}) {
      std::vector<S> twice = before;
      add_product(rows, columns, cut, MatrixView<S>{a.data(), terms, 1}, b.data(), columns, twice.data(), columns);
      add_product(rows, columns, terms - cut, MatrixView<S>{a.data() + cut, terms, 1}, b.data() + cut * columns,
                  columns, twice.data(), columns);
      CHECK(twice == c);
    }
  }
}

}  // namespace

TEST_CASE("an entry of a product is the same bits in any company", "[product]") {
  check_products<float>();
  check_products<double>();
}

TEST_CASE("float weights packed as doubles lose nothing", "[product]") {
  const Index columns = lanes<double> + 3;
  const auto weights = numbers<float>(terms * columns, 1);
  const std::vector<double> exact(weights.begin(), weights.end());
  std::vector<double> packed(static_cast<std::size_t>(packed_size<double>(terms, columns))), expected = packed;
  for (const bool transposed : {false, true}) {
    const auto factor = [&]<class From>(const From* data) {
      return MatrixView<From>{data, transposed ? 1 : columns, transposed ? terms : 1};
    };
    pack(factor(weights.data()), terms, columns, packed.data());
    pack(factor(exact.data()), terms, columns, expected.data());
    CHECK(packed == expected);
  }
}

TEST_CASE("the first factor has strides, and can be read the other way", "[product]") {
  const Index rows = 11, columns = lanes<float>;
  const auto a = numbers<float>(rows * terms, 1);
  const auto b = numbers<float>(terms * columns, 2);
  const std::vector<float> before(static_cast<std::size_t>(rows * columns), 0.25F);
  const auto expected = product(rows, columns, a.data(), b.data(), before);

  // Element (i, t) at 2·(t·(rows + 3) + i); what lies between would show.
  std::vector<float> apart(static_cast<std::size_t>(2 * terms * (rows + 3)), 1e30F);
  for (Index i = 0; i < rows; ++i)
    for (Index t = 0; t < terms; ++t)
      apart[static_cast<std::size_t>(2 * (t * (rows + 3) + i))] = a[static_cast<std::size_t>(i * terms + t)];
  const MatrixView<float> by_row{apart.data(), 2, 2 * (rows + 3)};
  const MatrixView<float> by_term{apart.data(), 2 * (rows + 3), 2};
  for (const MatrixView<float>& factor : {by_row, by_term.transposed()}) {
    auto c = before;
    add_product(rows, columns, terms, factor, b.data(), columns, c.data(), columns);
    CHECK(c == expected);
  }
}

TEST_CASE("rows of b and c may lie apart, and what is between is left alone", "[product]") {
  const Index rows = 9, columns = lanes<double>, b_stride = columns + 3, c_stride = columns + 5;
  const auto a = numbers<double>(rows * terms, 1);
  const auto b = numbers<double>(terms * b_stride, 2);
  const auto before = numbers<double>(rows * c_stride, 3);
  auto c = before;
  add_product(rows, columns, terms, MatrixView<double>{a.data(), terms, 1}, b.data(), b_stride, c.data(), c_stride);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < c_stride; ++j) {
      const auto at = static_cast<std::size_t>(i * c_stride + j);
      double expected = before[at];
      for (Index t = 0; j < columns && t < terms; ++t)
        expected += a[static_cast<std::size_t>(i * terms + t)] * b[static_cast<std::size_t>(t * b_stride + j)];
      CHECK(std::abs(c[at] - expected) <= (j < columns ? 1e-14 : 0));
    }
}

TEST_CASE("a product of no rows, no columns or no terms changes nothing", "[product]") {
  const auto a = numbers<double>(9 * terms, 1);
  const auto before = numbers<double>(9 * lanes<double>, 3);
  for (const auto& [rows, columns, count] :
       {std::array<Index, 3>{0, lanes<double>, terms}, {9, 0, terms}, {9, lanes<double>, 0}}) {
    auto c = before;
    const auto b = numbers<double>(terms * lanes<double>, 2);
    add_product(rows, columns, count, MatrixView<double>{a.data(), terms, 1}, b.data(), lanes<double>, c.data(),
                lanes<double>);
    CHECK(c == before);
  }
}

namespace {

/// A second factor, packed into no more memory than it is said to take.
template <class S>
struct Packed {
  std::vector<S> memory;
  PackedMatrix<S> panels;

  Packed(MatrixView<S> matrix, Index count, Index columns)
      : memory(static_cast<std::size_t>(packed_size<S>(count, columns)), S(-1e30)),
        panels(pack(matrix, count, columns, memory.data())) {}
};

/// c (rows, columns), rows padded to whole lanes, from what it was before.
template <Accumulate how, class S>
std::vector<S> multiplied(Index rows, Index columns, MatrixView<S> a, PackedMatrix<S> b, std::vector<S> c,
                          Index count = terms) {
  multiply<how>(rows, columns, count, a, b, c.data(), round_up_to_lanes<S>(columns));
  return c;
}

template <class S>
MatrixView<S> rows_of(const std::vector<S>& values, Index columns) {
  return {values.data(), columns, 1};
}

template <class S>
void check_multiply(Index rows, Index columns) {
  INFO(rows << " rows, " << columns << " columns");
  const Index padded = round_up_to_lanes<S>(columns);
  const auto a = numbers<S>(rows * terms, 1), b = numbers<S>(terms * columns, 2), before = numbers<S>(rows * padded, 3);
  const Packed<S> packed(rows_of(b, columns), terms, columns);
  const std::vector<S> zeros(before.size());

  // All columns of c, the padding too: b is 0 there.
  std::vector<S> b_padded(static_cast<std::size_t>(terms * padded));
  for (Index t = 0; t < terms; ++t) std::copy_n(b.begin() + t * columns, columns, b_padded.begin() + t * padded);
  const auto fresh = multiplied<Accumulate::overwrite>(rows, columns, rows_of(a, terms), packed.panels, before);
  const auto added = multiplied<Accumulate::add>(rows, columns, rows_of(a, terms), packed.panels, before);
  const auto continued = multiplied<Accumulate::extend>(rows, columns, rows_of(a, terms), packed.panels, before);
  check_values(rows, padded, a, b_padded, zeros, fresh);
  check_values(rows, padded, a, b_padded, before, added);
  check_values(rows, padded, a, b_padded, before, continued);

  // What the policies say, to the last bit.
  CHECK(continued == product(rows, padded, a.data(), b_padded.data(), before));
  CHECK(fresh == product(rows, padded, a.data(), b_padded.data(), zeros));
  const std::vector<S> nan(before.size(), std::numeric_limits<S>::quiet_NaN());
  CHECK(multiplied<Accumulate::overwrite>(rows, columns, rows_of(a, terms), packed.panels, nan) == fresh);
  std::vector<S> sums = fresh;
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += before[i];
  CHECK(added == sums);

  // A row by itself.
  for (Index i = 0; i < rows; ++i) {
    const auto row = [&](const std::vector<S>& from) {
      return std::vector<S>(from.begin() + i * padded, from.begin() + (i + 1) * padded);
    };
    const MatrixView<S> of_row{a.data() + i * terms, terms, 1};
    CHECK(multiplied<Accumulate::overwrite>(1, columns, of_row, packed.panels, row(nan)) == row(fresh));
    CHECK(multiplied<Accumulate::add>(1, columns, of_row, packed.panels, row(before)) == row(added));
    CHECK(multiplied<Accumulate::extend>(1, columns, of_row, packed.panels, row(before)) == row(continued));
  }

  // A column by itself, in the first place of a lane.
  for (Index j = 0; j < columns; ++j) {
    const Packed<S> column({b.data() + j, columns, 1}, terms, 1);
    const auto alone = multiplied<Accumulate::overwrite>(rows, 1, rows_of(a, terms), column.panels,
                                                         std::vector<S>(static_cast<std::size_t>(rows * lanes<S>)));
    for (Index i = 0; i < rows; ++i)
      if (alone[static_cast<std::size_t>(i * lanes<S>)] != fresh[static_cast<std::size_t>(i * padded + j)])
        FAIL_CHECK("column " << j << " of row " << i);
  }

  // From a column and a term on; the terms in two calls.
  for (Index j = 0; j < columns; j += lanes<S>) {
    const auto rest = multiplied<Accumulate::overwrite>(rows, columns - j, rows_of(a, terms), packed.panels.from(0, j),
                                                        std::vector<S>(static_cast<std::size_t>(rows * (padded - j))));
    for (Index i = 0; i < rows; ++i)
      CHECK(std::equal(rest.begin() + i * (padded - j), rest.begin() + (i + 1) * (padded - j),
                       fresh.begin() + i * padded + j));
  }
  for (const Index cut : {0, 1, 16, 28}) {
    auto twice = multiplied<Accumulate::extend>(rows, columns, rows_of(a, terms), packed.panels, before, cut);
    twice = multiplied<Accumulate::extend>(rows, columns, MatrixView<S>{a.data() + cut, terms, 1},
                                           packed.panels.from(cut, 0), twice, terms - cut);
    CHECK(twice == continued);
  }

  // The first factor with gaps, and the other way round.
  std::vector<S> apart(static_cast<std::size_t>(2 * terms * (rows + 3)), S(1e30));
  for (Index i = 0; i < rows; ++i)
    for (Index t = 0; t < terms; ++t)
      apart[static_cast<std::size_t>(2 * (t * (rows + 3) + i))] = a[static_cast<std::size_t>(i * terms + t)];
  const MatrixView<S> by_term{apart.data(), 2 * (rows + 3), 2};
  CHECK(multiplied<Accumulate::overwrite>(rows, columns, by_term.transposed(), packed.panels, nan) == fresh);

  // The second factor from a matrix with gaps, and from its transposed.
  std::vector<S> wide(static_cast<std::size_t>(2 * columns * (terms + 1)), S(1e30));
  for (Index j = 0; j < columns; ++j)
    for (Index t = 0; t < terms; ++t)
      wide[static_cast<std::size_t>(2 * (j * (terms + 1) + t))] = b[static_cast<std::size_t>(t * columns + j)];
  const MatrixView<S> by_column{wide.data(), 2 * (terms + 1), 2};
  CHECK(Packed<S>(by_column.transposed(), terms, columns).memory == packed.memory);

  // No terms: nothing, or zeros.
  CHECK(multiplied<Accumulate::overwrite>(rows, columns, rows_of(a, terms), packed.panels, before, 0) == zeros);
  CHECK(multiplied<Accumulate::add>(rows, columns, rows_of(a, terms), packed.panels, before, 0) == before);
  CHECK(multiplied<Accumulate::extend>(rows, columns, rows_of(a, terms), packed.panels, before, 0) == before);
}

}  // namespace

TEMPLATE_TEST_CASE("a packed product is fresh, added or continued, the same bits in any company", "[product]", float,
                   double) {
  using S = TestType;
  for (const Index rows : {1, 3, 8, 9, 17})
    for (const Index columns : {Index{1}, lanes<S> - 1, lanes<S>, 2 * lanes<S> + 3}) check_multiply<S>(rows, columns);
}

TEST_CASE("long sums lose less where they are added", "[product]") {
  // 2^24 + 1 is not a float: one by one nothing would come of the ones.
  const std::vector<float> a(8, 1.0F), b(8, 1.0F);
  const Packed<float> packed(rows_of(b, 1), 8, 1);
  const std::vector<float> before(static_cast<std::size_t>(lanes<float>), 0x1p24F);
  CHECK(multiplied<Accumulate::add>(1, 1, rows_of(a, 8), packed.panels, before, 8)[0] == 0x1p24F + 8);
  CHECK(multiplied<Accumulate::extend>(1, 1, rows_of(a, 8), packed.panels, before, 8)[0] == 0x1p24F);
}

TEMPLATE_TEST_CASE("a matrix of 16 bits packs as its floats do", "[product]", Eigen::bfloat16, Eigen::half) {
  using posbias::detail::Elements;
  using posbias::detail::StoredMatrix;
  constexpr Index columns = 21;
  for (const Index count : {1, 63, 64, 65, 200}) {
    const std::vector<float> values = numbers<float>(count * columns * 2, 1);
    std::vector<TestType> stored(values.size());
    std::vector<float> widened(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      stored[i] = static_cast<TestType>(values[i]);
      widened[i] = static_cast<float>(stored[i]);
    }
    const std::array<std::array<Index, 2>, 3> strides{
        {{columns, 1}, {1, count}, {2 * columns, 2}}};  // of terms, columns
    for (const auto& [term, column] : strides) {
      CAPTURE(count, term, column);
      std::vector<float> packed(static_cast<std::size_t>(packed_size<float>(count, columns))), expected = packed;
      pack(StoredMatrix<float>{Elements<const float>(stored.data()), term, column}, count, columns, packed.data());
      pack(MatrixView<float>{widened.data(), term, column}, count, columns, expected.data());
      CHECK(packed == expected);
    }
  }
}

TEST_CASE("a packed matrix is lanes of columns, term after term, zeros behind the last", "[product]") {
  constexpr Index width = lanes<double>;
  std::vector<double> matrix;
  for (Index t = 0; t < 3; ++t)
    for (Index j = 0; j < width + 2; ++j) matrix.push_back(static_cast<double>(100 * (t + 1) + j));
  const Packed<double> packed(rows_of(matrix, width + 2), 3, width + 2);
  REQUIRE(packed.memory.size() == static_cast<std::size_t>(2 * 3 * width));
  CHECK(packed.panels.panel_stride == 3 * width);
  for (Index panel = 0; panel < 2; ++panel)
    for (Index t = 0; t < 3; ++t)
      for (Index l = 0; l < width; ++l) {
        const Index j = panel * width + l;
        const double expected = j < width + 2 ? static_cast<double>(100 * (t + 1) + j) : 0;
        CHECK(packed.memory[static_cast<std::size_t>((panel * 3 + t) * width + l)] == expected);
        if (l == 0) CHECK(packed.panels.from(t, j).data == packed.memory.data() + (panel * 3 + t) * width);
      }
}
