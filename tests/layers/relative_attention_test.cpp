// SPDX-License-Identifier: MIT
#include "posbias/layers/relative_attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/io/safetensors.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

RelativeAttentionOptions options_of(const GoldenCase& golden) {
  AttentionTerms mode;
  for (const std::string& term : golden.words("mode")) mode.insert(term == "c2c" ? c2c : term == "c2p" ? c2p : p2c);
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
template <class LayoutCase>
struct RecordedCall {
  using Mask2 = Eigen::Tensor<bool, 2, LayoutCase::layout>;
  using Mask3 = Eigen::Tensor<bool, 3, LayoutCase::layout>;
  using Mask4 = Eigen::Tensor<bool, 4, LayoutCase::layout>;

  explicit RecordedCall(const GoldenCase& golden) {
    if (golden.has("in.mask")) {
      const std::size_t rank = golden.rank("in.mask");
      if (rank == 2) call.mask = mask2 = golden.tensor<bool, 2, LayoutCase::layout>("in.mask");
      if (rank == 3) call.mask = mask3 = golden.tensor<bool, 3, LayoutCase::layout>("in.mask");
      if (rank == 4) call.mask = mask4 = golden.tensor<bool, 4, LayoutCase::layout>("in.mask");
    }
    if (golden.has("in.relative_positions"))
      call.relative_positions = relative = golden.tensor<std::int64_t, 4, LayoutCase::layout>("in.relative_positions");
    if (golden.has("in.no_position_mask"))
      call.no_position_mask = no_position = golden.tensor<bool, 3, LayoutCase::layout>("in.no_position_mask");
    if (golden.has("in.base_attn"))
      call.base_attn = base = golden.tensor<double, 4, LayoutCase::layout>("in.base_attn");
  }

  Mask2 mask2;
  Mask3 mask3, no_position;
  Mask4 mask4;
  Eigen::Tensor<std::int64_t, 4, LayoutCase::layout> relative;
  Eigen::Tensor<double, 4, LayoutCase::layout> base;
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

template <class Scalar, class LayoutCase>
void check_recorded(const GoldenCase& golden) {
  constexpr double tolerance = golden_tolerance<Scalar>;
  RelativeAttention<Scalar> layer(options_of(golden));
  golden.load_parameters(layer);
  const RecordedCall<LayoutCase> recorded(golden);
  const auto& call = recorded.call;
  const auto zeros_like = [](const auto& from) {
    Eigen::Tensor<Scalar, 3, LayoutCase::layout> zeros(from.dimensions());
    zeros.setZero();
    return zeros;
  };
  const bool self = !golden.has("in.content_keys");
  auto queries = golden.input<Scalar, 3, LayoutCase>("in.content_queries");
  auto keys = golden.input<Scalar, 3, LayoutCase>(self ? "in.content_queries" : "in.content_keys");
  auto grad_queries = zeros_like(queries.tensor()), grad_keys = zeros_like(keys.tensor());
  auto& grad_keys_or_queries = self ? grad_queries : grad_keys;
  auto grads = layer.zero_gradients();
  auto grad_logits = golden.input<Scalar, 4, LayoutCase>("grad_out.attn");
  if (golden.has("out.pooled")) {
    auto values = golden.input<Scalar, 3, LayoutCase>("in.content_values");
    auto grad_values = zeros_like(values.tensor());
    const auto [pooled, logits] = layer(queries.tensor(), keys.tensor(), values.tensor(), call);
    check_close(flat(logits), golden.expected<Scalar>("out.attn"), tolerance);
    check_close(flat(pooled), golden.expected<Scalar>("out.pooled"), tolerance);
    auto grad_pooled = golden.input<Scalar, 3, LayoutCase>("grad_out.pooled");
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
      for_each_layout_case([&]<class LayoutCase>() {
        check_recorded<double, LayoutCase>(golden);
        check_recorded<float, LayoutCase>(golden);
      });
    }
  }
}

/// Without an expression of Eigen's, which take long to compile.
template <class Tensor, class S>
void fill(Tensor& tensor, S value) {
  std::fill_n(tensor.data(), tensor.size(), static_cast<typename Tensor::Scalar>(value));
}

// ---- Construction

using Layer = RelativeAttention<double>;
using Options = RelativeAttentionOptions;

std::string refused(const Options& options) {
  return message_of<OptionError>([&] { Layer layer(options); });
}

TEST_CASE("RelativeAttention: options that cannot be are refused by name") {
  const std::string name = "RelativeAttention: ", accepted = "<nothing thrown>";
  const auto check = [](const Options& options, const std::string& message) { CHECK(refused(options) == message); };
  check({.n_heads = 2}, name + "size = 0; it must be at least 1");
  check({.size = -8, .n_heads = 2}, name + "size = -8; it must be at least 1");
  check({.size = 8}, name + "n_heads = 0; it must be at least 1");
  check({.size = 8, .n_heads = -1}, name + "n_heads = -1; it must be at least 1");
  check({.size = 8, .n_heads = 2, .n_additional_heads = -1}, name + "n_additional_heads = -1; it must be at least 0");
  check({.size = 8, .n_heads = 2, .n_coordinates = 0}, name + "n_coordinates = 0; it must be at least 1");
  check({.size = 8, .n_heads = 2, .n_positions = -1}, name + "n_positions = -1; it must be at least 0");
  check({.size = 8, .n_heads = 2, .query_size = -1}, name + "query_size = -1; it must be at least 0");
  check({.size = 8, .n_heads = 2, .key_size = -2}, name + "key_size = -2; it must be at least 0");
  check({.size = 8, .n_heads = 2, .value_size = -1}, name + "value_size = -1; it must be at least 0");
  check({.size = 8, .n_heads = 2, .head_size = -1}, name + "head_size = -1; it must be at least 0");
  check({.size = 8, .n_heads = 2, .n_positions = 4, .position_size = -1},
        name + "position_size = -1; it must be at least 0");

  // What must be cut into heads or coordinates.
  check({.size = 8, .n_heads = 3}, name + "key_size = 8; it must be a multiple of n_heads = 3");
  check({.size = 9, .n_heads = 3, .key_size = 8}, name + "key_size = 8; it must be a multiple of n_heads = 3");
  check({.size = 8, .n_heads = 3, .head_size = 5}, name + "size = 8; it must be a multiple of n_heads = 3");
  check({.size = 8, .n_heads = 3, .head_size = 5, .do_pooling = false}, accepted);
  check({.size = 9, .n_heads = 3, .key_size = 8, .head_size = 5}, accepted);
  check({.size = 12, .n_heads = 2, .n_positions = 4, .position_size = 7, .n_coordinates = 2},
        name + "position_size = 7; it must be a multiple of n_coordinates = 2");
  check({.size = 12, .n_heads = 2, .head_size = 5, .n_positions = 4, .n_coordinates = 3},
        name + "head_size = 5; it must be a multiple of n_coordinates = 3");
  check({.size = 12, .n_heads = 2, .head_size = 5, .n_coordinates = 3}, accepted);

  check({.size = 8, .n_heads = 2, .query_size = 6, .same_key_query_proj = true},
        name + "same_key_query_proj needs query_size = key_size; they are 6 and 8");
  check({.size = 8, .n_heads = 2, .position_size = 8}, name + "position_size = 8; there is no table: n_positions = 0");
  check({.size = 8, .n_heads = 2, .n_positions = Index{1} << 31},
        name + "n_positions = 2147483648; it must be at most 2147483647");

  // No term that can be computed.
  const std::string no_term = name + "mode has no term";
  check({.size = 8, .n_heads = 2, .n_positions = 4, .mode = {}}, no_term);
  const std::string no_table = no_term + " that can be computed: no c2c, and n_positions = 0";
  check({.size = 8, .n_heads = 2, .mode = {}}, no_table);
  check({.size = 8, .n_heads = 2, .mode = {c2p}}, no_table);
  check({.size = 8, .n_heads = 2, .mode = {p2c, c2p}}, no_table);
  check({.size = 8, .n_heads = 2, .mode = {p2c, c2c}}, accepted);

  const std::string probability = "; it must be at least 0 and below 1";
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  check({.size = 8, .n_heads = 2, .dropout_p = -0.25}, name + "dropout_p = -0.25" + probability);
  check({.size = 8, .n_heads = 2, .dropout_p = 1}, name + "dropout_p = 1" + probability);
  CHECK_THAT(refused({.size = 8, .n_heads = 2, .dropout_p = nan}), contains("nan" + probability));
  check({.size = 8, .n_heads = 2, .dropout_p = std::nextafter(1.0, 0.0)}, accepted);
}

TEST_CASE("RelativeAttention: sizes of 0 take their defaults") {
  const Options same = Layer({.size = 12, .n_heads = 2, .n_positions = 5, .n_additional_heads = 1}).options();
  CHECK(std::array{same.query_size, same.key_size, same.value_size, same.head_size, same.position_size} ==
        std::array<Index, 5>{12, 12, 12, 6, 12});
  CHECK(Layer({.size = 12, .n_heads = 2, .n_additional_heads = 1}).heads() == 3);
  const Options keys = Layer({.size = 12, .n_heads = 2, .query_size = 7, .key_size = 10, .n_positions = 5}).options();
  CHECK(std::array{keys.query_size, keys.key_size, keys.value_size, keys.head_size, keys.position_size} ==
        std::array<Index, 5>{7, 10, 10, 5, 12});
  CHECK(Layer({.size = 12, .n_heads = 2}).options().position_size == 0);
}

TEST_CASE("a set of terms contains what it was made of") {
  constexpr AttentionTerms none, two{p2c, c2c};
  static_assert(!none.contains(c2c) && !none.contains(c2p) && !none.contains(p2c));
  static_assert(two.contains(c2c) && !two.contains(c2p) && two.contains(p2c));
  const AttentionTerms by_default = Options().mode;
  CHECK((by_default.contains(c2c) && by_default.contains(c2p) && by_default.contains(p2c)));
}

// ---- Parameters

struct Named {
  std::string name;
  std::vector<Index> shape;
  friend bool operator==(const Named&, const Named&) = default;
};

std::ostream& operator<<(std::ostream& out, const Named& named) {
  out << named.name;
  for (const Index size : named.shape) out << ' ' << size;
  return out;
}

std::vector<Named> parameters_of(const Options& options) {
  std::vector<Named> result;
  for_each_parameter(Layer(options), [&](std::string_view name, const auto& tensor) {
    result.push_back({std::string(name), {tensor.dimensions().begin(), tensor.dimensions().end()}});
  });
  return result;
}

TEST_CASE("RelativeAttention: parameters have edspdf's names and shapes, what is shared once") {
  const Options sizes{.size = 10,
                      .n_heads = 5,
                      .query_size = 7,
                      .key_size = 11,
                      .value_size = 13,
                      .head_size = 6,
                      .n_positions = 17,
                      .position_size = 8,
                      .n_coordinates = 2,
                      .n_additional_heads = 2};  // 42 outputs
  const std::vector<Named> expected{{"position_embedding", {17, 8}},         {"position_key_proj.weight", {2, 4, 21}},
                                    {"position_key_proj.bias", {2, 21}},     {"position_query_proj.weight", {2, 4, 21}},
                                    {"position_query_proj.bias", {2, 21}},   {"bias", {7}},
                                    {"content_key_proj.weight", {42, 11}},   {"content_key_proj.bias", {42}},
                                    {"content_query_proj.weight", {42, 7}},  {"content_query_proj.bias", {42}},
                                    {"content_value_proj.weight", {10, 13}}, {"content_value_proj.bias", {10}}};
  CHECK(parameters_of(sizes) == expected);

  const auto without = [&](const Options& options, std::initializer_list<std::string_view> prefixes) {
    std::vector<Named> left = expected;
    for (const std::string_view prefix : prefixes)
      std::erase_if(left, [&](const Named& named) { return named.name.starts_with(prefix); });
    CHECK(parameters_of(options) == left);
  };
  Options options = sizes;
  options.head_bias = false;
  without(options, {"bias"});
  options = sizes;
  options.do_pooling = false;
  without(options, {"content_value"});
  options = sizes;
  options.same_positional_key_query_proj = true;
  without(options, {"position_query"});
  options = sizes;
  options.n_positions = options.position_size = 0;
  without(options, {"position"});
  options = sizes;
  options.learn_position_embedding = false;
  without(options, {});

  // Content shares positions too.
  options = sizes;
  options.query_size = 11;
  options.same_key_query_proj = true;
  without(options, {"position_query", "content_query"});
}

template <class S>
std::map<std::string, std::vector<S>> values_of(const RelativeAttention<S>& layer) {
  std::map<std::string, std::vector<S>> result;
  for_each_parameter(layer, [&](std::string_view name, const auto& tensor) {
    result[std::string(name)].assign(tensor.data(), tensor.data() + tensor.size());
  });
  return result;
}

TEST_CASE("RelativeAttention: parameters start by seed, within their bounds") {
  const Options options{.size = 64,
                        .n_heads = 2,
                        .query_size = 25,
                        .key_size = 16,
                        .value_size = 36,
                        .n_positions = 40,
                        .position_size = 98,
                        .n_coordinates = 2};
  const auto values = values_of(Layer(options, 5)), same = values_of(Layer(options, 5)),
             other = values_of(Layer(options, 6));
  CHECK(values == same);
  for (const auto& [name, list] : values) {
    INFO(name);
    const double most = largest(list);
    if (name == "bias" || name == "position_key_proj.bias" || name == "position_query_proj.bias") {
      CHECK(most == 0);
      continue;
    }
    CHECK(list != other.at(name));
    if (name == "position_embedding") {
      double sum = 0, squares = 0;
      for (const double value : list) {
        sum += value;
        squares += value * value;
      }
      const auto count = static_cast<double>(list.size());  // 3920: off by 1/sqrt(count) or so
      CHECK(std::abs(sum / count) < 0.06);
      CHECK(std::abs(squares / count - 1) < 0.1);
      continue;
    }
    const double bound = name.starts_with("position")        ? 1.0 / 7
                         : name.starts_with("content_key")   ? 1.0 / 4
                         : name.starts_with("content_query") ? 1.0 / 5
                                                             : 1.0 / 6;
    CHECK(most <= bound);
    CHECK(most > 0.8 * bound);
    const auto [least, greatest] = std::minmax_element(list.begin(), list.end());
    CHECK(*least < -0.6 * bound);
    CHECK(*greatest > 0.6 * bound);
  }
}

// ---- Calls

using Rows = Eigen::Tensor<double, 3, Eigen::RowMajor>;
using Pairs = Eigen::Tensor<double, 4, Eigen::RowMajor>;
using Relative = Eigen::Tensor<std::int64_t, 4, Eigen::RowMajor>;
using Call = RelativeAttentionCall;

/// All tensors that the layer's functions take or write. What is written holds numbers, to see that nothing was.
struct Everything {
  Rows queries{2, 5, 10}, keys{2, 7, 6}, values{2, 7, 4}, pooled{2, 5, 8};
  Pairs logits{2, 5, 7, 3};
  Rows grad_queries{2, 5, 10}, grad_keys{2, 7, 6}, grad_values{2, 7, 4}, grad_pooled{2, 5, 8};
  Pairs grad_logits{2, 5, 7, 3};

  Everything() { fill(); }
  Everything(Index B, Index L1, Index L2)
      : queries(B, L1, 10),
        keys(B, L2, 6),
        values(B, L2, 4),
        pooled(B, L1, 8),
        logits(B, L1, L2, 3),
        grad_queries(B, L1, 10),
        grad_keys(B, L2, 6),
        grad_values(B, L2, 4),
        grad_pooled(B, L1, 8),
        grad_logits(B, L1, L2, 3) {
    fill();
  }

  void fill() {
    Numbers numbers(3);
    for_each([&](auto& tensor) { std::generate_n(tensor.data(), tensor.size(), [&] { return numbers.value(); }); });
  }

  [[nodiscard]] std::vector<std::vector<double>> copy() {
    std::vector<std::vector<double>> result;
    for_each([&](auto& tensor) { result.emplace_back(tensor.data(), tensor.data() + tensor.size()); });
    return result;
  }

 private:
  template <class Visit>
  void for_each(const Visit& visit) {
    for (Rows* tensor : {&queries, &keys, &values, &pooled, &grad_queries, &grad_keys, &grad_values, &grad_pooled})
      visit(*tensor);
    for (Pairs* tensor : {&logits, &grad_logits}) visit(*tensor);
  }
};

/// The layer that these tensors are for.
const Options fitting{.size = 8,
                      .n_heads = 2,
                      .query_size = 10,
                      .key_size = 6,
                      .value_size = 4,
                      .head_size = 6,
                      .n_positions = 11,
                      .position_size = 4,
                      .n_coordinates = 2,
                      .n_additional_heads = 1};

using Parts = std::vector<std::string_view>;

/// The message that functions refuse a call with, all the same one but for their own name. Nothing may be written.
/// `which` are "values", "logits" for the functions that take values, or logits alone; "backward" for backward alone.
template <class Error>
std::string refused(const Layer& layer, Everything& tensors, const Call& call, const Parts& which) {
  const auto before = tensors.copy();
  auto grads = layer.zero_gradients();
  const auto has = [&](std::string_view part) { return std::ranges::find(which, part) != which.end(); };
  std::vector<std::string> messages;
  const auto attempt = [&](const auto& function) { messages.push_back(message_of<Error>(function)); };
  if (has("values")) {
    attempt([&] {
      layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_values, tensors.grad_pooled,
                     tensors.grad_logits, tensors.logits, tensors.queries, tensors.keys, tensors.values, call, grads);
    });
    attempt([&] {
      layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_values, tensors.grad_pooled, tensors.logits,
                     tensors.queries, tensors.keys, tensors.values, call, grads);
    });
    if (!has("backward")) {
      attempt(
          [&] { layer.forward(tensors.pooled, tensors.logits, tensors.queries, tensors.keys, tensors.values, call); });
      attempt([&] { (void)layer(tensors.queries, tensors.keys, tensors.values, call); });
    }
  }
  if (has("logits")) {
    attempt([&] {
      layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_logits, tensors.queries, tensors.keys, call,
                     grads);
    });
    if (!has("backward")) {
      attempt([&] { layer.forward(tensors.logits, tensors.queries, tensors.keys, call); });
      attempt([&] { (void)layer(tensors.queries, tensors.keys, call); });
    }
  }
  for (std::string& message : messages) {
    const std::string own = "RelativeAttention::backward: ", other = "RelativeAttention::forward: ";
    if (message.starts_with(own) && !has("backward")) message.replace(0, own.size(), other);
    CHECK(message == messages.back());
  }
  CHECK(tensors.copy() == before);
  for_each_parameter(grads, [](std::string_view, const auto& tensor) {
    CHECK(std::count(tensor.data(), tensor.data() + tensor.size(), 0.0) == tensor.size());
  });
  return messages.back();
}

