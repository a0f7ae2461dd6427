// SPDX-License-Identifier: MIT
/// \file
/// The order of memory changes no bit of a result, and 16 bits are what float gives, rounded once.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <posbias/posbias.hpp>
#include <string>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/mdspan.hpp"
#include "support/numbers.hpp"
#include "support/placed.hpp"

using namespace posbias;
using Eigen::bfloat16;
using Eigen::half;
using posbias_test::contains;
using posbias_test::Mdspan;
using posbias_test::message_of;

namespace {

constexpr Index B = 2, L = 5, L2 = 7, NH = 4, NHk = 2, H = 8;

template <class S, int Rank>
using Tensor = Eigen::Tensor<S, Rank, Eigen::RowMajor>;
using Values = std::vector<float>;
using Shape = std::array<Index, 4>;

template <class S>
Mdspan<S, 4> mdspan_of(const StridedMap<S, 4>& map) {
  Mdspan<S, 4> result{map.data(), {}, {}};
  for (std::size_t d = 0; d < 4; ++d) {
    result.sizes[d] = static_cast<std::size_t>(map.dimensions()[d]);
    result.steps[d] = static_cast<std::size_t>(map.strides()[d]);
  }
  return result;
}

enum class Layout { axes_1_and_2_swapped, narrowed, reversed, backwards };
constexpr Layout layouts[] = {Layout::axes_1_and_2_swapped, Layout::narrowed, Layout::reversed, Layout::backwards};

std::size_t count_of(const Shape& shape) {
  return static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]);
}

posbias_test::Placement placement(Layout layout, const Shape& shape) {
  posbias_test::Placement result({shape.begin(), shape.end()});
  if (layout == Layout::axes_1_and_2_swapped) {  // heads before tokens, or tokens before heads
    result.order = {0, 2, 1, 3};
  } else if (layout == Layout::narrowed) {  // the filled part of a cache
    result.dimensions[1].before = 2, result.dimensions[1].after = 4;
    result.dimensions[2].before = 1;
  } else if (layout == Layout::reversed) {  // features are the furthest apart
    result.order = {3, 2, 1, 0};
  } else {  // every other feature, tokens and features from the last to the first
    result.dimensions[1].step = -1, result.dimensions[3].step = -2;
  }
  return result;
}

/// A tensor somewhere in memory, of NaN unless there are values. Copies share the memory.
template <class S>
class Placed : posbias_test::Placed<S, 4> {
  using Base = posbias_test::Placed<S, 4>;

 public:
  Placed(Layout layout, const Shape& shape, const Values& values) : Base(values, placement(layout, shape)) {}
  Placed(Layout layout, const Shape& shape)
      : Placed(layout, shape, Values(count_of(shape), std::numeric_limits<float>::quiet_NaN())) {}

  [[nodiscard]] StridedMap<S, 4> tensor() const { return Base(*this).tensor(); }
  [[nodiscard]] StridedMap<const S, 4> input() const { return Base::tensor(); }
  [[nodiscard]] Values values() const { return Base::template values<float>(); }
  [[nodiscard]] bool nothing_else_written() const { return Base::memory()->rest_is_untouched(); }
};

constexpr Shape q_shape{B, L, NH, H}, k_shape{B, L2, NHk, H}, mask_shape{B, NH, L, L2};

/// Numbers in [-1, 1), exact in S.
template <class S>
Values numbers(const Shape& shape, std::uint64_t seed) {
  Values result(count_of(shape));
  posbias_test::Numbers from(seed);
  for (float& value : result) value = static_cast<float>(static_cast<S>(static_cast<float>(from.value())));
  return result;
}

/// Rounded to S.
template <class S>
Values rounded(Values values) {
  for (float& value : values) value = static_cast<float>(static_cast<S>(value));
  return values;
}

bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Tensor<float, 4> whole(const Shape& shape, const Values& values) {
  Tensor<float, 4> result(shape);
  std::ranges::copy(values, result.data());
  return result;
}

Values values_of(const Tensor<float, 4>& tensor) {
  return {tensor.data(), tensor.data() + tensor.size()};
}

/// Queries are after the keys' begin, and not at 0.
PairPositions positions() {
  return {.q = Positions::range(102), .k = Positions::range(100)};
}

