// SPDX-License-Identifier: MIT
#include "posbias/core/compose.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/bias/alibi.hpp"
#include "posbias/bias/relative_position_bias.hpp"
#include "posbias/embedding/sinusoidal.hpp"
#include "posbias/rotation/rotary.hpp"
#include "posbias/tile/logit_tile.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

namespace {

using namespace posbias;
using posbias_test::message_of;
using posbias_test::Numbers;

template <class S, int Rank>
using Row = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
using Tokens = Row<double, 3>;
using Heads = Row<double, 4>;
using Values = std::vector<double>;
using Names = std::vector<std::string>;

template <class Tensor>
Values values_of(const Tensor& tensor) {
  return {tensor.data(), tensor.data() + tensor.size()};
}

template <class Tensor>
Tensor filled(Tensor tensor, std::uint64_t seed) {
  Numbers numbers(seed);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = numbers.value();
  return tensor;
}

template <class Owner>
Names names_of(const Owner& owner) {
  Names names;
  for_each_parameter(owner, [&](std::string_view name, const auto&) { names.emplace_back(name); });
  return names;
}

/// All parameters, or all gradients, one after another.
template <class Owner>
Values parameters_of(const Owner& owner) {
  Values values;
  for_each_parameter(owner, [&](std::string_view, const auto& tensor) {
    values.insert(values.end(), tensor.data(), tensor.data() + tensor.size());
  });
  return values;
}

template <class Owner>
void set(Owner& owner, const std::string& parameter, double value) {
  for_each_parameter(owner, [&](std::string_view name, auto& tensor) {
    if (name == parameter) tensor.setConstant(value);
  });
}

struct Weight {
  ParameterTensor<double, 0> weight;

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor("weight", self.weight);
  }
};

/// Takes every number t to factor·t + offset: at every hook and, though it is not their adjoint, at those too, so that
/// the order of turns shows in the result. The gradient of "weight" says which x, q, k and v an adjoint was given.
class Step : public Module<Step, Weight> {
 public:
  static constexpr std::string_view name = "Step";
  Step(double factor, double offset) : Module(Weight()), factor_(factor), offset_(offset) {
    parameters_.weight() = factor;
  }

  void operator()(auto&... tensors) const { (step(tensors), ...); }

  template <TensorOf<double> X>
  void mod_x(X& x, const TokenPositions& = {}) const {
    (*this)(x);
  }
  template <TensorOf<double> Q, TensorOf<double> K, TensorOf<double> V>
  void mod_qkv(Q& q, K& k, V& v, const PairPositions& = {}) const {
    (*this)(q, k, v);
  }
  template <TensorOf<double> M>
  void mod_mask(M& mask, const auto& q, const auto&, const auto&, const PairPositions& = {}) const {
    (*this)(mask);
    mask.data()[0] += q.data()[0];
  }
  void mod_x_backward(auto& grad_x, const TokenPositions&, Gradients& grads) const {
    grads.weight() += grad_x.data()[0];
    (*this)(grad_x);
  }
  void mod_qkv_backward(auto& grad_q, auto& grad_k, auto& grad_v, const auto& q, const auto& k, const auto& v,
                        const PairPositions&, Gradients& grads) const {
    grads.weight() += q.data()[0] + 1000 * k.data()[0] + 1000000 * v.data()[0];
    (*this)(grad_q, grad_k, grad_v);
  }
  void mod_mask_backward(auto& grad_mask, auto& grad_q, auto& grad_k, auto&, const auto& q, const auto&, const auto&,
                         const PairPositions&, Gradients& grads) const {
    grads.weight() += q.data()[0];
    (*this)(grad_mask, grad_q, grad_k);
  }
  void undo_mod_qkv(auto& q, auto& k, auto& v, const PairPositions&) const {
    const auto back = [&](auto& tensor) {
      for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = (tensor.data()[i] - offset_) / factor_;
    };
    back(q), back(k), back(v);
  }

 private:
  void step(auto& tensor) const {
    for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = factor_ * tensor.data()[i] + offset_;
  }

  double factor_, offset_;
};

/// Adds a number to q.
class Shift : public Module<Shift> {
 public:
  static constexpr std::string_view name = "Shift";
  explicit Shift(double by) : by_(by) {}

  template <TensorOf<double> Q>
  void mod_qkv(Q&& q, const auto&, const auto&, const PairPositions& = {}) const {
    for (Index i = 0; i < q.size(); ++i) q.data()[i] += by_;
  }
  template <TensorOf<double> Q, TensorOf<double> K, TensorOf<double> V>
  void undo_mod_qkv(Q&& q, K&& k, V&& v, const PairPositions& at = {}) const {
    Shift(-by_).mod_qkv(q, k, v, at);
  }