const Parts everywhere{"values", "logits"}, where_values_are{"values"}, where_none_are{"logits"};

TEST_CASE("RelativeAttention: terms that a call cannot have are refused") {
  const std::string name = "RelativeAttention::forward: ";
  Everything tensors;
  Relative relative(2, 5, 7, 2);
  fill(relative, 0);
  const Call located{.relative_positions = relative}, by_positions{.positions = {{}, {}}};

  Options options = fitting;
  options.do_pooling = false;
  CHECK(refused<OptionError>(Layer(options), tensors, located, where_values_are) ==
        name + "values are given; do_pooling = false");

  const std::string no_term = name + "no relative positions are given; mode has no term that can do without";
  for (const AttentionTerms mode : {AttentionTerms{c2p}, AttentionTerms{p2c}, AttentionTerms{c2p, p2c}}) {
    options = fitting;
    options.mode = mode;
    CHECK(refused<OptionError>(Layer(options), tensors, {}, everywhere) == no_term);
  }

  options = fitting;
  options.n_positions = options.position_size = 0;
  const std::string no_table = name + "relative positions are given; there is no table: n_positions = 0";
  CHECK(refused<OptionError>(Layer(options), tensors, located, everywhere) == no_table);
  CHECK(refused<OptionError>(Layer(options), tensors, by_positions, everywhere) == no_table);

  const Layer layer(fitting);
  CHECK(refused<PositionError>(layer, tensors, {.relative_positions = relative, .positions = {{}, {}}}, everywhere) ==
        name + "relative_positions and positions are both given; give one");
}