/// Rotations and two biases: one of positions alone, one of the content of queries.
const auto& position() {
  static const Compose module(Rotary<float>({.head_dim = H, .learned_div = true}),
                              ALiBi<float>({.n_heads = NH, .learned_div = true}));
  return module;
}

AttentionOptions options() {
  return {.causal = true, .at = positions()};
}

/// Attention and its backward on whole tensors of float, once for all.
struct Attended {
  Tensor<float, 4> out{q_shape}, grad_q{q_shape}, grad_k{k_shape}, grad_v{k_shape};
  Tensor<float, 3> log_sum_exp{B, NH, L};
  float grad_div = 0;

  Attended(const Values& q_, const Values& k_, const Values& v_, const Values& grad_out_) {
    const auto q = whole(q_shape, q_), k = whole(k_shape, k_), v = whole(k_shape, v_);
    attention(out, q, k, v, position(), options(), log_sum_exp);
    auto grads = position().zero_gradients();
    attention_backward(grad_q, grad_k, grad_v, whole(q_shape, grad_out_), out, q, k, v, position(), options(), grads,
                       log_sum_exp);
    grad_div = sum_of(grads);
  }

  template <class Gradients>
  static float sum_of(const Gradients& grads) {
    float result = 0;
    for_each_parameter(grads,
                       [&](std::string_view, const auto& gradient) { result += 3 * result + gradient.data()[0]; });
    return result;
  }
};

/// The same in every layout, the queries' tensors stored as Q and the keys' as K: outputs are those of float, rounded.
template <class Q, class K>
void check_attention() {
  const Values q = numbers<Q>(q_shape, 1), k = numbers<K>(k_shape, 2), v = numbers<K>(k_shape, 3),
               grad_out = numbers<Q>(q_shape, 4);
  Attended expected(q, k, v, grad_out);
  // Backward reads the rounded output.
  std::ranges::copy(rounded<Q>(values_of(expected.out)), expected.out.data());
  {
    const auto whole_q = whole(q_shape, q), whole_k = whole(k_shape, k), whole_v = whole(k_shape, v);
    auto grads = position().zero_gradients();
    attention_backward(expected.grad_q, expected.grad_k, expected.grad_v, whole(q_shape, grad_out), expected.out,
                       whole_q, whole_k, whole_v, position(), options(), grads, expected.log_sum_exp);
    expected.grad_div = Attended::sum_of(grads);
  }
  for (const Layout layout : layouts) {
    INFO("layout " << static_cast<int>(layout));
    const Placed<Q> in_q(layout, q_shape, q), in_grad(layout, q_shape, grad_out), out(layout, q_shape),
        grad_q(layout, q_shape);
    const Placed<K> in_k(layout, k_shape, k), in_v(layout, k_shape, v), grad_k(layout, k_shape),
        grad_v(layout, k_shape);
    Tensor<float, 3> log_sum_exp(B, NH, L);
    attention(out.tensor(), in_q.input(), in_k.input(), in_v.input(), position(), options(), log_sum_exp);
    CHECK(same_bits(out.values(), values_of(expected.out)));
    CHECK(std::equal(log_sum_exp.data(), log_sum_exp.data() + log_sum_exp.size(), expected.log_sum_exp.data()));

    auto grads = position().zero_gradients();
    attention_backward(grad_q.tensor(), grad_k.tensor(), grad_v.tensor(), in_grad.input(), out.input(), in_q.input(),
                       in_k.input(), in_v.input(), position(), options(), grads, log_sum_exp);
    CHECK(same_bits(grad_q.values(), rounded<Q>(values_of(expected.grad_q))));
    CHECK(same_bits(grad_k.values(), rounded<K>(values_of(expected.grad_k))));
    CHECK(same_bits(grad_v.values(), rounded<K>(values_of(expected.grad_v))));
    CHECK(Attended::sum_of(grads) == expected.grad_div);

    CHECK((same_bits(in_q.values(), q) && same_bits(in_k.values(), k) && same_bits(in_v.values(), v)));
    CHECK((out.nothing_else_written() && grad_q.nothing_else_written() && grad_k.nothing_else_written() &&
           grad_v.nothing_else_written()));
  }
}

