// SPDX-License-Identifier: MIT
#include "posbias/core/tensor.hpp"

#include <array>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/mdspan.hpp"

using posbias::heads_first;
using posbias::Index;
using posbias::narrow;
using posbias::permute;
using posbias::ShapeError;
using posbias::StoredTensorOf;
using posbias::strided;
using posbias::StridedMap;
using posbias::TensorLike;
using posbias::TensorOf;
using posbias::unflatten;
using posbias::WritableStoredTensorOf;
using posbias::WritableTensorOf;
using posbias_test::Mdspan;
using posbias_test::message_of;

namespace {

template <class S, int Rank>
using RowMajor = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
template <class S, int Rank>
using ColMajor = Eigen::Tensor<S, Rank, Eigen::ColMajor>;
using Row = RowMajor<float, 4>;
using Fixed = Eigen::TensorFixedSize<float, Eigen::Sizes<2, 3, 5>, Eigen::RowMajor>;

// What a tensor is.
static_assert(TensorLike<RowMajor<float, 3>> && TensorLike<ColMajor<double, 0>&> &&
              TensorLike<const RowMajor<bool, 1>&>);
static_assert(TensorLike<Eigen::TensorMap<RowMajor<float, 3>>> &&
              TensorLike<const Eigen::TensorMap<ColMajor<int, 2>>&>);
static_assert(TensorLike<Eigen::TensorMap<const RowMajor<float, 3>>>);
static_assert(TensorLike<Eigen::TensorMap<RowMajor<const float, 3>>>);
static_assert(TensorLike<Eigen::TensorMap<RowMajor<float, 3>, Eigen::Aligned>>);
static_assert(TensorLike<Eigen::Tensor<float, 3, Eigen::RowMajor, int>>);
static_assert(!TensorLike<float> && !TensorLike<float*> && !TensorLike<std::vector<float>>);
static_assert(!TensorLike<RowMajor<float, 3>*>);
using Sum = decltype(std::declval<RowMajor<float, 2>>() + std::declval<RowMajor<float, 2>>());
static_assert(!TensorLike<Sum>, "an expression has no data to refer to");

// Scalar and rank.
static_assert(TensorOf<RowMajor<float, 3>&, float> && TensorOf<const RowMajor<float, 3>&, float, 3>);
static_assert(!TensorOf<RowMajor<float, 3>&, double> && !TensorOf<RowMajor<float, 3>&, float, 4>);
static_assert(TensorOf<Eigen::TensorMap<const RowMajor<float, 3>>, float, 2>);
static_assert(TensorOf<Eigen::TensorMap<RowMajor<const float, 3>>, float, 2>);
static_assert(!TensorOf<std::vector<float>, float>);

// What a hook may write to; the argument is what a forwarding reference deduces.
static_assert(WritableTensorOf<RowMajor<float, 3>&, float, 3> && WritableTensorOf<ColMajor<double, 3>&, double, 2>);
static_assert(!WritableTensorOf<RowMajor<float, 3>, float>, "a temporary would be lost");
static_assert(!WritableTensorOf<const RowMajor<float, 3>&, float> &&
              !WritableTensorOf<const RowMajor<float, 3>, float>);
static_assert(!WritableTensorOf<RowMajor<float, 3>&, double> && !WritableTensorOf<RowMajor<float, 3>&, float, 4>);
static_assert(WritableTensorOf<Eigen::TensorMap<RowMajor<float, 3>>, float, 3>, "a temporary map only refers");
static_assert(WritableTensorOf<Eigen::TensorMap<RowMajor<float, 3>>&, float, 3>);
static_assert(WritableTensorOf<const Eigen::TensorMap<RowMajor<float, 3>>&, float, 3>);
static_assert(!WritableTensorOf<Eigen::TensorMap<const RowMajor<float, 3>>, float>);
static_assert(!WritableTensorOf<Eigen::TensorMap<const RowMajor<float, 3>>&, float>);
static_assert(!WritableTensorOf<Eigen::TensorMap<RowMajor<const float, 3>>, float>);
static_assert(!WritableTensorOf<Sum, float>);

// Tensors that are not Eigen's, and those of a fixed size.
static_assert(TensorLike<StridedMap<float, 3>> && TensorLike<Fixed> && TensorLike<Mdspan<float, 2>>);
static_assert(WritableTensorOf<StridedMap<float, 3>, float, 3> && WritableTensorOf<Mdspan<float, 2>, float>);
static_assert(WritableTensorOf<const StridedMap<float, 3>&, float> && !WritableTensorOf<const Fixed&, float>);
static_assert(!WritableTensorOf<StridedMap<const float, 3>, float> && !WritableTensorOf<Mdspan<const float, 2>, float>);
static_assert(WritableTensorOf<Fixed&, float, 3> && !WritableTensorOf<Fixed, float>);
static_assert(StoredTensorOf<StridedMap<Eigen::bfloat16, 2>, float> && !TensorOf<StridedMap<Eigen::half, 2>, float>);
static_assert(WritableStoredTensorOf<StridedMap<Eigen::half, 2>, float> && !StoredTensorOf<Row, double>);

template <class T>
concept CanBeNarrowed = requires(T&& t) {
  narrow(std::forward<T>(t), 0, 0, 1);
};
static_assert(CanBeNarrowed<Row&> && CanBeNarrowed<const Row&> && !CanBeNarrowed<Row>, "a temporary would be gone");
static_assert(CanBeNarrowed<StridedMap<float, 2>> && CanBeNarrowed<Eigen::TensorMap<Row>>);

template <class T>
std::vector<float> values(const T& map) {
  std::vector<float> result;
  for (Index i = 0; i < map.dimension(0); ++i)
    for (Index j = 0; j < map.dimension(1); ++j) result.push_back(map(i, j));
  return result;
}

}  // namespace

