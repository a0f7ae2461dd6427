// SPDX-License-Identifier: MIT
#include "posbias/attention/relative_attention.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "support/golden.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

RelativeAttentionOptions options_of(const GoldenCase& golden) {
  AttentionTerms mode;
  const auto words = golden.words("mode");
  const auto has = [&](const char* term) { return std::ranges::find(words, term) != words.end(); };
  if (has("c2c") && has("c2p") && has("p2c"))
    mode = {c2c, c2p, p2c};
  else if (has("c2c") && has("c2p"))
    mode = {c2c, c2p};
  else if (has("c2c") && has("p2c"))
    mode = {c2c, p2c};
  else if (has("c2p") && has("p2c"))
    mode = {c2p, p2c};
  else if (has("c2c"))
    mode = {c2c};
  else if (has("c2p"))
    mode = {c2p};
  else
    mode = {p2c};
  const bool constant = golden.has("buffer.position_embedding");
  const auto& table = golden.shape(constant ? "buffer.position_embedding" : "param.position_embedding");
  return {.size = golden.size("size"),
          .n_heads = golden.size("n_heads"),
          .query_size = golden.size("query_size"),
          .key_size = golden.size("key_size"),
          .value_size = golden.size("value_size"),
          .head_size = golden.size("head_size"),
          .n_positions = table[0],
          .position_size = table[1],
          .same_key_query_proj = golden.config("same_key_query_proj", 0) != 0,
          .same_positional_key_query_proj = golden.config("same_positional_key_query_proj", 0) != 0,
          .n_coordinates = golden.size("n_coordinates", 1),
          .head_bias = golden.config("head_bias", 1) != 0,
          .do_pooling = golden.config("do_pooling", 1) != 0,
          .mode = mode,
          .n_additional_heads = golden.size("n_additional_heads"),
          .learn_position_embedding = !constant};
}

/// Tensors of a recorded call that may be absent.
template <class Form>
struct RecordedCall {
  using Mask2 = Eigen::Tensor<bool, 2, Form::layout>;
  using Mask3 = Eigen::Tensor<bool, 3, Form::layout>;
  using Mask4 = Eigen::Tensor<bool, 4, Form::layout>;

  explicit RecordedCall(const GoldenCase& golden) {
    if (golden.has("in.mask")) {
      const std::size_t rank = golden.rank("in.mask");
      if (rank == 2) call.mask = mask2 = golden.tensor<bool, 2, Form::layout>("in.mask");
      if (rank == 3) call.mask = mask3 = golden.tensor<bool, 3, Form::layout>("in.mask");
      if (rank == 4) call.mask = mask4 = golden.tensor<bool, 4, Form::layout>("in.mask");
    }
    if (golden.has("in.relative_positions"))
      call.relative_positions = relative = golden.tensor<std::int64_t, 4, Form::layout>("in.relative_positions");
    if (golden.has("in.no_position_mask"))
      call.no_position_mask = no_position = golden.tensor<bool, 3, Form::layout>("in.no_position_mask");
    if (golden.has("in.base_attn")) call.base_attn = base = golden.tensor<double, 4, Form::layout>("in.base_attn");
  }

  Mask2 mask2;
  Mask3 mask3, no_position;
  Mask4 mask4;
  Eigen::Tensor<std::int64_t, 4, Form::layout> relative;
  Eigen::Tensor<double, 4, Form::layout> base;
  RelativeAttentionCall call;
};

/// What a float gradient may be off by beside the tolerance, of the largest: 4 units in the last place of it. A layer sums
/// what cancels; edspdf's own float32 gradients miss the tolerance alone in 3 of these tensors.
template <class Scalar>
constexpr double gradient_rounding = std::is_same_v<Scalar, float> ? 4 * 0x1p-23 : 0;

template <class Scalar>
void check_gradient(const GoldenCase& golden, const std::string& name, const std::vector<double>& gradient) {
  INFO(name);
  const auto& expected = golden.values(name);
  check_close(gradient, expected, golden_tolerance<Scalar>, gradient_rounding<Scalar> * largest(expected));
}

template <class Scalar, class Form>
void check_recorded(const GoldenCase& golden) {
  constexpr double tolerance = golden_tolerance<Scalar>;
  RelativeAttention<Scalar> layer(options_of(golden));
  golden.load_parameters(layer);
  const RecordedCall<Form> recorded(golden);
  const auto& call = recorded.call;
  const auto zeros_like = [](const auto& from) {
    Eigen::Tensor<Scalar, 3, Form::layout> zeros(from.dimensions());
    zeros.setZero();
    return zeros;
  };
  const bool self = !golden.has("in.content_keys");
  auto queries = golden.input<Scalar, 3, Form>("in.content_queries");
  auto keys = golden.input<Scalar, 3, Form>(self ? "in.content_queries" : "in.content_keys");
  auto grad_queries = zeros_like(queries.tensor()), grad_keys = zeros_like(keys.tensor());
  auto& grad_keys_or_queries = self ? grad_queries : grad_keys;
  auto grads = layer.zero_gradients();
  auto grad_logits = golden.input<Scalar, 4, Form>("grad_out.attn");
  if (golden.has("out.pooled")) {
    auto values = golden.input<Scalar, 3, Form>("in.content_values");
    auto grad_values = zeros_like(values.tensor());
    const auto [pooled, logits] = layer(queries.tensor(), keys.tensor(), values.tensor(), call);
    check_close(flat(logits), golden.expected<Scalar>("out.attn"), tolerance);
    check_close(flat(pooled), golden.expected<Scalar>("out.pooled"), tolerance);
    auto grad_pooled = golden.input<Scalar, 3, Form>("grad_out.pooled");
    layer.backward(grad_queries, grad_keys_or_queries, grad_values, grad_pooled.tensor(), grad_logits.tensor(), logits,
                   queries.tensor(), keys.tensor(), values.tensor(), call, grads);
    check_gradient<Scalar>(golden, "grad_in.content_values", flat(grad_values));
    if (golden.has("grad_in.base_attn"))
      check_gradient<Scalar>(golden, "grad_in.base_attn", flat(grad_logits.tensor()));
  } else {
    const auto logits = layer(queries.tensor(), keys.tensor(), call);
    check_close(flat(logits), golden.expected<Scalar>("out.attn"), tolerance);
    layer.backward(grad_queries, grad_keys_or_queries, grad_logits.tensor(), queries.tensor(), keys.tensor(), call,
                   grads);
  }
  check_gradient<Scalar>(golden, "grad_in.content_queries", flat(grad_queries));
  if (!self) check_gradient<Scalar>(golden, "grad_in.content_keys", flat(grad_keys));
  golden.check_gradients<Scalar>(grads, gradient_rounding<Scalar>);
}

TEST_CASE("RelativeAttention gives what edspdf's gives, with all gradients") {
  for (const std::string& name : golden_names("eds_relattn__")) {
    DYNAMIC_SECTION(name) {
      const GoldenCase golden(name);
      for_each_form([&]<class Form>() {
        check_recorded<double, Form>(golden);
        check_recorded<float, Form>(golden);
      });
    }
  }
}

}  // namespace