/// Two modules of a Compose change each tensor, and two add to each gradient.
template <class S>
void check_compose() {
  const Compose module(Sinusoidal<float>({.dim = H}), Sinusoidal<float>({.dim = H, .divide = 3}),
                       TransformerXL<float>({.dim = NH * H, .n_heads = NH}, 11), Rotary<float>({.head_dim = H}),
                       ALiBi<float>({.n_heads = NH}));
  const Compose biases(TransformerXL<float>({.dim = NH * H, .n_heads = NH}, 11),
                       TransformerXL<float>({.dim = NH * H, .n_heads = NH}, 12));
  constexpr Shape keys{B, L2, NH, H};
  const Values q_ = numbers<S>(q_shape, 19), k_ = numbers<S>(keys, 20), mask_ = numbers<S>(mask_shape, 21);
  auto x = whole(q_shape, q_), q = x, k = whole(keys, k_), v = k, mask = whole(mask_shape, mask_), more = mask;
  const auto q0 = q, k0 = k, mask0 = mask;
  Tensor<S, 4> x16 = x.template cast<S>(), q16 = x16, k16 = k.template cast<S>(), v16 = k16,
               mask16 = mask.template cast<S>(), more16 = mask16;
  const Tensor<S, 4> q0_16 = q16, k0_16 = k16, mask0_16 = mask16;
  const auto check = [](const Tensor<S, 4>& of_16, const Tensor<float, 4>& of_float) {
    const Tensor<float, 4> wide = of_16.template cast<float>();
    CHECK(same_bits(values_of(wide), rounded<S>(values_of(of_float))));
  };
  module.mod_x(x16), module.mod_x(x);
  check(x16, x);
  module.mod_qkv(q16, k16, v16), module.mod_qkv(q, k, v);
  check(q16, q), check(k16, k), check(v16, v);
  module.mod_mask(mask16, q0_16, k0_16, k0_16), module.mod_mask(mask, q0, k0, k0);
  check(mask16, mask);
  biases.mod_mask(more16, q0_16, k0_16, k0_16), biases.mod_mask(more, q0, k0, k0);
  check(more16, more);

  auto grad_q = q0, grad_k = k0, grad_v = k0;
  auto grad_q16 = q0_16, grad_k16 = k0_16, grad_v16 = k0_16;
  auto grads = biases.zero_gradients(), grads16 = grads;
  biases.mod_mask_backward(mask0, grad_q, grad_k, grad_v, q0, k0, k0, {}, grads);
  biases.mod_mask_backward(mask0_16, grad_q16, grad_k16, grad_v16, q0_16, k0_16, k0_16, {}, grads16);
  check(grad_q16, grad_q);
  const Rotary<float> rotary({.head_dim = H});
  const Compose rotations(rotary, rotary);
  auto rotation_grads = rotations.zero_gradients();
  grad_q16 = q0_16, grad_k16 = k0_16;
  grad_q = q0, grad_k = k0;
  rotations.mod_qkv_backward(grad_q, grad_k, grad_v, q0, k0, k0, {}, rotation_grads);
  rotations.mod_qkv_backward(grad_q16, grad_k16, grad_v16, q0_16, k0_16, k0_16, {}, rotation_grads);
  check(grad_q16, grad_q), check(grad_k16, grad_k);

  // One tensor for queries and keys is one copy.
  Tensor<S, 4> one16 = q0_16;
  Tensor<float, 4> one = q0;
  rotations.mod_qkv(one16, one16, one16), rotations.mod_qkv(one, one, one);
  check(one16, one);
}