TEST_CASE("RelativeAttention: shapes that do not fit are refused, and nothing is written") {
  const std::string name = "RelativeAttention::forward: ";
  const Layer layer(fitting);
  const auto check = [&](const Parts& which, const std::string& message,
                         const std::function<void(Everything&)>& change) {
    Everything tensors;
    change(tensors);
    CHECK(refused<ShapeError>(layer, tensors, {}, which) == message);
  };
  const auto set = [](auto& tensor, auto... sizes) {
    std::remove_cvref_t<decltype(tensor)> other(sizes...);
    fill(other, 0.5);
    tensor = other;
  };
  check(everywhere,
        name + "queries has shape (2, 5, 9); (B, *, L, query_size) is needed, with B, * = (2), query_size = 10",
        [&](Everything& tensors) { set(tensors.queries, 2, 5, 9); });
  check(everywhere, name + "keys has shape (2, 7, 10); (B, *, L, key_size) is needed, with B, * = (2), key_size = 6",
        [&](Everything& tensors) { set(tensors.keys, 2, 7, 10); });
  check(everywhere, name + "keys has shape (1, 7, 6); (B, *, L, key_size) is needed, with B, * = (2), key_size = 6",
        [&](Everything& tensors) { set(tensors.keys, 1, 7, 6); });
  check(where_values_are,
        name + "values has shape (2, 7, 6); (B, *, L, value_size) is needed, with B, * = (2), value_size = 4",
        [&](Everything& tensors) { set(tensors.values, 2, 7, 6); });
  check(where_values_are,
        name + "values has shape (3, 7, 4); (B, *, L, value_size) is needed, with B, * = (2), value_size = 4",
        [&](Everything& tensors) { set(tensors.values, 3, 7, 4); });
  check(where_values_are, name + "values has 6 tokens; keys has 7",
        [&](Everything& tensors) { set(tensors.values, 2, 6, 4); });

  // Gradients, and the logits that backward is told.
  const std::string backward = "RelativeAttention::backward: ";
  const Parts both{"values", "logits", "backward"}, pooling{"values", "backward"}, logits_alone{"logits", "backward"};
  check(both, backward + "grad_queries has shape (2, 5, 6); it needs (2, 5, 10)",
        [&](Everything& tensors) { set(tensors.grad_queries, 2, 5, 6); });
  check(both, backward + "grad_keys has shape (2, 5, 6); it needs (2, 7, 6)",
        [&](Everything& tensors) { set(tensors.grad_keys, 2, 5, 6); });
  check(pooling, backward + "grad_values has shape (2, 7, 8); it needs (2, 7, 4)",
        [&](Everything& tensors) { set(tensors.grad_values, 2, 7, 8); });
  check(pooling, backward + "grad_pooled has shape (2, 5, 4); it needs (2, 5, 8)",
        [&](Everything& tensors) { set(tensors.grad_pooled, 2, 5, 4); });
  check(pooling, backward + "logits has shape (2, 5, 7, 2); it needs (2, 5, 7, 3)",
        [&](Everything& tensors) { set(tensors.logits, 2, 5, 7, 2); });
  check(logits_alone, backward + "grad_logits has shape (2, 7, 5, 3); it needs (2, 5, 7, 3)",
        [&](Everything& tensors) { set(tensors.grad_logits, 2, 7, 5, 3); });

  Everything tensors;
  const auto given = tensors.copy();
  const auto into = [&](Rows pooled, Pairs logits) {
    fill(pooled, 77);
    fill(logits, 78);
    const std::string message =
        message_of<ShapeError>([&] { layer.forward(pooled, logits, tensors.queries, tensors.keys, tensors.values); });
    CHECK(std::count(pooled.data(), pooled.data() + pooled.size(), 77) == pooled.size());
    CHECK(std::count(logits.data(), logits.data() + logits.size(), 78) == logits.size());
    return message;
  };
  CHECK(into({2, 5, 10}, {2, 5, 7, 3}) == name + "pooled has shape (2, 5, 10); it needs (2, 5, 8)");
  CHECK(into({2, 5, 8}, {2, 5, 7, 2}) == name + "logits has shape (2, 5, 7, 2); it needs (2, 5, 7, 3)");
  Pairs too_few(2, 5, 7, 1);
  fill(too_few, 78);
  CHECK(message_of<ShapeError>([&] { layer.forward(too_few, tensors.queries, tensors.keys); }) ==
        name + "logits has shape (2, 5, 7, 1); it needs (2, 5, 7, 3)");
  CHECK(std::count(too_few.data(), too_few.data() + too_few.size(), 78) == too_few.size());
  CHECK(tensors.copy() == given);

  // Gradients of another layer.
  Options without = fitting;
  without.head_bias = false;
  auto other = Layer(without).zero_gradients();
  CHECK(message_of<ShapeError>([&] {
          layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_logits, tensors.queries, tensors.keys,
                         {}, other);
        }) == backward +
                  "grads has an entry content_key_proj.weight in the place of bias; use the module's "
                  "zero_gradients()");
  CHECK(tensors.copy() == given);
}