 private:
  double by_;
};

/// Refuses everything, in its plans only.
class Refusing : public Module<Refusing> {
 public:
  static constexpr std::string_view name = "Refusing";
  auto plan_mod_x(const auto&...) const { return refuse("mod_x"); }
  auto plan_mod_qkv(const auto&...) const { return refuse("mod_qkv"); }
  auto plan_mod_mask(const auto&...) const { return refuse("mod_mask"); }
  auto plan_mod_x_backward(const auto&...) const { return refuse("mod_x_backward"); }
  auto plan_mod_qkv_backward(const auto&...) const { return refuse("mod_qkv_backward"); }
  auto plan_mod_mask_backward(const auto&...) const { return refuse("mod_mask_backward"); }

 private:
  static void (*refuse(std::string_view hook))() { detail::fail<ShapeError>(name, "::", hook); }
};

/// A module that owes nothing to `Module` and has no more than a `PositionalModule` needs: adds 1 to x.
struct Stranger {
  using Gradients = NoParameters;
  void mod_x(auto& x, const TokenPositions&) const { Step(1, 1)(x); }
  void mod_qkv(auto&, auto&, auto&, const PairPositions&) const {}
  void mod_mask(auto&, const auto&, const auto&, const auto&, const PairPositions&) const {}
  void make_mask(const auto&, const auto&, const auto&, const PairPositions&) const {}
  void mod_x_backward(auto&, const TokenPositions&, Gradients&) const {}
  void mod_qkv_backward(auto&, auto&, auto&, const auto&, const auto&, const auto&, const PairPositions&,
                        Gradients&) const {}
  void mod_mask_backward(auto&, auto&, auto&, auto&, const auto&, const auto&, const auto&, const PairPositions&,
                         Gradients&) const {}
  [[nodiscard]] Gradients zero_gradients() const { return {}; }
};

/// Says which q its adjoint was given.
class Witness : public Module<Witness> {
 public:
  static constexpr std::string_view name = "Witness";
  explicit Witness(const void*& seen) : seen_(&seen) {}
  void mod_qkv(auto&, auto&, auto&, const PairPositions& = {}) const {}
  void mod_qkv_backward(auto&, auto&, auto&, const auto& q, const auto&, const auto&, const PairPositions&,
                        Gradients&) const {
    *seen_ = q.data();
  }

 private:
  const void** seen_;
};

/// Adds q's first number to logits; what their gradients add up to goes to the first number of grad_q, and times the
/// number of this module to "weight".
class Content : public Module<Content, Weight> {
 public:
  static constexpr std::string_view name = "Content";
  explicit Content(double number) : Module(Weight()) { parameters_.weight() = number; }

  struct Prepared {
    struct Accumulator {
      double* grad_q;
      double sum;
    };
    double number, q;

    void add_to(const LogitTile<double>& tile) const { tile.data[0] = number * tile.data[0] + q; }
    [[nodiscard]] bool accumulates() const { return true; }
    [[nodiscard]] Accumulator accumulator(auto& grad_q, auto&) const { return {grad_q.data(), 0}; }
    void accumulate(const LogitTile<const double>& tile, Accumulator& sums) const { sums.sum += tile.data[0]; }
    void finish(const Accumulator& sums, Gradients& grads) const {
      *sums.grad_q += sums.sum;
      grads.weight() += number * sums.sum;
    }
  };
  [[nodiscard]] Prepared prepare(const auto& q, const auto&, const PairPositions& = {}) const {
    return {parameters_.weight(), q.data()[0]};
  }
};

/// Everything that hooks and adjoints are given.
struct Attention {
  Tokens x = filled(Tokens(2, 5, 8), 1);
  Heads q = filled(Heads(2, 5, 3, 8), 2);
  Heads k = filled(Heads(2, 7, 3, 8), 3);
  Heads v = filled(Heads(2, 7, 3, 8), 4);
  Heads mask = filled(Heads(2, 3, 5, 7), 5);

  [[nodiscard]] std::vector<Values> values() const {
    return {values_of(x), values_of(q), values_of(k), values_of(v), values_of(mask)};
  }
};

template <class Compose>
void forward(const Compose& compose, Attention& a, const TokenPositions& token = {}, const PairPositions& pair = {}) {
  compose.mod_x(a.x, token);
  compose.mod_qkv(a.q, a.k, a.v, pair);
  compose.mod_mask(a.mask, a.q, a.k, a.v, pair);
}

