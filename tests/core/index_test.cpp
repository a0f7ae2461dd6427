// SPDX-License-Identifier: MIT
#include "posbias/core/index.hpp"

#include <concepts>
#include <posbias/posbias.hpp>

#include "support/catch.hpp"

using posbias::Index;
using posbias::IndexOrAll;

// Numbers and `all`, and nothing that would be cut off.
static_assert(std::convertible_to<int, IndexOrAll> && std::convertible_to<std::size_t, IndexOrAll>);
static_assert(std::convertible_to<IndexOrAll, Index> && !std::convertible_to<double, IndexOrAll>);
static_assert(IndexOrAll().of(8) == 8 && IndexOrAll(-1).of(8) == 8 && IndexOrAll(0).of(8) == 0);
static_assert(IndexOrAll(-2).of(8) == -2 && IndexOrAll(3) == 3 && IndexOrAll() == -1);

/// What unqualified names mean to those who take both libraries whole.
namespace both {
using namespace Eigen;
using namespace posbias;

ALiBiOptions all_heads() {
  return {.n_heads = 4, .use_n_heads = all};
}
RotaryOptions all_features() {
  return {.head_dim = 8, .n_dims = all};
}
double first_column(const MatrixXd& matrix) {
  return matrix(all, 0).sum();
}
}  // namespace both

TEST_CASE("all is Eigen's all, and an option's value", "[index]") {
  CHECK(both::all_heads().use_n_heads == posbias::all);
  CHECK(both::all_features().n_dims == posbias::all);
  CHECK(!(posbias::RotaryOptions{.n_dims = 4}.n_dims == posbias::all));
  CHECK(both::first_column(Eigen::MatrixXd::Constant(3, 2, 2)) == 6);
  CHECK(posbias::ALiBi<float>(both::all_heads()).options().use_n_heads == 4);
  CHECK(posbias::Rotary<float>(both::all_features()).options().n_dims == 8);
}