TEST_CASE("RelativeAttention: what a call is given must fit, in each form") {
  const std::string name = "RelativeAttention::forward: ";
  const Layer layer(fitting);
  Everything tensors;
  const auto check = [&](const Call& call, const std::string& message) {
    CHECK(refused<ShapeError>(layer, tensors, call, everywhere) == name + message);
  };
  const auto flags = [](auto... sizes) {
    Eigen::Tensor<bool, static_cast<int>(sizeof...(sizes))> tensor(sizes...);
    fill(tensor, true);
    return tensor;
  };

  const std::string mask_needs =
      "; (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, heads) is needed, with B, * = (2), L1 = 5, L2 = 7, heads = 2";
  const auto mask1 = flags(7);
  check({.mask = mask1}, "mask has shape (7)" + mask_needs);
  const auto mask2 = flags(2, 5);
  check({.mask = mask2}, "mask has shape (2, 5)" + mask_needs);
  const auto mask3 = flags(2, 7, 5);
  check({.mask = mask3}, "mask has shape (2, 7, 5)" + mask_needs);
  const auto one_key = flags(2, 5, 1);
  check({.mask = one_key}, "mask has shape (2, 5, 1)" + mask_needs);
  const auto all_heads = flags(2, 5, 7, 3);  // additional heads have no mask
  check({.mask = all_heads}, "mask has shape (2, 5, 7, 3)" + mask_needs);
  const auto mask5 = flags(1, 2, 5, 7, 2);
  check({.mask = mask5}, "mask has shape (1, 2, 5, 7, 2)" + mask_needs);

  const std::string base_needs =
      "; (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, heads) is needed, with B, * = (2), L1 = 5, L2 = 7, heads = 3";
  Eigen::Tensor<double, 4> base(2, 5, 7, 2);
  fill(base, 0);
  check({.base_attn = base}, "base_attn has shape (2, 5, 7, 2)" + base_needs);
  Eigen::Tensor<float, 4> single_base(3, 5, 7, 3);
  fill(single_base, 0);
  check({.base_attn = single_base}, "base_attn has shape (3, 5, 7, 3)" + base_needs);

  const std::string relative_needs =
      "; (B, *, L1, L2, n_coordinates) is needed, with B, * = (2), L1 = 5, L2 = 7, n_coordinates = 2";
  const auto relative = [&](const std::string& shape, auto... sizes) {
    Eigen::Tensor<int, static_cast<int>(sizeof...(sizes))> tensor(sizes...);
    fill(tensor, 0);
    check({.relative_positions = tensor}, "relative_positions has shape " + shape + relative_needs);
  };
  relative("(2, 5, 7)", 2, 5, 7);
  relative("(2, 5, 7, 1)", 2, 5, 7, 1);
  relative("(2, 5, 7, 3)", 2, 5, 7, 3);
  relative("(2, 5, 1, 2)", 2, 5, 1, 2);
  relative("(3, 5, 7, 2)", 3, 5, 7, 2);

  Relative zeros(2, 5, 7, 2);
  fill(zeros, 0);
  const std::string hidden_needs = "; (B, *, L1, L2) is needed, with B, * = (2), L1 = 5, L2 = 7";
  const auto hidden2 = flags(2, 7);
  check({.relative_positions = zeros, .no_position_mask = hidden2}, "no_position_mask has shape (2, 7)" + hidden_needs);
  const auto hidden3 = flags(2, 5, 1);
  check({.relative_positions = zeros, .no_position_mask = hidden3},
        "no_position_mask has shape (2, 5, 1)" + hidden_needs);

  // Positions of queries and keys.
  check({.positions = {{}}}, "positions has 1 coordinates; n_coordinates = 2");
  check({.positions = {{}, {}, {}}}, "positions has 3 coordinates; n_coordinates = 2");
  Eigen::Tensor<int, 2> of_three(3, 5);
  fill(of_three, 0);
  check({.positions = {{}, {.q = of_three}}}, "positions[1]: q has leading dimensions (3); the tensor has (2)");
  check({.positions = {{}, {.q_k = Positions::range()}}},
        "positions[1]: positions q_k need L1 = L2; L1 = 5, L2 = 7; give q and k instead");
  const auto check_position = [&](Everything& of, const Call& call, const std::string& message) {
    CHECK(refused<PositionError>(layer, of, call, everywhere) == name + message);
  };
  Eigen::Tensor<int, 1> eight(8);
  fill(eight, 0);
  check_position(tensors, {.positions = {{.k = eight}, {}}}, "positions[0]: k has 8 positions for 7 tokens");
  check_position(tensors, {.positions = {{.q_k = Positions::range(), .k = Positions::range()}, {}}},
                 "positions[0]: positions q_k and k are both given; give q_k alone, or q and k");
  Eigen::Tensor<double, 1> reals(4);
  std::iota(reals.data(), reals.data() + 4, 100);
  reals(2) = 102.5;
  const std::string integers = "; integers strictly between -2^62 and 2^62 are needed";
  check_position(tensors, {.positions = {{}, {.k = reals}}}, "positions[1]: k at index 2 is 102.5" + integers);
  check_position(tensors, {.positions = {{.q = reals}, {}}}, "positions[0]: q at index 2 is 102.5" + integers);
  reals(2) = 0x1p62;
  check_position(tensors, {.positions = {{.q = reals}, {}}}, "positions[0]: q at index 2 is 4.61168602e+18" + integers);
  reals(2) = std::numeric_limits<double>::infinity();
  check_position(tensors, {.positions = {{.q = reals}, {}}},
                 "positions[0]: q at index 2 is inf; positions must be finite");
  Eigen::Tensor<std::int64_t, 1> far(2);
  far(0) = 0;
  far(1) = std::int64_t{1} << 62;
  check_position(
      tensors, {.positions = {{.q = far}, {}}},
      "positions[0]: q at index 1 is 4611686018427387904; integers must lie strictly between -2^62 and 2^62");

  // Where they name one argument that is both.
  Everything square(2, 7, 7);
  check_position(
      square, {.positions = {{}, {.q_k = far}}},
      "positions[1]: q_k at index 1 is 4611686018427387904; integers must lie strictly between -2^62 and 2^62");
  reals(2) = 102.5;
  check_position(square, {.positions = {{}, {.q_k = reals}}}, "positions[1]: q_k at index 2 is 102.5" + integers);
}