template <class Compose>
void backward(const Compose& compose, Attention& grad, const Attention& out, typename Compose::Gradients& grads,
              const TokenPositions& token = {}, const PairPositions& pair = {}) {
  compose.mod_mask_backward(grad.mask, grad.q, grad.k, grad.v, out.q, out.k, out.v, pair, grads);
  compose.mod_qkv_backward(grad.q, grad.k, grad.v, out.q, out.k, out.v, pair, grads);
  compose.mod_x_backward(grad.x, token, grads);
}

template <class M, class Q>
concept TakesQkv = requires(const M& m, Q&& t) {
  m.mod_qkv(std::forward<Q>(t), std::forward<Q>(t), std::forward<Q>(t));
};
template <class M>
concept Prepares = requires(M&& m, const Heads& t) {
  std::forward<M>(m).prepare(t, t);
};

template <class M>
concept NeedsNoV = requires(const M& m, Row<double, 4>& q) {
  m.mod_qkv(q, q);
};
static_assert(PositionalModule<Step, double> && PositionalModule<Shift, double> && PositionalModule<Content, double>);
static_assert(PositionalModule<Refusing, double> && PositionalModule<Witness, double>);
static_assert(PositionalModule<Stranger, double> && PositionalModule<Compose<Stranger, Step>, double>);

using Usual = Compose<Sinusoidal<float>, Rotary<float>, Identity>;
static_assert(PositionalModule<Compose<>, float> && PositionalModule<Compose<Identity>, double>);
static_assert(PositionalModule<Usual, float> && PositionalModule<Compose<Identity, Usual>, float>);
static_assert(!PositionalModule<Usual, double> && !PositionalModule<Compose<Identity, Usual>, double>);
static_assert(TakesQkv<Usual, Row<float, 4>&> && TakesQkv<Usual, Eigen::TensorMap<Row<float, 4>>>);
static_assert(!TakesQkv<Usual, Row<double, 4>&> && !TakesQkv<Usual, const Row<float, 4>&>);
static_assert(!TakesQkv<Usual, Row<float, 4>>, "what a temporary becomes would be lost");
static_assert(Prepares<const Compose<Identity>&> && !Prepares<Compose<Identity>>);
static_assert(!Prepares<const Compose<Identity, Stranger>&>, "its bias would be lost");
static_assert(std::is_copy_constructible_v<Usual> && std::is_copy_assignable_v<Usual>);
static_assert(std::is_move_constructible_v<Usual> && std::is_move_assignable_v<Usual>);

}  // namespace

TEST_CASE("Compose calls hooks in order and adjoints in reverse", "[compose]") {
  const Step first(2, 1), second(4, -3), third(0.5, 5);
  const Compose compose(first, second, third);
  Attention together, apart;
  forward(compose, together);
  for (const Step& step : {first, second, third}) step.mod_x(apart.x);
  for (const Step& step : {first, second, third}) step.mod_qkv(apart.q, apart.k, apart.v);
  for (const Step& step : {first, second, third}) step.mod_mask(apart.mask, apart.q, apart.k, apart.v);
  CHECK(together.values() == apart.values());
  CHECK(together.x(0, 0, 0) == ((Attention().x(0, 0, 0) * 2 + 1) * 4 - 3) * 0.5 + 5);

  Attention grad;
  auto grads = compose.zero_gradients();
  compose.mod_x_backward(grad.x, {}, grads);
  const double g = Attention().x(0, 0, 0);
  CHECK(grad.x(0, 0, 0) == ((g * 0.5 + 5) * 4 - 3) * 2 + 1);
  CHECK(parameters_of(grads) == Values{(g * 0.5 + 5) * 4 - 3, g * 0.5 + 5, g});

  grads = compose.zero_gradients();
  compose.mod_mask_backward(grad.mask, grad.q, grad.k, grad.v, together.q, together.k, together.v, {}, grads);
  Attention expected;
  for (const Step& step : {third, second, first}) step(expected.mask, expected.q, expected.k);
  CHECK(values_of(grad.mask) == values_of(expected.mask));
  CHECK(values_of(grad.q) == values_of(expected.q));
  CHECK(values_of(grad.k) == values_of(expected.k));
  const double last_q = together.q(0, 0, 0, 0);
  CHECK(parameters_of(grads) == Values{last_q, last_q, last_q});
}

