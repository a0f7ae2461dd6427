// SPDX-License-Identifier: MIT
#include "posbias/core/optional_tensor.hpp"

#include <array>
#include <numeric>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"

using posbias::Index;
using posbias::OptionalTensor;
using posbias::detail::broadcast;
using posbias::detail::insert_dimension;
using posbias::detail::TensorView;

namespace {

template <class S, int Rank>
using Row = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
template <class S, int Rank>
using Col = Eigen::Tensor<S, Rank, Eigen::ColMajor>;
using Numbers = OptionalTensor<float, double>;

// What it takes: tensors that stay, and maps, which only refer.
static_assert(std::is_constructible_v<Numbers, Row<float, 3>&> && std::is_constructible_v<Numbers, Col<double, 1>&>);
static_assert(std::is_constructible_v<Numbers, const Row<double, 14>&>);
static_assert(std::is_constructible_v<Numbers, Eigen::TensorMap<Row<float, 2>>>);
static_assert(std::is_constructible_v<Numbers, Eigen::TensorMap<const Col<double, 2>>>);
static_assert(std::is_constructible_v<Numbers, Row<float, 3>> && std::is_constructible_v<Numbers, const Row<float, 3>>);
static_assert(!std::is_constructible_v<Numbers, decltype(Row<float, 3>().exp())>, "an expression has no entries");
static_assert(!std::is_constructible_v<Numbers, decltype(Row<float, 3>().chip(0, 0))>);
static_assert(!std::is_constructible_v<Numbers, Row<int, 3>&> && !std::is_constructible_v<Numbers, Row<bool, 3>&>);
static_assert(!std::is_constructible_v<Numbers, Row<double, 0>&>, "a number is no tensor");
static_assert(!std::is_constructible_v<Numbers, std::vector<double>&>);
static_assert(std::is_constructible_v<OptionalTensor<int, long, long long>, Row<long, 3>&> &&
              std::is_constructible_v<OptionalTensor<int, long, long long>, Row<long long, 3>&>);

template <class Tensor>
Tensor numbered(auto... sizes) {
  Tensor tensor(sizes...);
  std::iota(tensor.data(), tensor.data() + tensor.size(), 0);
  return tensor;
}

/// Entries in the order of their places, and the shape.
struct Seen {
  std::vector<double> entries{};
  std::vector<Index> shape{};
  bool single = false;
};

Seen seen(const Numbers& numbers) {
  Seen result;
  const auto& entries = numbers.view().entries;
  numbers.view().visit([&]<class S>(const S* first) {
    result.single = std::is_same_v<S, float>;
    result.shape.assign(entries.leading.shape().begin(), entries.leading.shape().end());
    for (Index n = 0; n < entries.batches(); ++n)
      result.entries.push_back(static_cast<double>(first[entries.offset(n)]));
  });
  return result;
}

/// A view (B, *, ...) of whole entries, for what the broadcast gives.
template <int Trailing>
TensorView<const double, Trailing> wanted(const std::vector<Index>& leading,
                                          const std::array<Index, Trailing>& trailing) {
  TensorView<const double, Trailing> view;
  view.leading = posbias::detail::BatchShape(leading);
  view.shape = trailing;
  return view;
}

TensorView<const double, 0> entries_of(const OptionalTensor<double>& tensor) {
  const auto& view = tensor.view().entries;
  return {static_cast<const double*>(view.data), view};
}

}  // namespace

TEST_CASE("an optional tensor is none, or refers to one", "[optional_tensor]") {
  const Numbers none;
  CHECK(!none.given());
  CHECK(none.region().empty);
  none.view().visit([](const auto&) { FAIL_CHECK("nothing to visit"); });

  Row<double, 2> rows = numbered<Row<double, 2>>(2, 3);
  Numbers numbers = rows;
  CHECK(numbers.given());
  CHECK(seen(numbers).shape == std::vector<Index>{2, 3});
  CHECK(seen(numbers).entries == std::vector<double>{0, 1, 2, 3, 4, 5});
  CHECK(!seen(numbers).single);
  rows(1, 0) = 33;
  CHECK(seen(numbers).entries == std::vector<double>{0, 1, 2, 33, 4, 5});
  CHECK(numbers.view().entries.data == rows.data());
  CHECK(numbers.region().extent() == 6 * Index{sizeof(double)});

  const Col<float, 2> columns = numbered<Col<float, 2>>(2, 3);
  numbers = columns;
  CHECK(seen(numbers).single);
  CHECK(seen(numbers).entries == std::vector<double>{0, 2, 4, 1, 3, 5});
  CHECK(numbers.region().extent() == 6 * Index{sizeof(float)});

  numbers = Eigen::TensorMap<Row<double, 1>>(rows.data() + 3, 3);
  CHECK(seen(numbers).entries == std::vector<double>{33, 4, 5});
  const Row<double, 2> empty(0, 3);
  numbers = empty;
  CHECK(numbers.given());
  CHECK(seen(numbers).entries.empty());
  numbers = {};
  CHECK(!numbers.given());
}