TEST_CASE("RelativeAttention: what is written to must be apart from what is read") {
  const auto shared = [](const std::string& name) { return " shares memory with " + name + "; it is written to"; };
  const std::string forward = "RelativeAttention::forward: ", backward = "RelativeAttention::backward: ";
  const Layer layer(fitting);
  std::vector<double> memory(1000, 0.5);
  using RowsMap = Eigen::TensorMap<Rows>;
  using PairsMap = Eigen::TensorMap<Pairs>;
  Everything tensors;
  const auto given = tensors.copy();
  auto grads = layer.zero_gradients();
  const auto message = [&](const auto& function) {
    const std::string text = message_of<ShapeError>(function);
    CHECK(std::count(memory.begin(), memory.end(), 0.5) == 1000);
    CHECK(tensors.copy() == given);
    return text;
  };
  // 80 values of pooled, 210 of logits, 100 of queries, 84 of keys, 56 of values.
  const RowsMap pooled(memory.data(), 2, 5, 8);
  const PairsMap logits(memory.data() + 79, 2, 5, 7, 3);
  CHECK(message([&] { layer.forward(pooled, logits, tensors.queries, tensors.keys, tensors.values); }) ==
        forward + "pooled" + shared("logits"));
  const auto into = [&](const RowsMap& to_pooled, const PairsMap& to_logits, const RowsMap& queries,
                        const RowsMap& keys, const RowsMap& values) {
    return message([&] { layer.forward(to_pooled, to_logits, queries, keys, values); });
  };
  const auto rows = [&](Index at, Index L, Index size) { return RowsMap(memory.data() + at, 2, L, size); };
  const auto pairs = [&](Index at) { return PairsMap(memory.data() + at, 2, 5, 7, 3); };
  CHECK(into(rows(0, 5, 8), pairs(100), rows(79, 5, 10), rows(400, 7, 6), rows(500, 7, 4)) ==
        forward + "pooled" + shared("queries"));
  CHECK(into(rows(0, 5, 8), pairs(100), rows(600, 5, 10), rows(79, 7, 6), rows(500, 7, 4)) ==
        forward + "pooled" + shared("keys"));
  CHECK(into(rows(0, 5, 8), pairs(100), rows(600, 5, 10), rows(400, 7, 6), rows(79, 7, 4)) ==
        forward + "pooled" + shared("values"));
  CHECK(into(rows(0, 5, 8), pairs(100), rows(309, 5, 10), rows(500, 7, 6), rows(600, 7, 4)) ==
        forward + "logits" + shared("queries"));
  const Eigen::TensorMap<const Pairs> base(memory.data() + 79, 2, 5, 7, 3);
  CHECK(message([&] {
          layer.forward(rows(0, 5, 8), pairs(400), tensors.queries, tensors.keys, tensors.values, {.base_attn = base});
        }) == forward + "pooled" + shared("base_attn"));
  CHECK(message([&] { layer.forward(pairs(0), tensors.queries, tensors.keys, {.base_attn = base}); }) ==
        forward + "logits" + shared("base_attn"));
  CHECK(message([&] { layer.forward(pairs(0), rows(209, 5, 10), tensors.keys); }) ==
        forward + "logits" + shared("queries"));

  // Gradients, of whatever they might be on top of.
  const auto backward_into = [&](const RowsMap& to_queries, const RowsMap& to_keys, const RowsMap& to_values,
                                 const RowsMap& grad_pooled, const PairsMap& of_logits, const RowsMap& queries) {
    return message([&] {
      layer.backward(to_queries, to_keys, to_values, grad_pooled, of_logits, queries, tensors.keys, tensors.values, {},
                     grads);
    });
  };
  const RowsMap to_queries = rows(0, 5, 10), to_keys = rows(100, 7, 6), to_values = rows(184, 7, 4),
                grad_pooled = rows(240, 5, 8), queries = rows(320, 5, 10);
  const PairsMap of_logits = pairs(420);
  CHECK(backward_into(queries, to_keys, to_values, grad_pooled, of_logits, queries) ==
        backward + "grad_queries" + shared("queries"));
  CHECK(backward_into(to_queries, rows(236, 7, 6), to_values, grad_pooled, of_logits, queries) ==
        backward + "grad_keys" + shared("grad_pooled"));
  CHECK(backward_into(to_queries, to_keys, rows(420, 7, 4), grad_pooled, of_logits, queries) ==
        backward + "grad_values" + shared("logits"));
  CHECK(message([&] {
          layer.backward(to_queries, to_keys, to_values, grad_pooled, pairs(421), of_logits, queries, tensors.keys,
                         tensors.values, {}, grads);
        }) == backward + "grad_logits" + shared("logits"));
  const auto beside = [&](const RowsMap& to_q, const RowsMap& to_k, const RowsMap& to_v, const PairsMap& grad_logits) {
    return message([&] {
      layer.backward(to_q, to_k, to_v, grad_pooled, grad_logits, of_logits, queries, tensors.keys, tensors.values, {},
                     grads);
    });
  };
  CHECK(beside(to_queries, to_keys, rows(701, 7, 4), pairs(700)) == backward + "grad_values" + shared("grad_logits"));
  CHECK(beside(rows(40, 5, 10), to_keys, to_values, pairs(700)) == backward + "grad_queries" + shared("grad_keys"));
  CHECK(message([&] {
          const Eigen::TensorMap<const Pairs> read(memory.data() + 700, 2, 5, 7, 3);
          layer.backward(to_queries, rows(750, 7, 6), read, queries, tensors.keys, {}, grads);
        }) == backward + "grad_keys" + shared("grad_logits"));
}