TEST_CASE("Compose gives every adjoint q, k and v as its own module returned them", "[compose]") {
  const Step first(2, 1), second(4, -3), third(0.5, 5);
  Attention a;
  Values seen;
  for (const Step& step : {first, second, third}) {
    step.mod_qkv(a.q, a.k, a.v);
    seen.push_back(a.q(0, 0, 0, 0) + 1000 * a.k(0, 0, 0, 0) + 1000000 * a.v(0, 0, 0, 0));
  }
  const auto check = [&](const auto& compose) {
    const std::vector<Values> before = a.values();
    Attention grad, expected;
    auto grads = compose.zero_gradients();
    compose.mod_qkv_backward(grad.q, grad.k, grad.v, a.q, a.k, a.v, {}, grads);
    for (const Step& step : {third, second, first}) step(expected.q, expected.k, expected.v);
    CHECK(grad.values() == expected.values());
    CHECK(parameters_of(grads) == seen);
    CHECK(a.values() == before);

    compose.undo_mod_qkv(a.q, a.k, a.v);
    CHECK(a.values() == Attention().values());
    compose.mod_qkv(a.q, a.k, a.v);
  };
  check(Compose(first, second, third));
  check(Compose(Identity(), first, Compose<>(), Compose(second, third), Stranger()));
  check(Compose(Compose(first, Identity(), second), third));
}

TEST_CASE("Compose copies q, k and v only where modules see different ones", "[compose]") {
  const void* seen = nullptr;
  const Witness witness(seen);
  const ALiBi<double> alibi({.n_heads = 3});
  Attention a;
  const auto sees_the_callers = [&](const auto& compose) {
    auto grads = compose.zero_gradients();
    Attention grad;
    seen = nullptr;
    compose.mod_qkv_backward(grad.q, grad.k, grad.v, a.q, a.k, a.v, {}, grads);
    return seen == a.q.data();
  };
  CHECK(sees_the_callers(Compose(witness)));
  CHECK(sees_the_callers(Compose(Compose(alibi, Identity()), witness, alibi)));
  CHECK_FALSE(sees_the_callers(Compose(witness, Shift(1))));
}

TEST_CASE("Compose names parameters by the place of their module", "[compose]") {
  const Rotary<double> learned({.head_dim = 8, .divide = 2, .learned_div = true});
  const ALiBi<double> constant({.n_heads = 3});
  const RelativePositionBias<double> t5({.n_heads = 3}, 1);
  Compose compose(constant, Compose(t5, learned), learned);
  const Names expected{"1.0.relative_attention_bias.weight", "1.1.div", "2.div"};
  CHECK(names_of(compose) == expected);
  CHECK(names_of(std::as_const(compose)) == expected);
  CHECK(names_of(compose.zero_gradients()) == expected);
  CHECK(names_of(Compose()).empty());
  CHECK(parameters_of(compose.zero_gradients()) == Values(32 * 3 + 2));

  set(compose, "1.1.div", 7);
  CHECK(parameters_of(compose.get<1>().get<1>()) == Values{7});
  CHECK(parameters_of(compose.get<2>()) == Values{std::log(2.0)});
  CHECK(parameters_of(compose.get<1>().get<0>()) == parameters_of(t5));
  set(compose.get<2>(), "div", 5);
  CHECK(parameters_of(compose).back() == 5);
}

TEST_CASE("Compose is its modules one after another, gradients in their places", "[compose]") {
  const Sinusoidal<double> sinusoidal({.dim = 8, .divide = 3, .learned_div = true});
  const ALiBi<double> alibi({.n_heads = 3, .divide = 2, .learned_div = true});
  const RelativePositionBias<double> t5({.n_heads = 3}, 1);
  const Rotary<double> rotary({.head_dim = 8, .divide = 4, .learned_div = true});
  const Compose compose(sinusoidal, alibi, Compose(t5, rotary));
  const TokenPositions token{.pos = Positions::range(100)};
  const PairPositions pair{.q = Positions::range(102), .k = Positions::range(100)};

  Attention together, apart;
  forward(compose, together, token, pair);
  sinusoidal.mod_x(apart.x, token);
  rotary.mod_qkv(apart.q, apart.k, apart.v, pair);
  alibi.mod_mask(apart.mask, pair);
  t5.mod_mask(apart.mask, pair);
  CHECK(together.values() == apart.values());

  Attention grad, grad_apart;
  auto grads = compose.zero_gradients();
  backward(compose, grad, together, grads, token, pair);
  auto grads_sinusoidal = sinusoidal.zero_gradients();
  auto grads_alibi = alibi.zero_gradients();
  auto grads_t5 = t5.zero_gradients();
  auto grads_rotary = rotary.zero_gradients();
  sinusoidal.mod_x_backward(grad_apart.x, token, grads_sinusoidal);
  alibi.mod_mask_backward(grad_apart.mask, pair, grads_alibi);
  t5.mod_mask_backward(grad_apart.mask, pair, grads_t5);
  rotary.mod_qkv_backward(grad_apart.q, grad_apart.k, grad_apart.v, apart.q, apart.k, apart.v, pair, grads_rotary);
  CHECK(grad.values() == grad_apart.values());
  Values expected;
  for (const Values& part : {parameters_of(grads_sinusoidal), parameters_of(grads_alibi), parameters_of(grads_t5),
                             parameters_of(grads_rotary)})
    expected.insert(expected.end(), part.begin(), part.end());
  CHECK(parameters_of(grads) == expected);
  CHECK(std::none_of(expected.begin(), expected.begin() + 2, [](double value) { return value == 0; }));
  CHECK(expected.back() != 0);
}