TEST_CASE("tensor: a view is as const as its tensor") {
  Row t(2, 3, 4, 5);
  const Row& to_read = t;
  static_assert(std::is_same_v<decltype(narrow(t, 0, 0, 1)), StridedMap<float, 4>>);
  static_assert(std::is_same_v<decltype(narrow(to_read, 0, 0, 1)), StridedMap<const float, 4>>);
  static_assert(std::is_same_v<decltype(heads_first(to_read)), StridedMap<const float, 4>>);
  static_assert(std::is_same_v<decltype(unflatten(t, 1, {3, 1})), StridedMap<float, 5>>);
  static_assert(std::is_same_v<decltype(permute(narrow(t, 0, 0, 1), {3, 2, 1, 0})), StridedMap<float, 4>>);
  CHECK(narrow(t, 0, 1, 1).data() == &t(1, 0, 0, 0));
}

TEST_CASE("tensor: narrow takes a range of a dimension, counted from either end") {
  std::vector<float> memory(24);
  std::iota(memory.begin(), memory.end(), 0.0F);
  const auto t = strided(memory.data(), std::array{3, 4}, std::array{8, 2});
  CHECK(values(t) == std::vector<float>{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22});
  CHECK(values(narrow(t, 1, 1, 2)) == std::vector<float>{2, 4, 10, 12, 18, 20});
  CHECK(values(narrow(t, -2, -1, 1)) == std::vector<float>{16, 18, 20, 22});
  CHECK(narrow(t, 0, 3, 0).dimension(0) == 0);
  CHECK(message_of<ShapeError>([&] { (void)narrow(t, 1, 3, 2); }) ==
        "posbias::narrow: start = 3, length = 2; dimension 1 of a tensor of shape (3, 4) has 4 elements");
  CHECK(message_of<ShapeError>([&] { (void)narrow(t, 2, 0, 1); }) ==
        "posbias::narrow: dimension = 2; the tensor has shape (3, 4)");
  CHECK_THROWS_AS(narrow(t, 1, -5, 1), ShapeError);
  CHECK_THROWS_AS(narrow(t, 1, 0, -1), ShapeError);
}

TEST_CASE("tensor: permute, unflatten and heads_first read the same elements") {
  Eigen::Tensor<float, 3, Eigen::ColMajor> t(2, 3, 10);
  std::iota(t.data(), t.data() + t.size(), 0.0F);
  const auto split = unflatten(t, 2, {2, 5});
  const auto moved = permute(split, {3, 0, 2, 1});
  CHECK(moved.dimensions() == std::array<Index, 4>{5, 2, 2, 3});
  const auto tokens = heads_first(split);
  CHECK(tokens.dimensions() == std::array<Index, 4>{2, 2, 3, 5});
  for (Index i = 0; i < 2; ++i)
    for (Index j = 0; j < 3; ++j)
      for (Index a = 0; a < 2; ++a)
        for (Index b = 0; b < 5; ++b) {
          CHECK(split(i, j, a, b) == t(i, j, 5 * a + b));
          CHECK(moved(b, i, a, j) == t(i, j, 5 * a + b));
          CHECK(tokens(i, a, j, b) == t(i, j, 5 * a + b));
          CHECK(heads_first(tokens)(i, j, a, b) == t(i, j, 5 * a + b));
        }
  CHECK(unflatten(t, -1, {-1, 2}).dimension(2) == 5);
  CHECK(message_of<ShapeError>([&] {
          (void)unflatten(t, 2, {3, 4});
        }) == "posbias::unflatten: sizes = (3, 4); dimension 2 of a tensor of shape (2, 3, 10) has 10 elements");
  CHECK_THROWS_AS(unflatten(t, 2, {-1, -1}), ShapeError);
  CHECK_THROWS_AS(unflatten(t, 2, {-2, -5}), ShapeError);
  CHECK_THROWS_AS(unflatten(t, 2, {-1, 3}), ShapeError);
  CHECK(message_of<ShapeError>([&] {
          (void)permute(t, {0, 2, 2});
        }) == "posbias::permute: order = (0, 2, 2); it must name each of 3 dimensions once");
  CHECK_THROWS_AS(permute(t, {0, 1}), ShapeError);
}

TEST_CASE("tensor: whatever has data_handle, extent, stride and rank is a tensor") {
  std::vector<float> memory(12);
  std::iota(memory.begin(), memory.end(), 0.0F);
  const Mdspan<const float, 2> t{memory.data(), {2, 3}, {1, 4}};
  CHECK(values(permute(t, {1, 0})) == std::vector<float>{0, 1, 4, 5, 8, 9});
  CHECK_THROWS_AS(strided(memory.data(), std::array{2, -1}, std::array{1, 1}), ShapeError);
}