// ---- Little or nothing to attend to

/// Whether all entries are 0.
template <class Tensor>
bool zeros(const Tensor& tensor) {
  return std::count(tensor.data(), tensor.data() + tensor.size(), 0.0) == tensor.size();
}

TEST_CASE("RelativeAttention: no batch entry, no query, no key") {
  const Layer layer(fitting, 3);
  for (const auto& [B, L1, L2] : {std::array<Index, 3>{0, 5, 7}, {2, 0, 7}, {2, 5, 0}, {2, 0, 0}, {0, 0, 0}})
    for (const int given : {0, 1, 2}) {
      INFO("B " << B << ", L1 " << L1 << ", L2 " << L2 << ", given " << given);
      Everything tensors(B, L1, L2);
      Relative relative(B, L1, L2, 2);
      Eigen::Tensor<bool, 2> mask(B, L2);
      Call call{.mask = mask};
      if (given == 1) call.relative_positions = relative;
      if (given == 2) call.positions = {{}, {.q = Positions::range(100)}};
      const auto result = layer(tensors.queries, tensors.keys, tensors.values, call);
      CHECK(detail::shape_of(result.pooled) == std::array<Index, 3>{B, L1, 8});
      CHECK(detail::shape_of(result.logits) == std::array<Index, 4>{B, L1, L2, 3});
      CHECK(zeros(result.pooled));
      CHECK(detail::shape_of(layer(tensors.queries, tensors.keys, call)) == std::array<Index, 4>{B, L1, L2, 3});

      const auto before = tensors.copy();
      auto grads = layer.zero_gradients();
      layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_values, tensors.grad_pooled, result.logits,
                     tensors.queries, tensors.keys, tensors.values, call, grads);
      layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_values, tensors.grad_pooled,
                     tensors.grad_logits, result.logits, tensors.queries, tensors.keys, tensors.values, call, grads);
      layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_logits, tensors.queries, tensors.keys, call,
                     grads);
      CHECK(tensors.copy() == before);
      for_each_parameter(grads, [](std::string_view name, const auto& tensor) {
        INFO(name);
        CHECK(zeros(tensor));
      });
    }
}

