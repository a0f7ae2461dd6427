// SPDX-License-Identifier: MIT
#include "posbias/core/checks.hpp"

#include <string>

#include "support/catch.hpp"

using posbias::ShapeError;
using posbias::detail::attention_shape;
using posbias::detail::view;
using posbias_test::message_of;

namespace {

template <class S, int Rank>
using Row = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
template <class S, int Rank>
using Col = Eigen::Tensor<S, Rank, Eigen::ColMajor>;

template <class Q, class K, class V>
std::string shape_error(const Q& q, const K& k, const V& v) {
  return message_of<ShapeError>([&] { (void)attention_shape({"M", "hook"}, q, k, v); });
}

}  // namespace

TEST_CASE("q, k and v say what an attention looks like", "[checks]") {
  const Row<float, 4> q(2, 5, 6, 8);
  const Row<float, 4> k(2, 7, 6, 8);
  const Col<float, 4> v(2, 7, 6, 11);
  const auto shape = attention_shape({"M", "hook"}, q, k, v);
  CHECK(shape.leading == view<3>(q).leading);
  CHECK(shape.heads == 6);
  CHECK(shape.queries == 5);
  CHECK(shape.keys == 7);

  SECTION("keys may have fewer heads, in groups") {
    const Row<float, 4> grouped(2, 7, 3, 8);
    const auto same = attention_shape({"M", "hook"}, q, grouped, grouped);
    CHECK(same == shape);
  }
  SECTION("any number of leading dimensions") {
    const Row<float, 3> one(5, 3, 8);
    CHECK(attention_shape({"M", "hook"}, one, one, one).leading.rank == 0);
    const Row<float, 6> many(2, 3, 4, 5, 3, 8);
    CHECK(attention_shape({"M", "hook"}, many, many, many).leading.count() == 24);
  }
  SECTION("no keys, no queries, no batch") {
    const Row<float, 4> none(2, 0, 6, 8);
    CHECK(attention_shape({"M", "hook"}, q, none, none).keys == 0);
    CHECK(attention_shape({"M", "hook"}, none, k, v).queries == 0);
    const Row<float, 4> no_batch(0, 5, 6, 8);
    CHECK(attention_shape({"M", "hook"}, no_batch, no_batch, no_batch).leading.count() == 0);
  }
}

TEST_CASE("shapes of q, k and v that do not fit are refused by name", "[checks]") {
  const Row<float, 4> q(2, 5, 6, 8);
  const Row<float, 4> k(2, 7, 6, 8);
  const std::string key_rule =
      "; q has (2, 5, 6, 8) and needs (B, *, L2, NH, H) with the same B, *, NH (or a divisor of it) and H";
  const std::string value_rule =
      "; q has (2, 5, 6, 8) and needs (B, *, L2, NH, any) with the same B, *, and the L2 and NH of k";

  CHECK(shape_error(q, Row<float, 4>(3, 7, 6, 8), k) == "M::hook: k has shape (3, 7, 6, 8)" + key_rule);
  CHECK(shape_error(q, Row<float, 4>(2, 7, 4, 8), k) == "M::hook: k has shape (2, 7, 4, 8)" + key_rule);
  CHECK(shape_error(q, Row<float, 4>(2, 7, 12, 8), k) == "M::hook: k has shape (2, 7, 12, 8)" + key_rule);
  CHECK(shape_error(q, Row<float, 4>(2, 7, 0, 8), k) == "M::hook: k has shape (2, 7, 0, 8)" + key_rule);
  CHECK(shape_error(q, Row<float, 4>(2, 7, 6, 4), k) == "M::hook: k has shape (2, 7, 6, 4)" + key_rule);
  CHECK(shape_error(q, Row<float, 5>(2, 1, 7, 6, 8), k) == "M::hook: k has shape (2, 1, 7, 6, 8)" + key_rule);
  CHECK(shape_error(q, k, Row<float, 4>(2, 5, 6, 8)) == "M::hook: v has shape (2, 5, 6, 8)" + value_rule);
  CHECK(shape_error(q, k, Row<float, 4>(2, 7, 3, 8)) == "M::hook: v has shape (2, 7, 3, 8)" + value_rule);
  CHECK(shape_error(q, k, Row<float, 4>(1, 7, 6, 8)) == "M::hook: v has shape (1, 7, 6, 8)" + value_rule);
}