TEST_CASE("Compose needs no v where no module changes it", "[compose]") {
  const Compose turned_twice(Rotary<double>({.head_dim = 8, .learned_div = true}), Identity(),
                             Rotary<double>({.head_dim = 8, .pairing = RotaryPairing::half}));
  const PairPositions at{.q = Positions::range(100), .k = Positions::range(97)};
  Attention with, without, grad, grad_without;
  turned_twice.mod_qkv(with.q, with.k, with.v, at);
  turned_twice.mod_qkv(without.q, without.k, at);
  CHECK(without.values() == with.values());

  auto grads = turned_twice.zero_gradients(), grads_without = turned_twice.zero_gradients();
  turned_twice.mod_qkv_backward(grad.q, grad.k, grad.v, with.q, with.k, with.v, at, grads);
  turned_twice.mod_qkv_backward(grad_without.q, grad_without.k, with.q, with.k, at, grads_without);
  CHECK(grad_without.values() == grad.values());
  CHECK(parameters_of(grads_without) == parameters_of(grads));
  CHECK(parameters_of(grads)[0] != 0);

  static_assert(NeedsNoV<Compose<Rotary<double>, Identity>> && !NeedsNoV<Compose<Rotary<double>, Step>>);
}

TEST_CASE("Compose of one module and of none", "[compose]") {
  const Rotary<double> rotary({.head_dim = 8, .learned_div = true});
  Attention one, expected;
  forward(Compose(rotary), one);
  rotary.mod_qkv(expected.q, expected.k, expected.v);
  CHECK(one.values() == expected.values());

  Attention none;
  const Compose<> identity;
  auto grads = identity.zero_gradients();
  forward(identity, none);
  backward(identity, none, Attention(), grads);
  identity.undo_mod_qkv(none.q, none.k, none.v);
  CHECK(none.values() == Attention().values());
  CHECK(values_of(identity.make_mask(none.q, none.k, none.v)) == Values(2 * 3 * 5 * 7));
}

TEST_CASE("Compose takes modules of any class", "[compose]") {
  const Compose compose(Step(2, 0), Stranger(), Step(4, 0));
  Attention a;
  const double x = a.x(1, 2, 3), q = a.q(1, 2, 0, 3);
  forward(compose, a);
  CHECK(a.x(1, 2, 3) == (x * 2 + 1) * 4);
  CHECK(a.q(1, 2, 0, 3) == q * 8);
  Attention grad;
  auto grads = compose.zero_gradients();
  backward(compose, grad, a, grads);
  CHECK(grad.x(1, 2, 3) == x * 8);
}

TEST_CASE("Compose writes nothing if a module refuses", "[compose]") {
  const auto check = [](const auto& compose) {
    Attention a;
    const Attention out;
    auto grads = compose.zero_gradients();
    const auto message = [](const auto& call) { return message_of<ShapeError>(call); };
    CHECK(message([&] { compose.mod_x(a.x); }) == "Refusing::mod_x");
    CHECK(message([&] { compose.mod_qkv(a.q, a.k, a.v); }) == "Refusing::mod_qkv");
    CHECK(message([&] { compose.mod_mask(a.mask, a.q, a.k, a.v); }) == "Refusing::mod_mask");
    CHECK(message([&] { compose.undo_mod_qkv(a.q, a.k, a.v); }) == "Refusing::mod_qkv");
    CHECK(message([&] { compose.mod_x_backward(a.x, {}, grads); }) == "Refusing::mod_x_backward");
    CHECK(message([&] { compose.mod_qkv_backward(a.q, a.k, a.v, out.q, out.k, out.v, {}, grads); }) ==
          "Refusing::mod_qkv_backward");
    CHECK(message([&] { compose.mod_mask_backward(a.mask, a.q, a.k, a.v, out.q, out.k, out.v, {}, grads); }) ==
          "Refusing::mod_mask_backward");
    CHECK(a.values() == out.values());
    CHECK(parameters_of(grads) == Values(parameters_of(grads).size()));
  };
  check(Compose(Step(2, 1), Step(4, 3), Refusing()));
  check(Compose(Refusing(), Step(2, 1)));
  check(Compose(Step(2, 1), Compose(Step(4, 3), Compose(Refusing(), Identity()))));
}

