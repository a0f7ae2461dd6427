// SPDX-License-Identifier: MIT
#include "posbias/tile/tabulated_bias.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "posbias/bias/alibi.hpp"
#include "posbias/bias/relative_position_bias.hpp"
#include "support/catch.hpp"
#include "support/draw_positions.hpp"
#include "support/numbers.hpp"
#include "support/thread_runner.hpp"

namespace {

using namespace posbias;
using posbias_test::draw;
using posbias_test::draw_positions;
using posbias_test::Numbers;
using posbias_test::ThreadRunner;
using Logits = Eigen::Tensor<double, 4, Eigen::RowMajor>;

/// A mask and its gradient in tiles are the mask and its gradient.
template <class Bias>
void check_tiles(const Bias& bias, const PairPositions& at, Index batches, Index queries, Index keys,
                 Numbers& numbers) {
  const Index heads = bias.n_heads();
  Logits mask(batches, heads, queries, keys);
  mask.setZero();
  bias.mod_mask(mask, at);
  const Index leading[] = {batches};
  const auto prepared = bias.prepare(leading, queries, keys, at);

  std::size_t wrong = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    const Index n = draw(numbers, batches), h = draw(numbers, heads), i = draw(numbers, queries),
                j = draw(numbers, keys);
    const Index h_count = 1 + draw(numbers, heads - h), i_count = 1 + draw(numbers, queries - i),
                j_count = 1 + draw(numbers, keys - j);
    std::vector<double> values(static_cast<std::size_t>(h_count * i_count * j_count * 2), 1);
    prepared.add_to({values.data(), i_count * j_count * 2, j_count * 2, 2, n, h, h_count, i, i_count, j, j_count});
    for (Index a = 0; a < h_count; ++a)
      for (Index b = 0; b < i_count; ++b)
        for (Index c = 0; c < j_count; ++c) {
          const auto at_value = static_cast<std::size_t>(((a * i_count + b) * j_count + c) * 2);
          const double expected = 1 + mask(n, h + a, i + b, j + c);
          if (values[at_value] != expected || values[at_value + 1] != 1) ++wrong;
        }
  }
  CHECK(wrong == 0);

  Logits gradient(batches, heads, queries, keys);
  for (Index i = 0; i < gradient.size(); ++i) gradient.data()[i] = numbers.value();
  auto whole = bias.zero_gradients();
  bias.mod_mask_backward(gradient, at, whole);
  auto sums = prepared.accumulator();
  for (Index n = 0; n < batches; ++n)
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < queries; i += 3)
        for (Index j = 0; j < keys; j += 2)
          prepared.accumulate({&gradient(n, h, i, j), queries * keys, keys, 1, n, h, 1, i,
                               std::min<Index>(3, queries - i), j, std::min<Index>(2, keys - j)},
                              sums);
  auto tiled = bias.zero_gradients();
  prepared.finish(sums, tiled);
  std::vector<double> a, b;
  for_each_parameter(whole, [&](std::string_view, const auto& t) { a.insert(a.end(), t.data(), t.data() + t.size()); });
  for_each_parameter(tiled, [&](std::string_view, const auto& t) { b.insert(b.end(), t.data(), t.data() + t.size()); });
  REQUIRE(a.size() == b.size());
  for (std::size_t p = 0; p < a.size(); ++p) CHECK(b[p] == posbias_test::Approx(a[p]).epsilon(1e-11).margin(1e-11));
}

TEST_CASE("a relative bias in tiles is the relative bias, wherever its tokens are") {
  Numbers numbers(3);
  const ALiBi<double> alibi({.n_heads = 5, .use_n_heads = 3, .asymmetric = true, .divide = 2, .learned_div = true});
  const RelativePositionBias<double> t5({.n_heads = 3});
  for (int position_case = 0; position_case < 60; ++position_case) {
    const Index batches = 1 + draw(numbers, 3), queries = 1 + draw(numbers, 9), keys = 1 + draw(numbers, 11);
    const auto positions = [&](bool reals) {
      return PairPositions{.q = draw_positions(numbers, batches, queries, reals),
                           .k = draw_positions(numbers, batches, keys, reals)};
    };
    check_tiles(alibi, positions(true), batches, queries, keys, numbers);
    check_tiles(t5, positions(false), batches, queries, keys, numbers);
  }
}

