// SPDX-License-Identifier: MIT
#include "posbias/core/view.hpp"

#include <array>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using posbias::Index;
using posbias::detail::Elements;
using posbias::detail::for_each_row_major;
using posbias::detail::shape_of;
using posbias::detail::view;

namespace {

template <class S, int Rank>
using Row = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
template <class S, int Rank>
using Col = Eigen::Tensor<S, Rank, Eigen::ColMajor>;

// A view of something const is const.
template <class T>
using ViewData = decltype(view<1>(std::declval<T&>()).data);
static_assert(std::is_same_v<ViewData<Row<float, 2>>, Elements<float>>);
static_assert(std::is_same_v<ViewData<const Row<float, 2>>, Elements<const float>>);
static_assert(std::is_same_v<ViewData<Eigen::TensorMap<Row<float, 2>>>, Elements<float>>);
static_assert(std::is_same_v<ViewData<const Eigen::TensorMap<Row<float, 2>>>, Elements<float>>);
static_assert(std::is_same_v<ViewData<Eigen::TensorMap<const Row<float, 2>>>, Elements<const float>>);
static_assert(std::is_same_v<ViewData<Row<Eigen::half, 2>>, Elements<float>>, "computed in float");

/// Sizes that are prime and different, so that no two axes can be mistaken for each other.
constexpr std::array<Index, 5> primes{2, 3, 5, 7, 11};

template <class Tensor>
Tensor numbered() {
  constexpr int rank = posbias::detail::Traits<Tensor>::rank;
  Eigen::array<Index, rank> sizes{};
  for (std::size_t d = 0; d < static_cast<std::size_t>(rank); ++d) sizes[d] = primes[d];
  Tensor tensor(sizes);
  std::iota(tensor.data(), tensor.data() + tensor.size(), 0);
  return tensor;
}

/// The index of entry n, numbered in row-major order.
template <std::size_t Rank>
Eigen::array<Index, Rank> row_major_index(Index n) {
  Eigen::array<Index, Rank> index{};
  for (std::size_t d = Rank; d-- > 0;) {
    index[d] = n % primes[d];
    n /= primes[d];
  }
  return index;
}

/// Walks the view and looks every element up in the tensor, whose own indexing is the reference.
template <int Trailing, class Tensor>
void check_view(Tensor& tensor) {
  constexpr std::size_t rank = posbias::detail::Traits<Tensor>::rank;
  const auto v = view<Trailing>(tensor);
  REQUIRE(v.leading.rank == static_cast<int>(rank) - Trailing);
  Index count = 1;
  for (std::size_t d = 0; d < rank; ++d) {
    const std::size_t leading = rank - Trailing;
    CHECK((d < leading ? v.leading.sizes[d] : v.shape[d - leading]) == primes[d]);
    if (d >= leading) count *= primes[d];
  }
  Index wrong = 0;
  for (Index n = 0; n < v.batches(); ++n)
    for (Index t = 0; t < count; ++t) {
      const auto index = row_major_index<rank>(n * count + t);
      auto* element = v.batch(n).data();
      for (std::size_t d = 0; d < Trailing; ++d) element += index[rank - Trailing + d] * v.strides[d];
      if (element != tensor.data() + (&tensor(index) - tensor.data())) ++wrong;
    }
  CHECK(v.batches() * count == tensor.size());
  CHECK(wrong == 0);
}

template <int Rank>
void check_rank() {
  auto row = numbered<Row<float, Rank>>();
  auto col = numbered<Col<float, Rank>>();
  check_view<2>(row);
  check_view<2>(col);
  check_view<2>(std::as_const(row));
  if constexpr (Rank >= 3) {
    check_view<3>(row);
    check_view<3>(col);
  }
  Eigen::TensorMap<Row<float, Rank>> row_map(row.data(), row.dimensions());
  Eigen::TensorMap<Col<float, Rank>> col_map(col.data(), col.dimensions());
  check_view<2>(row_map);
  check_view<2>(col_map);
}

}  // namespace

TEST_CASE("views find every element, for any rank, layout and map", "[view]") {
  check_rank<2>();
  check_rank<3>();
  check_rank<4>();
  check_rank<5>();
}

TEST_CASE("a view may begin at any address", "[view]") {
  std::vector<double> memory(31);
  std::iota(memory.begin(), memory.end(), 0);
  Eigen::TensorMap<Row<double, 3>> map(memory.data() + 1, 2, 3, 5);
  const auto v = view<2>(map);
  CHECK(*v.batch(0).data() == 1);
  CHECK(*v.batch(1).data() == 16);
  CHECK(v.batch(1).data()[2 * v.strides[0] + 4 * v.strides[1]] == 30);
}

TEST_CASE("a tensor without leading dimensions is one block", "[view]") {
  auto tensor = numbered<Row<float, 2>>();
  const auto v = view<2>(tensor);
  CHECK(v.leading.rank == 0);
  CHECK(v.leading.shape().empty());
  CHECK(v.batches() == 1);
  CHECK(v.batch(0).data() == tensor.data());
}

TEST_CASE("an empty leading dimension has no blocks", "[view]") {
  const Row<float, 4> tensor(2, 0, 3, 5);
  CHECK(view<2>(tensor).batches() == 0);
  const Row<float, 3> no_tokens(2, 0, 5);
  CHECK(view<2>(no_tokens).batches() == 2);
  CHECK(view<2>(no_tokens).shape == std::array<Index, 2>{0, 5});
}

TEST_CASE("row-major order is the same for both layouts", "[view]") {
  Row<int, 3> row(2, 3, 5);
  Col<int, 3> col(2, 3, 5);
  for (Index i = 0; i < 2; ++i)
    for (Index j = 0; j < 3; ++j)
      for (Index k = 0; k < 5; ++k) row(i, j, k) = col(i, j, k) = static_cast<int>(100 * i + 10 * j + k);
  const auto listed = [](const auto& tensor) {
    std::vector<int> values;
    for_each_row_major(tensor, [&](Index i, int value) {
      CHECK(i == static_cast<Index>(values.size()));
      values.push_back(value);
    });
    return values;
  };
  CHECK(listed(row) == std::vector<int>(row.data(), row.data() + row.size()));
  CHECK(listed(col) == listed(row));
  CHECK(shape_of(col) == std::array<Index, 3>{2, 3, 5});

  Row<int, 0> scalar;
  scalar() = 7;
  CHECK(listed(scalar) == std::vector<int>{7});
}

TEST_CASE("leading dimensions compare by rank and sizes", "[view]") {
  const Row<float, 3> a(2, 3, 5);
  const Col<float, 3> b(2, 7, 5);
  const Row<float, 4> c(2, 1, 3, 5);
  CHECK(view<2>(a).leading == view<2>(b).leading);
  CHECK_FALSE(view<2>(a).leading == view<2>(c).leading);
  CHECK_FALSE(view<2>(a).leading == view<1>(a).leading);
}
