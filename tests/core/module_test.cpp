// SPDX-License-Identifier: MIT
#include "posbias/core/module.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include "posbias/kernel/divide.hpp"
#include "support/catch.hpp"

using posbias::Identity;
using posbias::Index;
using posbias::PositionalModule;
using posbias::ShapeError;
using posbias_test::message_of;

namespace {

template <class S, int Rank>
using Row = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
template <class S, int Rank>
using Col = Eigen::Tensor<S, Rank, Eigen::ColMajor>;

/// The smallest module there can be: adds 1000 to every logit, so that its turn after the mask shows.
class Thousand : public posbias::Module<Thousand> {
 public:
  static constexpr std::string_view name = "Thousand";

  template <posbias::TensorLike M, posbias::TensorLike Q, posbias::TensorLike K, posbias::TensorLike V>
  void mod_mask(M&& mask, const Q&, const K&, const V&, const posbias::PairPositions& = {}) const {
    for (Index i = 0; i < mask.size(); ++i) mask.data()[i] += 1000;
  }
};

/// A module that learns a divisor, or does not.
class Dividing : public posbias::Module<Dividing, posbias::Divide<double>> {
 public:
  static constexpr std::string_view name = "Dividing";
  explicit Dividing(bool learned) : Module(posbias::Divide<double>(name, 2, learned)) {}

  [[nodiscard]] std::string check(const Gradients& gradients) const {
    return message_of<ShapeError>([&] { check_gradients("hook", gradients); });
  }
  [[nodiscard]] bool learns() const { return has_parameters(); }
};

/// Turns queries about, and does not say how to turn them back.
class Turning : public posbias::Module<Turning> {
 public:
  template <posbias::TensorLike Q, posbias::TensorLike K, posbias::TensorLike V>
  void mod_qkv(Q&& q, K&&, V&&, const posbias::PairPositions& = {}) const {
    for (Index i = 0; i < q.size(); ++i) q.data()[i] *= -1;
  }
};

struct TwoWeights {
  posbias::ParameterTensor<float, 2> first;
  posbias::ParameterTensor<float, 1> second;

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor("first.weight", self.first);
    visitor("second.weight", self.second);
  }
};

class Weighted : public posbias::Module<Weighted, TwoWeights> {
 public:
  static constexpr std::string_view name = "Weighted";
  Weighted(Index rows, Index entries) {
    parameters_.first.resize(rows, 3);
    parameters_.second.resize(entries);
    parameters_.first.setConstant(5);
    parameters_.second.setConstant(7);
  }

  [[nodiscard]] std::string check(const Gradients& gradients) const {
    return message_of<ShapeError>([&] { check_gradients("hook", gradients); });
  }
};

/// A module that changes logits or q, k, v of its own would be wrong with the identity's `prepare` and `undo_mod_qkv`.
template <class M>
concept Prepares = requires(const M& module, const Row<float, 4>& q) {
  module.prepare(q, q);
};
template <class M>
concept Undoes = requires(const M& module, const Row<float, 4>& q) {
  module.undo_mod_qkv(q, q, q);
};
static_assert(Prepares<Identity> && Prepares<Weighted> && !Prepares<Thousand>);
static_assert(Undoes<Identity> && Undoes<Thousand> && !Undoes<Turning>);

static_assert(PositionalModule<Identity, float> && PositionalModule<Identity, double>);
static_assert(PositionalModule<Thousand, float>);
static_assert(!PositionalModule<int, float>);
static_assert(std::is_empty_v<posbias::NoParameters>);

template <class Tensor>
std::vector<typename Tensor::Scalar> values_of(const Tensor& tensor) {
  std::vector<typename Tensor::Scalar> values;
  posbias::detail::for_each_row_major(tensor, [&](Index, auto value) { values.push_back(value); });
  return values;
}

constexpr float blocked = -std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("Identity changes nothing", "[module]") {
  const Identity identity;
  Row<float, 4> t(2, 3, 5, 7);
  std::iota(t.data(), t.data() + t.size(), 1.0F);
  const auto before = values_of(t);
  auto grads = identity.zero_gradients();
  identity.mod_x(t);
  identity.mod_x(t, {.pos = posbias::Positions::range(100)});
  identity.mod_qkv(t, t, t);
  identity.mod_mask(t, t, t, t);
  identity.mod_x_backward(t, {}, grads);
  identity.mod_qkv(t, t, {.q_k = posbias::Positions::range(100)});
  identity.mod_qkv_backward(t, t, t, t, t, t, {}, grads);
  identity.mod_qkv_backward(t, t, t, t, {}, grads);
  identity.mod_mask_backward(t, t, t, t, t, t, t, {}, grads);
  CHECK(values_of(t) == before);
}