TEST_CASE("Compose writes nothing if the last module of several cannot use its arguments", "[compose]") {
  const auto learned = [](Index head_dim) {
    return Rotary<double>({.head_dim = head_dim, .divide = 2, .learned_div = true});
  };
  const Sinusoidal<double> learned_sinusoid({.dim = 8, .divide = 2, .learned_div = true});
  const ALiBi<double> learned_bias({.n_heads = 3, .divide = 2, .learned_div = true});
  const Compose compose(learned_sinusoid, learned(8), learned_bias, Sinusoidal<double>({.dim = 4}), learned(4),
                        ALiBi<double>({.n_heads = 5}));
  Attention a;
  const Attention out;
  auto grads = compose.zero_gradients();
  const auto message = [](const auto& call) { return message_of<ShapeError>(call); };
  const std::string x_wrong = " has 8 features; dim = 4";
  const std::string q_wrong = ": q has 8 features per head; head_dim = 4";
  const std::string mask_wrong = " has 3 heads; n_heads = 5";
  CHECK(message([&] { compose.mod_x(a.x); }) == "Sinusoidal::mod_x: x" + x_wrong);
  CHECK(message([&] { compose.mod_qkv(a.q, a.k, a.v); }) == "Rotary::mod_qkv" + q_wrong);
  CHECK(message([&] { compose.mod_mask(a.mask, a.q, a.k, a.v); }) == "ALiBi::mod_mask: mask" + mask_wrong);
  CHECK(message([&] { compose.mod_x_backward(a.x, {}, grads); }) == "Sinusoidal::mod_x_backward: grad_x" + x_wrong);
  CHECK(message([&] { compose.mod_qkv_backward(a.q, a.k, a.v, out.q, out.k, out.v, {}, grads); }) ==
        "Rotary::mod_qkv_backward" + q_wrong);
  CHECK(message([&] { compose.mod_mask_backward(a.mask, a.q, a.k, a.v, out.q, out.k, out.v, {}, grads); }) ==
        "ALiBi::mod_mask_backward: grad_mask" + mask_wrong);
  CHECK(a.values() == out.values());
  CHECK(parameters_of(grads) == Values(4));

  // Grads of a module that does not learn.
  const Compose constant(learned(8), Rotary<double>({.head_dim = 8}));
  auto other = Compose(learned(8), learned(8)).zero_gradients();
  CHECK_THAT(message([&] { constant.mod_qkv_backward(a.q, a.k, a.v, out.q, out.k, out.v, {}, other); }),
             posbias_test::contains("grads has an entry div that the module does not learn"));
  CHECK(a.values() == out.values());
  CHECK(parameters_of(other) == Values(2));
}