TEST_CASE("RelativeAttention: more batch entries than are kept at a time") {
  // A head of 1000 keys with 2048 rows of the table is half of what is kept.
  const RelativeAttention<float> layer({.size = 8, .n_heads = 1, .n_positions = 2048, .mode = {p2c}}, 3);
  Eigen::Tensor<float, 3, Eigen::RowMajor> queries(3, 1, 8), keys(3, 1000, 8);
  for (Index i = 0; i < queries.size(); ++i) queries.data()[i] = static_cast<float>(i % 7 - 3);
  for (Index i = 0; i < keys.size(); ++i) keys.data()[i] = static_cast<float>(i % 11 - 5);
  const RelativeAttentionCall call{.positions = {{.q = Positions::range(500)}}};
  const auto [pooled, logits] = layer(queries, keys, keys, call);
  for (Index n = 0; n < 3; ++n) {
    const Eigen::Tensor<float, 2, Eigen::RowMajor> query = queries.chip(n, 0), key = keys.chip(n, 0);
    const auto alone = layer(query, key, key, call);
    CHECK(std::equal(alone.pooled.data(), alone.pooled.data() + 8, pooled.data() + n * 8));
    CHECK(std::equal(alone.logits.data(), alone.logits.data() + 1000, logits.data() + n * 1000));
  }
}