TEST_CASE("make_mask makes a mask of q's scalar and layout", "[module]") {
  const Row<double, 5> q(2, 3, 5, 7, 8);
  const Row<double, 5> k(2, 3, 11, 7, 8);
  const auto mask = Identity().make_mask(q, k, k);
  static_assert(std::is_same_v<decltype(mask), const Row<double, 5>>);
  CHECK(posbias::detail::shape_of(mask) == std::array<Index, 5>{2, 3, 7, 5, 11});
  CHECK(values_of(mask) == std::vector<double>(2 * 3 * 7 * 5 * 11));

  const Col<float, 3> single(5, 3, 8);
  const auto single_mask = Identity().make_mask(single, single, single);
  static_assert(std::is_same_v<decltype(single_mask), const Col<float, 3>>);
  CHECK(posbias::detail::shape_of(single_mask) == std::array<Index, 3>{3, 5, 5});

  Eigen::TensorMap<const Row<double, 5>> map(q.data(), 2, 3, 5, 7, 8);
  static_assert(std::is_same_v<decltype(Identity().make_mask(map, k, k)), Row<double, 5>>);
}

TEST_CASE("make_mask hands its mask to mod_mask", "[module]") {
  const Row<float, 4> q(1, 2, 1, 4);
  CHECK(values_of(Thousand().make_mask(q, q, q)) == std::vector<float>{1000, 1000, 1000, 1000});
}

TEST_CASE("make_mask puts a smaller additive mask at the bottom right", "[module]") {
  const Row<float, 4> q(2, 4, 3, 8);
  const Row<float, 4> k(2, 5, 3, 8);
  Row<float, 4> smaller(2, 3, 2, 3);
  std::iota(smaller.data(), smaller.data() + smaller.size(), 1.0F);
  Col<float, 4> same(2, 3, 2, 3);
  for (Index n = 0; n < 2; ++n)
    for (Index h = 0; h < 3; ++h)
      for (Index i = 0; i < 2; ++i)
        for (Index j = 0; j < 3; ++j) same(n, h, i, j) = smaller(n, h, i, j);

  const auto mask = Thousand().make_mask(q, k, k, {}, smaller);
  for (Index n = 0; n < 2; ++n)
    for (Index h = 0; h < 3; ++h)
      for (Index i = 0; i < 4; ++i)
        for (Index j = 0; j < 5; ++j)
          CHECK(mask(n, h, i, j) == 1000 + (i >= 2 && j >= 2 ? smaller(n, h, i - 2, j - 2) : 0));
  CHECK(values_of(Thousand().make_mask(q, k, k, {}, same)) == values_of(mask));
}

TEST_CASE("make_mask takes a full mask and an empty one", "[module]") {
  const Row<float, 4> q(1, 2, 3, 8);
  Row<float, 4> full(1, 3, 2, 2);
  std::iota(full.data(), full.data() + full.size(), 1.0F);
  CHECK(values_of(Identity().make_mask(q, q, q, {}, full)) == values_of(full));
  const Row<float, 4> empty(1, 3, 0, 2);
  CHECK(values_of(Identity().make_mask(q, q, q, {}, empty)) == std::vector<float>(12));
}

/// What `make_mask` makes of a mask for q (2, 4, 3, 8) and k (2, 5, 3, 8): entry (n, h, i, j) is `at(n, h, i, j)`.
template <class Mask>
void check_made(Mask mask, const auto& at) {
  const Row<float, 4> q(2, 4, 3, 8);
  const Row<float, 4> k(2, 5, 3, 8);
  for (Index i = 0; i < mask.size(); ++i) mask.data()[i] = static_cast<float>(1 + i);
  const auto made = Identity().make_mask(q, k, k, {}, mask);
  for (Index n = 0; n < 2; ++n)
    for (Index h = 0; h < 3; ++h)
      for (Index i = 0; i < 4; ++i)
        for (Index j = 0; j < 5; ++j) CHECK(made(n, h, i, j) == at(mask, n, h, i, j));
}