namespace {

/// The loss sum of w·q + u·k of what a module makes of q and k, whose adjoints have w and u.
template <class Tensor>
double loss(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& u) {
  double sum = 0;
  for (Index i = 0; i < q.size(); ++i) sum += w.data()[i] * q.data()[i];
  for (Index i = 0; i < k.size(); ++i) sum += u.data()[i] * k.data()[i];
  return sum;
}

/// By central differences of fourth order in one parameter.
template <class Compose>
double slope(Compose compose, const std::string& parameter, const std::function<double(const Compose&)>& loss_of) {
  const double value = [&] {
    double result = 0;
    for_each_parameter(compose, [&](std::string_view name, const auto& tensor) {
      if (name == parameter) result = static_cast<double>(tensor.data()[0]);
    });
    return result;
  }();
  const double step = 0x1p-10;
  const auto at = [&](double t) {
    set(compose, parameter, value + t);
    return loss_of(compose);
  };
  return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
}

/// The gradient of `parameter` is that of differences, for q (a map), k and v of this layout.
template <int Layout, class Compose>
void check_gradient(const Compose& compose, const std::string& parameter) {
  using Tensor = Eigen::Tensor<double, 4, Layout>;
  const auto w = filled(Tensor(2, 5, 3, 8), 6), u = filled(Tensor(2, 7, 3, 8), 7);
  const PairPositions at{.q = Positions::range(11), .k = Positions::range(7)};
  auto q = filled(Tensor(2, 5, 3, 8), 1), k = filled(Tensor(2, 7, 3, 8), 2), v = k;
  const double expected = slope<Compose>(compose, parameter, [&, q, k, v](const Compose& changed) {
    auto new_q = q, new_k = k, new_v = v;
    changed.mod_qkv(new_q, new_k, new_v, at);
    return loss(new_q, new_k, w, u);
  });
  compose.mod_qkv(q, k, v, at);
  auto grad_q = w, grad_k = u, grad_v = v;
  auto grads = compose.zero_gradients();
  const Eigen::TensorMap<const Tensor> q_map(q.data(), q.dimensions());
  compose.mod_qkv_backward(grad_q, grad_k, grad_v, q_map, k, v, at, grads);
  double gradient = 0;
  for_each_parameter(grads, [&](std::string_view name, const auto& tensor) {
    if (name == parameter) gradient = tensor.data()[0];
  });
  CHECK(std::abs(expected) > 1);
  CHECK(std::abs(gradient - expected) <= 1e-8 * std::abs(expected));
}

}  // namespace

TEST_CASE("Compose: a rotation's gradient does not see what came after it", "[compose]") {
  const Rotary<double> rotary({.head_dim = 8, .divide = 2, .learned_div = true});
  const Rotary<double> half({.head_dim = 8, .pairing = RotaryPairing::half, .divide = 3, .learned_div = true});
  check_gradient<Eigen::RowMajor>(Compose(rotary, Shift(3)), "0.div");
  check_gradient<Eigen::ColMajor>(Compose(rotary, Shift(3)), "0.div");
  const Compose several(Shift(2), rotary, Compose(Shift(3), half), Shift(4));
  check_gradient<Eigen::RowMajor>(several, "1.div");
  check_gradient<Eigen::ColMajor>(several, "2.1.div");
}

TEST_CASE("Compose: q and k that are one memory stay one", "[compose]") {
  const Compose compose(Rotary<double>({.head_dim = 8, .divide = 2, .learned_div = true}), Shift(3));
  const PairPositions at{.q_k = Positions::range(11)};
  auto t = filled(Heads(2, 5, 3, 8), 1), v = t;
  const auto w = filled(Heads(2, 5, 3, 8), 6), u = filled(Heads(2, 5, 3, 8), 7);
  const double expected = slope<Compose<Rotary<double>, Shift>>(compose, "0.div", [&, t, v](const auto& changed) {
    auto new_t = t, new_v = v;
    changed.mod_qkv(new_t, new_t, new_v, at);
    return loss(new_t, new_t, w, u);
  });
  compose.mod_qkv(t, t, v, at);
  auto grad_q = w, grad_k = u, grad_v = v;
  auto grads = compose.zero_gradients();
  compose.mod_qkv_backward(grad_q, grad_k, grad_v, t, t, v, at, grads);
  CHECK(std::abs(expected) > 1);
  CHECK(std::abs(parameters_of(grads)[0] - expected) <= 1e-8 * std::abs(expected));

  // One gradient as well, of t.
  Heads grad = w + u;
  auto shared = compose.zero_gradients();
  compose.mod_qkv_backward(grad, grad, grad_v, t, t, v, at, shared);
  CHECK(std::abs(parameters_of(shared)[0] - expected) <= 1e-8 * std::abs(expected));

  // Positions of their own cannot be; that shows before anything is written.
  const Values before = values_of(grad_q);
  const auto message = message_of<ShapeError>(
      [&] { compose.mod_qkv_backward(grad_q, grad_k, grad_v, t, t, v, {.q = Positions::range(11)}, grads); });
  CHECK(message == "Rotary::mod_qkv: q and k share memory; they must be one tensor, at the same positions");
  CHECK(values_of(grad_q) == before);
}