/// Column-major masks large enough for a table of their own have the bits of row-major ones, and so has the adjoint,
/// whoever runs it; and a mask that is made is one of zeros, modified.
template <class Bias>
void check_layouts(const Bias& bias, const PairPositions& at) {
  constexpr Index batches = 3, queries = 67, keys = 90;
  const Index heads = bias.n_heads();
  Numbers numbers(7);
  Eigen::Tensor<double, 4, Eigen::RowMajor> by_row(batches, heads, queries, keys);
  for (Index i = 0; i < by_row.size(); ++i) by_row.data()[i] = numbers.value();
  Eigen::Tensor<double, 4> by_column(batches, heads, queries, keys);
  std::size_t wrong = 0;
  const auto for_each = [&](const auto& visit) {
    for (Index n = 0; n < batches; ++n)
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < queries; ++i)
          for (Index j = 0; j < keys; ++j) visit(n, h, i, j);
  };
  for_each([&](auto... place) { by_column(place...) = by_row(place...); });
  auto grads_by_row = bias.zero_gradients(), grads_by_column = bias.zero_gradients();
  bias.mod_mask_backward(by_row, at, grads_by_row);
  bias.mod_mask_backward(by_column, at, grads_by_column);
  ThreadRunner runner;
  PairPositions in_threads = at;
  in_threads.executor = runner;
  auto grads_in_threads = bias.zero_gradients();
  bias.mod_mask_backward(by_column, in_threads, grads_in_threads);
  const auto numbers_of = [](const auto& grads) {
    std::vector<double> all;
    for_each_parameter(grads, [&](auto, const auto& t) { all.insert(all.end(), t.data(), t.data() + t.size()); });
    return all;
  };
  CHECK(numbers_of(grads_by_row) == numbers_of(grads_by_column));
  CHECK(numbers_of(grads_by_row) == numbers_of(grads_in_threads));

  bias.mod_mask(by_row, at);
  bias.mod_mask(by_column, at);
  for_each([&](auto... place) { wrong += by_column(place...) == by_row(place...) ? 0 : 1; });

  Eigen::Tensor<double, 4> q(batches, queries, heads, 1), k(batches, keys, heads, 1);
  Eigen::Tensor<double, 4, Eigen::RowMajor> q_row(batches, queries, heads, 1), k_row(batches, keys, heads, 1);
  by_row.setZero();
  bias.mod_mask(by_row, at);
  const auto made_by_column = bias.make_mask(q, k, k, at);
  const auto made_by_row = bias.make_mask(q_row, k_row, k_row, at);
  for_each([&](auto... place) { wrong += made_by_column(place...) == by_row(place...) ? 0 : 1; });
  for_each([&](auto... place) { wrong += made_by_row(place...) == by_row(place...) ? 0 : 1; });
  CHECK(wrong == 0);
}

TEST_CASE("a relative bias of a large mask does not depend on its layout") {
  const ALiBi<double> alibi({.n_heads = 5, .use_n_heads = 3, .asymmetric = true, .divide = 3, .learned_div = true});
  const RelativePositionBias<double> t5({.n_heads = 5});
  const auto list = [](Index count, auto position) {
    Eigen::Tensor<std::int64_t, 1> values(count);
    for (Index i = 0; i < count; ++i) values(i) = position(i);
    return Positions(values);
  };
  const auto packed = [](Index i) { return (Index{1} << 61) + i % 40; };
  const auto scattered = [](Index i) { return i * 37 % 90; };
  const auto some_scattered = [](Index i) { return i < 30 ? i * 7 % 30 : i; };
  for (const PairPositions& at :
       {PairPositions{}, PairPositions{.q = Positions::range(100), .k = Positions::range(90)},
        PairPositions{.q = list(60, [](Index i) { return i; }), .k = list(80, [](Index i) { return i; })},
        PairPositions{.q = list(67, packed), .k = list(90, packed)},
        PairPositions{.q = list(67, scattered), .k = list(90, scattered)},
        PairPositions{.q = list(60, some_scattered), .k = list(85, some_scattered)}}) {
    check_layouts(alibi, at);
    check_layouts(t5, at);
  }
}

