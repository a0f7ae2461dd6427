// SPDX-License-Identifier: MIT
/// \file
/// `attention_backward` to gradients by name is `attention_backward` to the same tensors in order.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <posbias/posbias.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace posbias;

namespace {

template <class S, int Layout = Eigen::RowMajor>
using Heads = Eigen::Tensor<S, 4, Layout>;
template <class S>
using Sums = Eigen::Tensor<S, 3, Eigen::RowMajor>;

/// An attention with q, k and v of `Stored`, forward; gradients start as 7, which must not show.
template <class S, class Stored>
struct Call {
  Heads<Stored> q{2, 5, 4, 6}, k{2, 7, 2, 6}, v{2, 7, 2, 3}, out{2, 5, 4, 3}, grad_out{2, 5, 4, 3};
  Heads<Stored> grad_q{q.dimensions()}, grad_k{k.dimensions()}, grad_v{v.dimensions()};
  Sums<S> log_sum_exp{2, 4, 5};
  Compose<Rotary<S>, RelativePositionBias<S>> module{Rotary<S>({.head_dim = 6, .learned_div = true}),
                                                     RelativePositionBias<S>({.n_heads = 4}, 1)};
  typename Compose<Rotary<S>, RelativePositionBias<S>>::Gradients grads = module.zero_gradients();
  AttentionOptions options{.causal = true, .at = {.q = Positions::range(2)}};

  Call() {
    std::uint64_t seed = 0;
    for (auto* tensor : {&q, &k, &v, &grad_out}) {
      const std::vector<S> values = posbias_test::numbers<S>(tensor->size(), ++seed);
      std::transform(values.begin(), values.end(), tensor->data(), [](S value) { return static_cast<Stored>(value); });
    }
    for (auto* tensor : {&grad_q, &grad_k, &grad_v}) tensor->setConstant(static_cast<Stored>(7));
    attention(out, q, k, v, module, options, log_sum_exp);
  }

  [[nodiscard]] std::vector<double> results() const {
    std::vector<double> all;
    for (const auto* tensor : {&grad_q, &grad_k, &grad_v})
      std::transform(tensor->data(), tensor->data() + tensor->size(), std::back_inserter(all),
                     [](Stored value) { return static_cast<double>(value); });
    for_each_parameter(grads, [&](std::string_view, const auto& tensor) {
      all.insert(all.end(), tensor.data(), tensor.data() + tensor.size());
    });
    return all;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("gradients by name are those in order", "[attention][again]", (std::tuple<float, float>),
                   (std::tuple<double, double>), (std::tuple<float, Eigen::bfloat16>)) {
  using S = std::tuple_element_t<0, TestType>;
  using Stored = std::tuple_element_t<1, TestType>;
  Call<S, Stored> in_order, by_name, with_sums;
  attention_backward(in_order.grad_q, in_order.grad_k, in_order.grad_v, in_order.grad_out, in_order.out, in_order.q,
                     in_order.k, in_order.v, in_order.module, in_order.options, in_order.grads);
  {
    auto& [q, k, v, out, grad_out, grad_q, grad_k, grad_v, log_sum_exp, module, grads, options] = by_name;
    attention_backward({.q = grad_q, .k = grad_k, .v = grad_v}, grad_out, out, q, k, v, module, options, grads);
  }
  {
    auto& [q, k, v, out, grad_out, grad_q, grad_k, grad_v, log_sum_exp, module, grads, options] = with_sums;
    attention_backward(AttentionGradients{.q = grad_q, .k = grad_k, .v = grad_v}, grad_out, out, log_sum_exp, q, k, v,
                       module, options, grads);
  }
  CHECK(by_name.results() == in_order.results());

  Call<S, Stored> in_order_with_sums;
  auto& call = in_order_with_sums;
  attention_backward(call.grad_q, call.grad_k, call.grad_v, call.grad_out, call.out, call.q, call.k, call.v,
                     call.module, call.options, call.grads, call.log_sum_exp);
  CHECK(with_sums.results() == call.results());
}

TEST_CASE("gradients by name go to any memory", "[attention]") {
  Call<float, float> plain, placed;
  attention_backward({.q = plain.grad_q, .k = plain.grad_k, .v = plain.grad_v}, plain.grad_out, plain.out, plain.q,
                     plain.k, plain.v, plain.module, plain.options, plain.grads);
  std::vector<float> memory(2 * 4 * 5 * 6, 7);  // (B, NH, L, H)
  Eigen::TensorMap<Heads<float>> heads(memory.data(), 2, 4, 5, 6);
  Eigen::Tensor<float, 4> columns(2, 7, 2, 6);
  attention_backward({.q = heads_first(heads), .k = columns, .v = placed.grad_v}, placed.grad_out, placed.out, placed.q,
                     placed.k, placed.v, placed.module, placed.options, placed.grads);
  bool same = true;
  for (Index n = 0; n < 2; ++n)
    for (Index h = 0; h < 4; ++h)
      for (Index i = 0; i < 5; ++i)
        for (Index d = 0; d < 6; ++d) same = same && heads(n, h, i, d) == plain.grad_q(n, i, h, d);
  CHECK(same);
  Heads<float> rows(2, 7, 2, 6);
  rows = columns.swap_layout().shuffle(Eigen::array<int, 4>{3, 2, 1, 0});
  CHECK(std::equal(rows.data(), rows.data() + rows.size(), plain.grad_k.data()));
}

TEST_CASE("gradients by name that cannot be written to are refused", "[attention]") {
  Call<float, float> call;
  const auto backward = [&](const AttentionGradients& gradients) {
    attention_backward(gradients, call.grad_out, call.out, call.q, call.k, call.v, call.module, call.options,
                       call.grads);
  };
  using Catch::Matchers::Equals;
  CHECK_THROWS_WITH(backward({.q = call.grad_q, .v = call.grad_v}),
                    Equals("posbias::attention_backward: gradients.k is missing"));
  Heads<double> of_double(call.k.dimensions());
  CHECK_THROWS_WITH(backward({.q = call.grad_q, .k = of_double, .v = call.grad_v}),
                    Equals("posbias::attention_backward: gradients.k is of double; q is computed in float"));
  Eigen::Tensor<float, 3> of_one(7, 2, 6);
  CHECK_THROWS_WITH(backward({.q = call.grad_q, .k = of_one, .v = call.grad_v}),
                    Equals("posbias::attention_backward: gradients.k has shape (7, 2, 6); q has 4 dimensions"));
  CHECK_THROWS_WITH(backward({.q = call.grad_q, .k = call.k, .v = call.grad_v}),
                    Equals("posbias::attention_backward: grad_k shares memory with k; it is written to"));
  CHECK(
      std::all_of(call.grad_q.data(), call.grad_q.data() + call.grad_q.size(), [](float value) { return value == 7; }));
}