TEST_CASE("Compose makes masks", "[compose]") {
  const ALiBi<double> alibi({.n_heads = 3});
  const RelativePositionBias<double> t5({.n_heads = 3}, 1);
  const Compose compose(alibi, t5);
  const Attention a;
  auto expected = alibi.make_mask(a.q, a.k, a.v);
  t5.mod_mask(expected);
  CHECK(values_of(compose.make_mask(a.q, a.k, a.v)) == values_of(expected));

  const PairPositions at{.q = Positions::range(3)};
  Row<bool, 4> smaller(2, 3, 4, 6);
  for (Index i = 0; i < smaller.size(); ++i) smaller.data()[i] = i % 3 != 0;
  expected = alibi.make_mask(a.q, a.k, a.v, at, smaller);
  t5.mod_mask(expected, at);
  CHECK(values_of(compose.make_mask(a.q, a.k, a.v, at, smaller)) == values_of(expected));

  const Row<bool, 4> larger(2, 3, 6, 6);
  CHECK_THAT(message_of<ShapeError>([&] { (void)compose.make_mask(a.q, a.k, a.v, at, larger); }),
             posbias_test::contains("Compose::make_mask: mask has shape (2, 3, 6, 6)"));
  CHECK(message_of<PositionError>([&] { (void)compose.make_mask(a.q, a.k, a.v, {.q = std::vector<double>{0.5}}); }) ==
        "RelativePositionBias::make_mask: q at index 0 is 0.5; integers strictly between -2^62 and 2^62 are needed");
}

TEST_CASE("Compose prepares what its modules add to tiles", "[compose]") {
  const ALiBi<double> alibi({.n_heads = 3, .divide = 2, .learned_div = true});
  const RelativePositionBias<double> t5({.n_heads = 3}, 1);
  const Compose compose(alibi, Identity(), Compose(t5, Rotary<double>({.head_dim = 8})));
  const PairPositions at{.q = Positions::range(102), .k = Positions::range(100)};
  Attention whole, tiled, grad;
  compose.mod_mask(whole.mask, whole.q, whole.k, whole.v, at);
  auto expected = compose.zero_gradients();
  compose.mod_mask_backward(grad.mask, grad.q, grad.k, grad.v, whole.q, whole.k, whole.v, at, expected);

  const auto prepared = compose.prepare(tiled.q, tiled.k, at);
  auto sums = prepared.accumulator(grad.q, grad.k);
  for (Index n = 0; n < 2; ++n)
    for (Index i = 0; i < 5; i += 2)
      for (Index j = 0; j < 7; j += 4) {
        const Index queries = std::min<Index>(2, 5 - i), keys = std::min<Index>(4, 7 - j);
        prepared.add_to(LogitTile<double>{&tiled.mask(n, 0, i, j), 35, 7, 1, n, 0, 3, i, queries, j, keys});
        prepared.accumulate(LogitTile<const double>{&grad.mask(n, 0, i, j), 35, 7, 1, n, 0, 3, i, queries, j, keys},
                            sums);
      }
  auto grads = compose.zero_gradients();
  prepared.finish(sums, grads);
  CHECK(tiled.values() == whole.values());
  const Values got = parameters_of(grads), wanted = parameters_of(expected);
  REQUIRE(got.size() == wanted.size());
  for (std::size_t p = 0; p < got.size(); ++p)
    CHECK(got[p] == posbias_test::Approx(wanted[p]).epsilon(1e-12).margin(1e-12));
  CHECK(got[0] != 0);
}

TEST_CASE("Compose hands contents and gradients to each part in its turn", "[compose]") {
  const Compose<Compose<Content, Content>, Content> compose(Compose(Content(2), Content(4)), Content(8));
  Attention a;
  const double q = a.q(0, 0, 0, 0);
  const auto prepared = compose.prepare(a.q, a.k);
  double logit = 3;
  prepared.add_to(LogitTile<double>{&logit, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1});
  CHECK(logit == ((3 * 2 + q) * 4 + q) * 8 + q);

  Attention grad;
  auto sums = prepared.accumulator(grad.q, grad.k);
  for (const double g : {0.5, 0.25})
    prepared.accumulate(LogitTile<const double>{&g, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1}, sums);
  auto grads = compose.zero_gradients();
  prepared.finish(sums, grads);
  CHECK(parameters_of(grads) == Values{1.5, 3, 6});
  CHECK(grad.q(0, 0, 0, 0) == q + 3 * 0.75);
}

TEST_CASE("Compose is a value", "[compose]") {
  Compose original(Rotary<double>({.head_dim = 8, .learned_div = true}), ALiBi<double>({.n_heads = 3}));
  Attention expected;
  forward(original, expected);
  const auto check = [&](const auto& compose) {
    Attention a;
    forward(compose, a);
    return a.values() == expected.values();
  };
  const auto copy = original;
  set(original, "0.div", 2);
  CHECK(check(copy));
  CHECK_FALSE(check(original));
  original = copy;
  CHECK(check(original));
  const auto moved = std::move(original);
  CHECK(check(moved));
}