/// RelativeAttention and its backward, of (1, B, L, features).
template <class S>
void check_relative_attention() {
  constexpr Index size = 6;
  constexpr Shape tokens{1, B, L, size}, logits_shape{B, L, L, NHk};
  RelativeAttention<float> layer({.size = size, .n_heads = NHk, .n_positions = 4}, 3);
  const Values x = numbers<S>(tokens, 9), grad = numbers<S>(tokens, 10);

  auto pooled = whole(tokens, x);
  Tensor<float, 5> logits(1, B, L, L, NHk);
  const auto whole_x = whole(tokens, x);
  layer.forward(pooled, logits, whole_x, whole_x, whole_x, RelativeAttentionCall());
  Tensor<float, 4> grad_q(tokens), grad_k(tokens), grad_v(tokens);
  grad_q.setConstant(0.25F), grad_k.setConstant(0.5F), grad_v.setConstant(1);
  const Tensor<float, 4> start_q = grad_q, start_k = grad_k, start_v = grad_v;
  auto grads = layer.zero_gradients();
  layer.backward(grad_q, grad_k, grad_v, whole(tokens, grad), logits, whole_x, whole_x, whole_x,
                 RelativeAttentionCall(), grads);

  for (const Layout layout : layouts) {
    INFO("layout " << static_cast<int>(layout));
    const Placed<S> in(layout, tokens, x), in_grad(layout, tokens, grad), out(layout, tokens);
    const Placed<float> placed_logits(layout, logits_shape);  // stay float, so that backward reads the same
    const auto logits_map = unflatten(placed_logits.tensor(), 0, {1, B});
    layer.forward(out.tensor(), logits_map, in.input(), in.input(), in.input(), RelativeAttentionCall());
    CHECK(same_bits(out.values(), rounded<S>(values_of(pooled))));
    CHECK(same_bits(placed_logits.values(), Values(logits.data(), logits.data() + logits.size())));
    const Placed<S> to_q(layout, tokens, values_of(start_q)), to_k(layout, tokens, values_of(start_k)),
        to_v(layout, tokens, values_of(start_v));
    auto placed_grads = layer.zero_gradients();
    layer.backward(to_q.tensor(), to_k.tensor(), to_v.tensor(), in_grad.input(), logits_map, in.input(), in.input(),
                   in.input(), RelativeAttentionCall(), placed_grads);
    CHECK(same_bits(to_q.values(), rounded<S>(values_of(grad_q))));
    CHECK(same_bits(to_k.values(), rounded<S>(values_of(grad_k))));
    CHECK(same_bits(to_v.values(), rounded<S>(values_of(grad_v))));
    for (const Placed<S>& written : {out, to_q, to_k, to_v}) CHECK(written.nothing_else_written());
  }
}

}  // namespace

TEST_CASE("attention and its backward: any order of memory and 16 bits, the same bits", "[attention]") {
  check_attention<float, float>();
  check_attention<bfloat16, bfloat16>();
  check_attention<half, half>();
  check_attention<float, bfloat16>();
}

TEST_CASE("Compose rounds 16 bits once, however many modules change a tensor", "[attention]") {
  check_compose<bfloat16>();
  check_compose<half>();
}

TEST_CASE("Compose copies no mask of 16 bits", "[attention]") {
  constexpr Index tokens = 300;
  const ALiBi<float> alibi({.n_heads = 2}), slower({.n_heads = 2, .divide = 2});
  Tensor<bfloat16, 3> mask(2, tokens, tokens);
  mask.setZero();
  const std::size_t peak = posbias_test::peak_bytes_of([&] {
    Tensor<bfloat16, 3> q(tokens, 2, 2), k(tokens, 2, 2);
    q.setZero(), k.setZero();
    Compose(alibi, slower).mod_mask(mask, q, k, k);
  });
  CHECK(mask(0, 0, 299) == static_cast<bfloat16>(-299 * 1.5F / 16));
  CHECK(peak < static_cast<std::size_t>(mask.size()));  // a copy in float has four times as many bytes
}

TEST_CASE("RelativeAttention: any order of memory and 16 bits, the same bits", "[attention]") {
  check_relative_attention<float>();
  check_relative_attention<bfloat16>();
}

TEST_CASE("attention and Rotary take whatever looks like std::mdspan", "[attention]") {
  const Values values = numbers<float>(q_shape, 12);
  const Placed<float> q(Layout::axes_1_and_2_swapped, q_shape, values), out(Layout::narrowed, q_shape);
  auto expected_q = whole(q_shape, values);
  Tensor<float, 4> expected(q_shape);
  const Rotary<float> rotary({.head_dim = H});
  rotary.mod_qkv(expected_q, expected_q, expected_q);
  attention(expected, expected_q, expected_q, expected_q, position(), {.causal = true});

  const auto span = mdspan_of(q.tensor());
  rotary.mod_qkv(span, span, span);
  attention(mdspan_of(out.tensor()), span, span, span, position(), {.causal = true});
  CHECK(same_bits(q.values(), values_of(expected_q)));
  CHECK(same_bits(out.values(), values_of(expected)));
}