TEST_CASE("make_mask broadcasts dimensions of 1 and those missing from the left", "[module]") {
  check_made(Row<float, 4>(1, 1, 4, 5), [](const auto& m, Index, Index, Index i, Index j) { return m(0, 0, i, j); });
  check_made(Col<float, 4>(2, 1, 1, 5), [](const auto& m, Index n, Index, Index, Index j) { return m(n, 0, 0, j); });
  check_made(Row<float, 3>(3, 4, 5), [](const auto& m, Index, Index h, Index i, Index j) { return m(h, i, j); });
  check_made(Col<float, 2>(4, 5), [](const auto& m, Index, Index, Index i, Index j) { return m(i, j); });
  check_made(Row<float, 2>(1, 5), [](const auto& m, Index, Index, Index, Index j) { return m(0, j); });
  check_made(Row<float, 1>(5), [](const auto& m, Index, Index, Index, Index j) { return m(j); });
}

TEST_CASE("make_mask aligns what it broadcasts, if that is smaller", "[module]") {
  check_made(Row<float, 2>(2, 3),
             [](const auto& m, Index, Index, Index i, Index j) { return i >= 2 && j >= 2 ? m(i - 2, j - 2) : 0; });
  check_made(Col<float, 4>(2, 1, 3, 5),
             [](const auto& m, Index n, Index, Index i, Index j) { return i >= 1 ? m(n, 0, i - 1, j) : 0; });
  // Of the queries one that is there is the last, unless it sees all keys; none at all is every one.
  check_made(Row<float, 2>(1, 3),
             [](const auto& m, Index, Index, Index i, Index j) { return i == 3 && j >= 2 ? m(0, j - 2) : 0; });
  check_made(Row<float, 1>(3), [](const auto& m, Index, Index, Index, Index j) { return j >= 2 ? m(j - 2) : 0; });
  check_made(Row<float, 1>(1), [](const auto& m, Index, Index, Index, Index j) { return j == 4 ? m(0) : 0; });
}

TEST_CASE("make_mask reads true as may attend, false as blocked", "[module]") {
  const Row<float, 4> q(1, 3, 1, 8);
  Row<bool, 4> causal(1, 1, 2, 2);
  causal.setConstant(true);
  causal(0, 0, 0, 1) = false;
  const std::vector<float> expected{0, 0, 0, 0, 0, blocked, 0, 0, 0};
  CHECK(values_of(Identity().make_mask(q, q, q, {}, causal)) == expected);

  Col<bool, 4> col(1, 1, 2, 2);
  col.setConstant(true);
  col(0, 0, 0, 1) = false;
  CHECK(values_of(Identity().make_mask(q, q, q, {}, col)) == expected);
  CHECK(values_of(Thousand().make_mask(q, q, q, {}, causal))[5] == blocked);
}

TEST_CASE("make_mask refuses masks that do not fit", "[module]") {
  const Row<float, 4> q(2, 4, 3, 8);
  const Row<float, 4> k(2, 5, 3, 8);
  const auto message = [&](Index b, Index nh, Index l1, Index l2) {
    const Row<float, 4> smaller(b, nh, l1, l2);
    return message_of<ShapeError>([&] { (void)Identity().make_mask(q, k, k, {}, smaller); });
  };
  const std::string rule =
      "; q and k make one of shape (2, 3, 4, 5), of which the last two dimensions may be smaller and all but the last "
      "1 "
      "or missing from the left";
  CHECK(message(3, 3, 4, 5) == "Identity::make_mask: mask has shape (3, 3, 4, 5)" + rule);
  CHECK(message(2, 2, 4, 5) == "Identity::make_mask: mask has shape (2, 2, 4, 5)" + rule);
  CHECK(message(0, 3, 4, 5) == "Identity::make_mask: mask has shape (0, 3, 4, 5)" + rule);
  CHECK(message(2, 3, 5, 5) == "Identity::make_mask: mask has shape (2, 3, 5, 5)" + rule);
  CHECK(message(2, 3, 4, 6) == "Identity::make_mask: mask has shape (2, 3, 4, 6)" + rule);
  CHECK(message(2, 3, 4, 5) == "<nothing thrown>");

  const Row<float, 4> short_v(2, 4, 3, 8);
  CHECK(message_of<ShapeError>([&] {
          (void)Identity().make_mask(q, k, short_v);
        }).find("Identity::make_mask: v has shape (2, 4, 3, 8)") == 0);
}