TEST_CASE("an optional tensor keeps a temporary, and shares it with its copies", "[optional_tensor]") {
  auto rows = numbered<Row<double, 2>>(2, 3);
  const double* data = rows.data();
  Numbers copy;
  {
    const Numbers numbers = std::move(rows);
    copy = numbers;
  }
  CHECK(copy.view().entries.data == data);  // moved, not copied
  CHECK(seen(copy).entries == std::vector<double>{0, 1, 2, 3, 4, 5});
  CHECK(seen(numbered<Col<float, 2>>(2, 3)).entries == std::vector<double>{0, 2, 4, 1, 3, 5});
  const Row<double, 2> more = numbered<Row<double, 2>>(1, 2);
  copy = std::move(more);  // const: copied
  CHECK(seen(copy).entries == std::vector<double>{0, 1});
  CHECK(copy.view().entries.data != more.data());
  copy = more;
  CHECK(copy.view().entries.data == more.data());
}

TEST_CASE("a dimension may be inserted at any place", "[optional_tensor]") {
  const Row<double, 2> tensor = numbered<Row<double, 2>>(2, 3);
  for (const std::size_t place : {0U, 1U, 2U}) {
    auto entries = entries_of(tensor);
    insert_dimension(entries, place);
    std::vector<Index> shape{2, 3};
    shape.insert(shape.begin() + static_cast<std::ptrdiff_t>(place), 1);
    CHECK(std::vector<Index>(entries.leading.shape().begin(), entries.leading.shape().end()) == shape);
    for (Index n = 0; n < 6; ++n) CHECK(*entries.batch(n).data() == static_cast<double>(n));
  }
}

TEST_CASE("dimensions of size 1 stand for any size, where they may", "[optional_tensor]") {
  // (B, *, L1, L2), the first of which may be shared.
  const auto entry = [](const TensorView<const double, 2>& view, Index n, Index i, Index j) {
    return view.batch(n).data()[i * view.strides[0] + j * view.strides[1]];
  };
  const auto fits = [](const auto& tensor, TensorView<const double, 2>& to) {
    const TensorView<const double, 0> entries = entries_of(tensor);
    to.data = entries.data;
    return broadcast(entries, {true, false}, to);
  };
  auto view = wanted<2>({2, 3}, {5, 7});
  const auto full = numbered<Col<double, 4>>(2, 3, 5, 7);
  REQUIRE(fits(full, view));
  for (Index n = 0; n < 6; ++n)
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 7; ++j) CHECK(entry(view, n, i, j) == full(n / 3, n % 3, i, j));

  const auto shared = numbered<Row<double, 4>>(1, 3, 1, 7);
  REQUIRE(fits(shared, view));
  for (Index n = 0; n < 6; ++n)
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 7; ++j) CHECK(entry(view, n, i, j) == shared(0, n % 3, 0, j));

  CHECK(!fits(numbered<Row<double, 4>>(2, 3, 5, 1), view));  // the last may not be shared
  CHECK(!fits(numbered<Row<double, 4>>(2, 1, 4, 7), view));
  CHECK(!fits(numbered<Row<double, 4>>(3, 3, 5, 7), view));
  CHECK(!fits(numbered<Row<double, 4>>(2, 3, 0, 7), view));
  CHECK(!fits(numbered<Row<double, 3>>(3, 5, 7), view));
  CHECK(!fits(numbered<Row<double, 5>>(1, 2, 3, 5, 7), view));

  // Of none, a single one too.
  auto none = wanted<2>({0}, {5, 1});
  CHECK(fits(numbered<Row<double, 3>>(0, 5, 1), none));
  CHECK(fits(numbered<Row<double, 3>>(1, 5, 1), none));
  CHECK(fits(numbered<Row<double, 3>>(1, 1, 1), none));
  CHECK(!fits(numbered<Row<double, 3>>(2, 5, 1), none));
}