TEST_CASE("a stride of 0 repeats what is read, and what is written must not repeat", "[attention]") {
  constexpr Shape one{1, L2, NHk, H};
  const Values q = numbers<float>(q_shape, 13), k = numbers<float>(one, 14), v = numbers<float>(one, 15);
  Values k_twice = k, v_twice = v;
  k_twice.insert(k_twice.end(), k.begin(), k.end());
  v_twice.insert(v_twice.end(), v.begin(), v.end());
  const auto whole_q = whole(q_shape, q);
  Tensor<float, 4> expected(q_shape), out(q_shape);
  attention(expected, whole_q, whole(k_shape, k_twice), whole(k_shape, v_twice), position(), options());

  auto one_k = whole(one, k), one_v = whole(one, v);
  const auto repeated = [](Tensor<float, 4>& tensor) {
    return strided(tensor.data(), k_shape, std::array<Index, 4>{0, NHk * H, H, 1});
  };
  attention(out, whole_q, repeated(one_k), repeated(one_v), position(), options());
  CHECK(same_bits(values_of(out), values_of(expected)));

  const Rotary<float> rotary({.head_dim = H});
  const ALiBi<float> alibi({.n_heads = NH});
  const Sinusoidal<float> sinusoidal({.dim = H});
  const TransformerXL<float> xl({.dim = NH * H, .n_heads = NH}, 11);
  auto untouched = whole_q;
  const std::string shares = "has elements that share memory; it is written to";
  CHECK(message_of<ShapeError>([&] { rotary.mod_qkv(untouched, repeated(one_k), repeated(one_v)); }) ==
        "Rotary::mod_qkv: k " + shares);
  CHECK(same_bits(values_of(untouched), q));
  CHECK(message_of<ShapeError>([&] { rotary.mod_qkv(repeated(one_k), repeated(one_k), repeated(one_v)); }) ==
        "Rotary::mod_qkv: q " + shares);
  CHECK(message_of<ShapeError>([&] { sinusoidal.mod_x(repeated(one_k)); }) == "Sinusoidal::mod_x: x " + shares);
  const auto mask = strided(out.data(), mask_shape, std::array<Index, 4>{L * L2, 0, L2, 1});
  CHECK(message_of<ShapeError>([&] { alibi.mod_mask(mask); }) == "ALiBi::mod_mask: mask " + shares);
  Tensor<float, 4> keys(B, L2, NH, H);
  CHECK(message_of<ShapeError>([&] { xl.mod_mask(mask, whole_q, keys, keys); }) ==
        "TransformerXL::mod_mask: mask " + shares);
  CHECK(message_of<ShapeError>([&] {
          xl.mod_qkv(strided(out.data(), q_shape, std::array<Index, 4>{L * H, H, 0, 1}), keys, keys);
        }) == "TransformerXL::mod_qkv: q " + shares);
  auto grads = position().zero_gradients();
  Tensor<float, 4> grad_q(q_shape), grad_k(k_shape), one_grad(one);
  CHECK(message_of<ShapeError>([&] {
          attention_backward(grad_q, grad_k, repeated(one_grad), expected, expected, whole_q, repeated(one_k),
                             repeated(one_v), position(), options(), grads);
        }) == "posbias::attention_backward: grad_v " + shares);
  CHECK(same_bits(values_of(one_k), k));
}

TEST_CASE("a gradient of logits that is only read may repeat its elements", "[attention]") {
  constexpr Shape square{B, NH, L, L};
  const Values q = numbers<float>(q_shape, 16), row = numbers<float>({1, 1, L, L}, 17);
  auto one = whole({1, 1, L, L}, row);
  const auto repeated = strided(one.data(), square, std::array<Index, 4>{0, 0, L, 1});
  Tensor<float, 4> copies(square);
  for (Index n = 0; n < B * NH; ++n) std::ranges::copy(row, copies.data() + n * L * L);
  const auto check = [&](const auto& module) {
    const auto whole_q = whole(q_shape, q);
    auto gradients = [&](const auto& grad_mask) {
      Tensor<float, 4> grad_q(q_shape), grad_k(q_shape), grad_v(q_shape);
      grad_q.setZero(), grad_k.setZero(), grad_v.setZero();
      auto grads = module.zero_gradients();
      module.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, whole_q, whole_q, whole_q, {}, grads);
      Values result = values_of(grad_q);
      for_each_parameter(
          grads, [&](std::string_view, const auto& g) { result.insert(result.end(), g.data(), g.data() + g.size()); });
      return result;
    };
    CHECK(same_bits(gradients(repeated), gradients(copies)));
  };
  check(ALiBi<float>({.n_heads = NH, .learned_div = true}));
  check(TransformerXL<float>({.dim = NH * H, .n_heads = NH}, 11));
}

