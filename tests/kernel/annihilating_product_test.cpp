// SPDX-License-Identifier: MIT
#include "posbias/kernel/annihilating_product.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace posbias::detail;
using posbias::Index;

namespace {

/// a (rows, terms) · b (terms, columns), into what was 1.
template <class S>
struct Product {
  Index rows, terms, columns;
  std::vector<S> a, b;

  Product(Index of_rows, Index of_terms, Index of_columns) : rows(of_rows), terms(of_terms), columns(of_columns) {
    posbias_test::Numbers numbers(1);
    for (Index i = 0; i < rows * terms; ++i)
      a.push_back(numbers.below(3) == 0 ? S(0) : static_cast<S>(numbers.value()));
    for (Index i = 0; i < terms * columns; ++i) b.push_back(static_cast<S>(numbers.value()));
  }

  [[nodiscard]] std::vector<S> by(const auto& product, const std::vector<S>& second) const {
    const Index width = round_up_to_lanes<S>(columns);
    posbias::detail::Workspace<S> packed(packed_size<S>(terms, columns));
    std::vector<S> c(static_cast<std::size_t>(rows * width), S(1));
    product(rows, columns, terms, MatrixView<S>{a.data(), terms, 1},
            pack(MatrixView<S>{second.data(), columns, 1}, terms, columns, packed.data()), c.data(), width);
    return c;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("0 times anything is 0, and finite terms are the bits of the usual product", "", float, double) {
  using S = TestType;
  constexpr std::array odd{std::numeric_limits<S>::quiet_NaN(), std::numeric_limits<S>::infinity()};
  for (const Index columns : {1, 16, 21}) {
    Product<S> p(9, 13, columns);
    const auto usual_added = p.by(multiply<Accumulate::add, S>, p.b);
    const auto usual_fresh = p.by(multiply<Accumulate::overwrite, S>, p.b);
    CHECK(p.by(multiply_annihilating<Accumulate::add, S>, p.b) == usual_added);
    CHECK(p.by(multiply_annihilating<Accumulate::overwrite, S>, p.b) == usual_fresh);
    for (const Index term : {Index{0}, Index{6}, p.terms - 1}) {
      std::vector<S> b = p.b, without = p.b;
      const auto place = static_cast<std::size_t>(term * columns + columns - 1);
      b[place] = odd[static_cast<std::size_t>(term % 2)];
      for (Index j = 0; j < columns; ++j) without[static_cast<std::size_t>(term * columns + j)] = 0;
      const auto found = p.by(multiply_annihilating<Accumulate::add, S>, b);
      const auto expected = p.by(multiply<Accumulate::add, S>, without);
      const Index width = round_up_to_lanes<S>(columns);
      for (Index i = 0; i < p.rows; ++i) {
        const bool hidden = p.a[static_cast<std::size_t>(i * p.terms + term)] == 0;
        for (Index j = 0; j < columns; ++j) {
          const auto at = static_cast<std::size_t>(i * width + j);
          if (hidden)
            CHECK(found[at] == expected[at]);
          else if (j == columns - 1)
            CHECK_FALSE(std::isfinite(found[at]));
          else
            CHECK(found[at] == usual_added[at]);
        }
      }
    }
  }
}