TEST_CASE("zero_gradients has the parameters' shapes and no values", "[module]") {
  const Weighted module(2, 5);
  const auto grads = module.zero_gradients();
  CHECK(posbias::detail::shape_of(grads.first) == std::array<Index, 2>{2, 3});
  CHECK(values_of(grads.first) == std::vector<float>(6));
  CHECK(values_of(grads.second) == std::vector<float>(5));
  std::vector<float> parameters;
  posbias::for_each_parameter(module, [&](std::string_view, const auto& tensor) {
    parameters.insert(parameters.end(), tensor.data(), tensor.data() + tensor.size());
  });
  CHECK(parameters == std::vector<float>{5, 5, 5, 5, 5, 5, 7, 7, 7, 7, 7});
}

TEST_CASE("gradients of another module are refused", "[module]") {
  const Dividing learned(true);
  const Dividing constant(false);
  CHECK(learned.learns());
  CHECK_FALSE(constant.learns());
  CHECK(learned.check(learned.zero_gradients()) == "<nothing thrown>");
  CHECK(constant.check(constant.zero_gradients()) == "<nothing thrown>");
  CHECK(learned.check(constant.zero_gradients()) ==
        "Dividing::hook: grads lacks an entry div; use the module's zero_gradients()");
  CHECK(constant.check(learned.zero_gradients()) ==
        "Dividing::hook: grads has an entry div that the module does not learn; use the module's zero_gradients()");

  const Weighted module(2, 5);
  CHECK(module.check(module.zero_gradients()) == "<nothing thrown>");
  CHECK(module.check(Weighted(4, 5).zero_gradients()) ==
        "Weighted::hook: grads entry first.weight has shape (4, 3); the parameter has (2, 3); use the "
        "module's zero_gradients()");
  CHECK(module.check(Weighted(2, 6).zero_gradients()) ==
        "Weighted::hook: grads entry second.weight has shape (6); the parameter has (5); use the "
        "module's zero_gradients()");
}

TEST_CASE("parameters are visited with their gradients", "[module]") {
  Weighted module(2, 5);
  auto grads = module.zero_gradients();
  grads.first(1, 2) = 1;
  grads.second(4) = 2;
  std::vector<std::string> names;
  for_each_parameter(module, grads, [&]<class Tensor>(std::string_view name, Tensor& parameter, Tensor& gradient) {
    names.emplace_back(name);
    parameter -= gradient;
    gradient.setZero();
  });
  CHECK(names == std::vector<std::string>{"first.weight", "second.weight"});
  std::vector<float> values;
  const Weighted& learned = module;
  const auto& none = grads;
  for_each_parameter(learned, none,
                     [&]<class Tensor>(std::string_view, const Tensor& parameter, const Tensor& gradient) {
                       values.insert(values.end(), parameter.data(), parameter.data() + parameter.size());
                       CHECK(values_of(gradient) == std::vector<float>(static_cast<std::size_t>(gradient.size())));
                     });
  CHECK(values == std::vector<float>{5, 5, 5, 5, 5, 4, 7, 7, 7, 7, 5});

  CHECK(message_of<ShapeError>([&] {
          for_each_parameter(module, Weighted(4, 5).zero_gradients(),
                             [](auto, auto&, auto&) { FAIL_CHECK("a visit"); });
        }) ==
        "Weighted::for_each_parameter: grads entry first.weight has shape (4, 3); the parameter has (2, 3); use the "
        "module's zero_gradients()");
}

TEST_CASE("parameters can be set through the visitor", "[module]") {
  Weighted module(2, 5);
  posbias::for_each_parameter(module, [](std::string_view name, auto& tensor) {
    if (name == "second.weight") tensor.setConstant(9);
  });
  const Weighted copy = module;
  posbias::for_each_parameter(copy, [](std::string_view name, const auto& tensor) {
    static_assert(std::is_const_v<std::remove_reference_t<decltype(tensor)>>);
    CHECK(tensor.data()[0] == (name == "second.weight" ? 9 : 5));
  });
}

TEMPLATE_TEST_CASE("make_mask takes masks of 16 bits beside q of 16 bits", "[module]", Eigen::bfloat16, Eigen::half) {
  Eigen::Tensor<TestType, 4, Eigen::RowMajor> q(2, 3, 4, 8);
  q.setConstant(TestType(0));
  Eigen::Tensor<TestType, 2, Eigen::RowMajor> smaller(3, 3);
  smaller.setConstant(TestType(-2.5F));
  const auto mask = posbias::Identity().make_mask(q, q, q, {}, smaller);
  CHECK(static_cast<float>(mask(1, 2, 1, 0)) == -2.5F);
}