TEST_CASE("overlap is decided by elements: parts of a fused buffer are apart, shifted parts are not", "[attention]") {
  // (B, L, NH + 2·NHk + NH, H): q, k, v, and room for the result.
  Tensor<float, 4> buffer(B, L, 2 * NH + 2 * NHk, H);
  const Values values = numbers<float>(buffer.dimensions(), 18);
  std::ranges::copy(values, buffer.data());
  const auto q = narrow(buffer, 2, 0, NH), k = narrow(buffer, 2, NH, NHk), v = narrow(buffer, 2, NH + NHk, NHk),
             out = narrow(buffer, 2, -NH, NH);
  const Rotary<float> rotary({.head_dim = H});

  // Shifted by a head, q and k share one.
  const auto shifted = narrow(buffer, 2, NH - 1, NHk);
  CHECK(message_of<ShapeError>([&] { rotary.mod_qkv(q, shifted, v); }) ==
        "Rotary::mod_qkv: q and k share memory; they must be one tensor, at the same positions");
  const auto out_shares = contains("posbias::attention: out shares memory with ");
  CHECK_THAT(message_of<ShapeError>([&] { attention(q, q, k, v, Identity()); }), out_shares);
  CHECK_THAT(message_of<ShapeError>([&] { attention(narrow(buffer, 2, 1, NH), out, k, v, Identity()); }), out_shares);
  CHECK(same_bits(values_of(buffer), values));

  const auto copy = [](const StridedMap<float, 4>& part) {
    Tensor<float, 4> result(part.dimensions());
    for (Index b = 0; b < B; ++b)
      for (Index l = 0; l < L; ++l)
        for (Index h = 0; h < part.dimension(2); ++h)
          for (Index f = 0; f < H; ++f) result(b, l, h, f) = part(b, l, h, f);
    return result;
  };
  auto own_q = copy(q), own_k = copy(k), own_v = copy(v), own_out = copy(out);
  rotary.mod_qkv(own_q, own_k, own_v);
  attention(own_out, own_q, own_k, own_v, Identity(), {.causal = true});
  rotary.mod_qkv(q, k, v);
  attention(out, q, k, v, Identity(), {.causal = true});
  CHECK(same_bits(values_of(copy(q)), values_of(own_q)));
  CHECK(same_bits(values_of(copy(k)), values_of(own_k)));
  CHECK(same_bits(values_of(copy(v)), values_of(own_v)));
  CHECK(same_bits(values_of(copy(out)), values_of(own_out)));

  // Gradients in one buffer, which backward of the projection reads as it is.
  Tensor<float, 4> fused(B, L, NH + 2 * NHk, H), grad_q(B, L, NH, H), grad_k(B, L, NHk, H), grad_v(B, L, NHk, H);
  Identity::Gradients none;
  const auto fused_q = narrow(fused, 2, 0, NH), fused_k = narrow(fused, 2, NH, NHk),
             fused_v = narrow(fused, 2, NH + NHk, NHk);
  attention_backward(grad_q, grad_k, grad_v, own_out, own_out, own_q, own_k, own_v, Identity(), {.causal = true}, none);
  attention_backward(fused_q, fused_k, fused_v, own_out, own_out, own_q, own_k, own_v, Identity(), {.causal = true},
                     none);
  CHECK(same_bits(values_of(copy(fused_q)), values_of(grad_q)));
  CHECK(same_bits(values_of(copy(fused_k)), values_of(grad_k)));
  CHECK(same_bits(values_of(copy(fused_v)), values_of(grad_v)));
  CHECK_THAT(message_of<ShapeError>([&] {
               attention_backward(fused_q, narrow(fused, 2, NH - 1, NHk), fused_v, own_out, own_out, own_q, own_k,
                                  own_v, Identity(), {.causal = true}, none);
             }),
             contains("posbias::attention_backward: grad_q shares memory with "));
}