/// A module that counts what it is asked for.
class Counting : public RelativeBias<Counting, float> {
 public:
  static constexpr std::string_view name = "Counting";
  [[nodiscard]] Index n_heads() const { return 2; }
  void evaluate(std::span<const double> relative, Index, Index heads, float* values) const {
    evaluations += heads * static_cast<Index>(relative.size());
    std::fill_n(values, heads * static_cast<Index>(relative.size()), 1.0F);
  }
  void evaluate_backward(std::span<const double>, Index, Index, const double*, Gradients&) const {}

  static inline std::atomic<Index> evaluations = 0;
};

Index evaluations_of(const std::function<void()>& call) {
  Counting::evaluations = 0;
  call();
  return Counting::evaluations;
}

TEST_CASE("what is assigned to a mask is the bias, and 0 where a query or a key has no position") {
  const ALiBi<double> bias({.n_heads = 2});
  const Logits q(1, 5, 2, 1), k(1, 6, 2, 1);
  const auto with_positions = [](Index count) {
    return Positions(std::vector<Index>(static_cast<std::size_t>(count), 3));
  };
  for (const Index of_queries : {0, 2, 5})
    for (const Index of_keys : {0, 4, 6}) {
      CAPTURE(of_queries, of_keys);
      const PairPositions at{.q = with_positions(of_queries), .k = with_positions(of_keys)};
      Logits added(1, 2, 5, 6), assigned(1, 2, 5, 6);
      added.setZero();
      assigned.setConstant(7);
      bias.mod_mask(added, q, k, k, at);
      bias.plan_mod_mask<Write::assign>(assigned, q, k, k, at)();
      CHECK(std::equal(added.data(), added.data() + added.size(), assigned.data()));
    }
}

TEST_CASE("a relative bias evaluates each distinct relative position once") {
  const Counting bias;
  const auto mask = [&](Index queries, Index keys, const PairPositions& at = {}) {
    return evaluations_of([&] {
      Eigen::Tensor<float, 4, Eigen::RowMajor> logits(3, 2, queries, keys);
      logits.setZero();
      bias.mod_mask(logits, at);
    });
  };
  CHECK(mask(5, 7) == 2 * (5 + 7 - 1));  // for the whole batch
  CHECK(mask(300, 300) == 2 * 599);
  CHECK(mask(1, 400, {.q = Positions::range(399)}) == 2 * 400);

  Eigen::Tensor<std::int64_t, 1> packed(300);
  for (Index i = 0; i < 300; ++i) packed(i) = i % 100;
  CHECK(mask(300, 300, {.q_k = packed}) == 2 * 199);

  // So far apart that not every integer between can have a value: only what occurs.
  Eigen::Tensor<std::int64_t, 1> apart(5);
  apart.setValues({0, 1'000'000, 2'000'000, 3'000'000, 4'000'000});
  CHECK(mask(5, 5, {.q_k = apart}) == 2 * 9);

  // Two far clusters of 150 tokens: differences within them, and from each to the other.
  Eigen::Tensor<std::int64_t, 1> clusters(300);
  for (Index i = 0; i < 300; ++i) clusters(i) = i % 2 * (Index{1} << 40) + i / 2;
  CHECK(mask(300, 300, {.q_k = clusters}) == 2 * 3 * 299);

  // A row for each batch entry, whose differences are the same.
  Eigen::Tensor<std::int64_t, 2> rows(3, 300);
  for (Index n = 0; n < 3; ++n)
    for (Index i = 0; i < 300; ++i) rows(n, i) = 1000 * n + 7 * i;
  CHECK(mask(300, 300, {.q_k = rows}) == 2 * 599);

  // Reals whose differences repeat, though they are no integers.
  Eigen::Tensor<double, 1> quarters(300);
  for (Index i = 0; i < 300; ++i) quarters(i) = 0.25 * static_cast<double>(i);
  CHECK(mask(300, 300, {.q_k = quarters}) == 2 * 599);

  // Reals that do not repeat: pair by pair.
  Eigen::Tensor<double, 1> roots(300);
  for (Index i = 0; i < 300; ++i) roots(i) = std::sqrt(static_cast<double>(i) + 0.5);
  CHECK(mask(300, 300, {.q_k = roots}) == 3 * 2 * 300 * 300);
}

}  // namespace