TEST_CASE("RelativeAttention: no mask is a mask of true, and a query that may see nothing sees all alike") {
  const Layer layer(fitting, 3);
  Everything tensors;
  Relative relative(2, 5, 7, 2);
  Numbers numbers(4);
  std::generate_n(relative.data(), relative.size(), [&] { return static_cast<std::int64_t>(numbers.below(14)) - 7; });
  const auto open = layer(tensors.queries, tensors.keys, tensors.values, {.relative_positions = relative});
  Eigen::Tensor<bool, 4> mask(2, 5, 7, 2);
  fill(mask, true);
  const auto masked =
      layer(tensors.queries, tensors.keys, tensors.values, {.mask = mask, .relative_positions = relative});
  CHECK(flat(masked.pooled) == flat(open.pooled));
  CHECK(flat(masked.logits) == flat(open.logits));

  fill(mask, false);
  const Call blind_call{.mask = mask, .relative_positions = relative};
  const auto blind = layer(tensors.queries, tensors.keys, tensors.values, blind_call);
  CHECK(flat(blind.logits) == flat(open.logits));
  // Every query gets the same mean, and logits no gradient of pooled.
  for (Index i = 1; i < 5; ++i)
    for (Index d = 0; d < 8; ++d) CHECK(blind.pooled(0, i, d) == blind.pooled(0, 0, d));
  const auto before = tensors.copy();
  auto grads = layer.zero_gradients();
  layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_values, tensors.grad_pooled, blind.logits,
                 tensors.queries, tensors.keys, tensors.values, blind_call, grads);
  const auto after = tensors.copy();
  CHECK(after[4] == before[4]);  // queries
  CHECK(after[5] == before[5]);  // keys
  CHECK(after[6] != before[6]);  // values
}

// ---- The table

TEST_CASE("RelativeAttention: a table may be constant, and given") {
  Options options = fitting;
  const Layer learning(options, 3);
  options.learn_position_embedding = false;
  Layer constant(options, 3);
  CHECK(values_of(constant) == values_of(learning));
  Everything tensors;
  Relative relative(2, 5, 7, 2);
  fill(relative, 1);
  const Call call{.relative_positions = relative};
  const auto gradients = [&](const Layer& layer) {
    auto grads = layer.zero_gradients();
    layer.backward(tensors.grad_queries, tensors.grad_keys, tensors.grad_logits, tensors.queries, tensors.keys, call,
                   grads);
    std::map<std::string, std::vector<double>> result;
    for_each_parameter(grads,
                       [&](std::string_view name, const auto& tensor) { result[std::string(name)] = flat(tensor); });
    return result;
  };
  auto expected = gradients(learning);
  auto found = gradients(constant);
  CHECK(largest(expected.at("position_embedding")) > 0);
  CHECK(largest(found.at("position_embedding")) == 0);
  expected.erase("position_embedding");
  found.erase("position_embedding");
  CHECK(found == expected);

  // Given in the other layout.
  Eigen::Tensor<double, 2> table(11, 4);
  for (Index p = 0; p < 11; ++p)
    for (Index d = 0; d < 4; ++d) table(p, d) = static_cast<double>(10 * p + d);
  constant.set_position_embedding(table);
  const std::vector<double> set = values_of(constant).at("position_embedding");
  CHECK(set == flat(table));

  Eigen::Tensor<double, 2> transposed(4, 11);
  fill(transposed, 0);
  CHECK(message_of<ShapeError>([&] { constant.set_position_embedding(transposed); }) ==
        "RelativeAttention::set_position_embedding: values has shape (4, 11); n_positions = 11, position_size = 4");
  CHECK(values_of(constant).at("position_embedding") == set);
  Layer without({.size = 8, .n_heads = 2});
  CHECK(message_of<ShapeError>([&] { without.set_position_embedding(table); }) ==
        "RelativeAttention::set_position_embedding: values has shape (11, 4); n_positions = 0, position_size = 0");
}

TEST_CASE("RelativeAttention: a checkpoint that was written reads as it was") {
  const auto path = std::filesystem::temp_directory_path() /
                    ("posbias-relative-attention-" + std::to_string(std::random_device{}()) + ".safetensors");
  const Layer layer(fitting, 3);
  io::SafeTensorsWriter writer;
  io::save_parameters(writer, layer, "encoder.0.");
  writer.write(path);
  Layer read(fitting, 4);
  CHECK(values_of(read) != values_of(layer));
  io::load_parameters(read, path, "encoder.0.");
  std::filesystem::remove(path);
  CHECK(values_of(read) == values_of(layer));
  Everything tensors;
  const auto expected = layer(tensors.queries, tensors.keys, tensors.values, {.positions = {{}, {}}});
  const auto found = read(tensors.queries, tensors.keys, tensors.values, {.positions = {{}, {}}});
  CHECK(flat(found.pooled) == flat(expected.pooled));
  CHECK(flat(found.logits) == flat(expected.logits));
}

}  // namespace
