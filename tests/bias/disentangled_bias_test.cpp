// SPDX-License-Identifier: MIT
#include "posbias/bias/disentangled_bias.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "posbias/attention/attention.hpp"
#include "posbias/io/safetensors.hpp"
#include "posbias/layers/relative_attention.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

namespace {

using namespace posbias;
using namespace posbias_test;

using Real = long double;
using Values = std::vector<double>;
using Named = std::map<std::string, Values>;
template <class S>
using Tensor = Eigen::Tensor<S, 4, Eigen::RowMajor>;
using Module = DisentangledBias<double>;
using Options = DisentangledBiasOptions;

template <class S>
Tensor<S> numbers_of(std::uint64_t seed, Index a, Index b, Index c, Index d) {
  Tensor<S> tensor(a, b, c, d);
  Numbers numbers(seed);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<S>(numbers.value());
  return tensor;
}

/// A module none of whose parameters is 0, not even the projections' bias.
template <class S>
DisentangledBias<S> module_of(const Options& options, std::uint64_t seed = 1) {
  DisentangledBias<S> module(options);
  Numbers numbers(seed);
  for_each_parameter(module, [&](std::string_view, auto& tensor) {
    for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<S>(numbers.value());
  });
  return module;
}

template <class Owner>
Named named(const Owner& owner) {
  Named values;
  for_each_parameter(owner,
                     [&](std::string_view name, const auto& tensor) { values[std::string(name)] = flat(tensor); });
  return values;
}

/// Gives `to` the parameters of `from` that it has too.
template <class To, class From>
void copy_by_name(To& to, const From& from) {
  const Named values = named(from);
  for_each_parameter(to, [&](std::string_view name, auto& tensor) {
    if (const auto found = values.find(std::string(name)); found != values.end()) {
      REQUIRE(found->second.size() == static_cast<std::size_t>(tensor.size()));
      std::copy(found->second.begin(), found->second.end(), tensor.data());
    }
  });
}

/// Positions of the rightmost `count` tokens, in each of two batch entries: a function, or the default where there is
/// none.
struct Places {
  Index count = 0;
  std::int64_t (*position)(Index n, Index i) = nullptr;

  [[nodiscard]] std::optional<std::int64_t> at(Index n, Index token, Index tokens) const {
    if (position == nullptr) return token;
    const Index i = token - (tokens - count);
    return i < 0 ? std::nullopt : std::optional(position(n, i));
  }
  [[nodiscard]] Positions positions() const {
    if (position == nullptr) return {};
    Eigen::Tensor<std::int64_t, 2, Eigen::RowMajor> result(2, count);
    for (Index i = 0; i < result.size(); ++i) result.data()[i] = position(i / count, i % count);
    return result;
  }
};

struct PositionCase {
  std::string name;
  Places q, k;

  [[nodiscard]] PairPositions at() const { return {.q = q.positions(), .k = k.positions()}; }
};

/// Differences of these do not repeat: 5 queries and 7 keys in two batch entries have too many for columns.
std::int64_t cubes(Index n, Index i) {
  return i * i * i * (5 + 2 * n);
}

/// Places of 5 queries and 7 keys; the laws know more, but not the ends of what positions may be.
std::vector<PositionCase> position_cases() {
  static constexpr std::int64_t end = Positions::limit;
  const auto offset = [](Index, Index i) -> std::int64_t { return 137 + i; };
  const auto far = [](Index, Index i) -> std::int64_t { return (std::int64_t{1} << 40) + i; };
  return {
      {"default", {}, {}},
      {"offset", {5, offset}, {7, [](Index n, Index i) -> std::int64_t { return 134 + 2 * n + i; }}},
      {"packed",
       {5, [](Index n, Index i) -> std::int64_t { return i % (2 + n); }},
       {7, [](Index n, Index i) -> std::int64_t { return i % (4 - n); }}},
      {"fewer than tokens", {3, offset}, {5, [](Index n, Index i) -> std::int64_t { return 140 + n - i; }}},
      {"only keys", {}, {4, [](Index, Index i) -> std::int64_t { return 3 * i - 5; }}},
      {"2^40", {5, far}, {6, far}},
      {"wide gaps",
       {5, far},
       {7, [](Index, Index i) -> std::int64_t { return i % 3 == 0 ? i : (std::int64_t{1} << 40) - i; }}},
      {"not repeating", {5, cubes}, {7, cubes}},
      {"not repeating, fewer", {5, cubes}, {6, [](Index n, Index i) -> std::int64_t { return cubes(n, i) + 3 * i; }}},
      {"extremes",
       {5, [](Index, Index i) -> std::int64_t { return i % 2 == 0 ? end - i : i - end; }},
       {7, [](Index, Index i) -> std::int64_t { return i % 3 == 0 ? i - end : end - i; }}},
      {"extreme, but near",
       {5, [](Index, Index i) -> std::int64_t { return end - 3 * i; }},
       {7, [](Index, Index i) -> std::int64_t { return end - 2 * i; }}},
      {"extremes not repeating",
       {5,
        [](Index n, Index i) -> std::int64_t {
          return i % 2 == 0 ? end - 1000 * cubes(n, i) : 1000 * cubes(n, i) - end;
        }},
       {7, [](Index n, Index i) -> std::int64_t { return end - cubes(n, i); }}},
      {"no positions", {0, cubes}, {7, cubes}},
  };
}

/// The bias in plain loops.
class Formula {
 public:
  template <class S>
  explicit Formula(const DisentangledBias<S>& module) : options_(module.options()) {
    const Named values = named(module);
    const bool same = options_.same_positional_key_query_proj;
    keys_ = projected(values, "position_key_proj");
    queries_ = projected(values, same ? "position_key_proj" : "position_query_proj");
  }

  /// Added to the logit of head h; `query` and `key` are its features.
  template <class S>
  [[nodiscard]] Real operator()(Index h, const S* query, const S* key, std::int64_t pos_q, std::int64_t pos_k) const {
    const std::int64_t key_minus_query = pos_k - pos_q;
    std::int64_t of_keys = key_minus_query, of_queries = key_minus_query;
    if (options_.index == DisentangledIndex::query_minus_key) of_keys = of_queries = -key_minus_query;
    if (options_.index == DisentangledIndex::paper) of_keys = -key_minus_query;
    Real sum = 0;
    for (Index f = 0; f < options_.head_dim; ++f) {
      if (options_.mode.contains(c2p)) sum += static_cast<Real>(query[f]) * keys_[place(h, f, of_keys)];
      if (options_.mode.contains(p2c)) sum += static_cast<Real>(key[f]) * queries_[place(h, f, of_queries)];
    }
    return sum * options_.scale.value_or(1 / std::sqrt(static_cast<double>(options_.head_dim)));
  }

  /// For q (B, L1, NH, H) and k (B, L2, NHk, H): (B, NH, L1, L2), 0 where a token has no position.
  template <class S>
  [[nodiscard]] Values mask(const Tensor<S>& q, const Tensor<S>& k, const PositionCase& position_case) const {
    const Index B = q.dimension(0), L1 = q.dimension(1), NH = q.dimension(2), H = q.dimension(3);
    const Index L2 = k.dimension(1), NHk = k.dimension(2);
    Values result;
    for (Index n = 0; n < B; ++n)
      for (Index h = 0; h < NH; ++h)
        for (Index i = 0; i < L1; ++i)
          for (Index j = 0; j < L2; ++j) {
            const auto pos_q = position_case.q.at(n, i, L1), pos_k = position_case.k.at(n, j, L2);
            const S* query = q.data() + ((n * L1 + i) * NH + h) * H;
            const S* key = k.data() + ((n * L2 + j) * NHk + h / (NH / NHk)) * H;
            result.push_back(pos_q && pos_k ? static_cast<double>((*this)(h, query, key, *pos_q, *pos_k)) : 0);
          }
    return result;
  }

 private:
  /// (n_positions, NH·H)
  [[nodiscard]] std::vector<Real> projected(const Named& values, const std::string& projection) const {
    const Values& table = values.at("position_embedding");
    const Values& weight = values.at(projection + ".weight");
    const Values& bias = values.at(projection + ".bias");
    const std::size_t rows = static_cast<std::size_t>(options_.n_positions), outputs = bias.size();
    const std::size_t inputs = table.size() / rows;
    std::vector<Real> result;
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t o = 0; o < outputs; ++o) {
        result.push_back(bias[o]);
        for (std::size_t d = 0; d < inputs; ++d)
          result.back() += static_cast<Real>(table[row * inputs + d]) * weight[d * outputs + o];
      }
    return result;
  }

  [[nodiscard]] std::size_t place(Index h, Index f, std::int64_t relative) const {
    const Index n = options_.n_positions, middle = n / 2;
    const Index row = relative < -middle ? 0 : relative > n - 1 - middle ? n - 1 : relative + middle;
    return static_cast<std::size_t>((row * options_.n_heads + h) * options_.head_dim + f);
  }

  Options options_;
  std::vector<Real> keys_, queries_;
};

/// Every index with every mode, twice; heads of keys that are shared by 1, 2, 6 and 3 of queries.
struct Setting {
  Options options;
  Index NHk;
};

std::vector<Setting> settings() {
  using enum DisentangledIndex;
  std::vector<Setting> all;
  for (const int round : {0, 1})
    for (const DisentangledIndex index : {key_minus_query, query_minus_key, paper})
      for (const AttentionTerms& mode : {AttentionTerms{c2p, p2c}, AttentionTerms{c2p}, AttentionTerms{p2c}}) {
        const std::size_t i = all.size();
        all.push_back({{.n_heads = 6,
                        .head_dim = 4,
                        .n_positions = std::array{12, 7, 1, 8, 2}[i % 5],
                        .position_size = i / 2 % 2 == 0 ? 5 : 0,
                        .same_positional_key_query_proj = i % 2 == 0,
                        .mode = mode,
                        .index = index},
                       std::array{6, 3, 1, 2}[i % 4]});
        if (round == 1) all.back().options.scale = -0.75;
      }
  return all;
}

TEMPLATE_TEST_CASE("DisentangledBias is the formula's, wherever tokens are", "", double, float) {
  using S = TestType;
  for (const auto& [options, NHk] : settings()) {
    INFO("index " << static_cast<int>(options.index) << ", c2p " << options.mode.contains(c2p) << ", p2c "
                  << options.mode.contains(p2c) << ", n_positions " << options.n_positions << ", NHk " << NHk);
    const auto module = module_of<S>(options);
    const auto q = numbers_of<S>(2, 2, 5, 6, 4), k = numbers_of<S>(3, 2, 7, NHk, 4);
    const Formula formula(module);
    for (const PositionCase& position_case : position_cases()) {
      INFO(position_case.name);
      const Values expected = formula.mask(q, k, position_case);
      CHECK((largest(expected) > 0.1) == (position_case.name != "no positions"));
      // Sums of a few numbers cancel.
      check_close(flat(module.make_mask(q, k, k, position_case.at())), expected, golden_tolerance<S>,
                  golden_tolerance<S> / 10 * largest(expected));
    }
  }
}

TEST_CASE("DisentangledBias: the table's row, with one-hot queries, keys and tables") {
  // One head of one feature; the table's row r is r for keys, and 100·r for queries.
  const auto check = [](DisentangledIndex index, Index n_positions, double query, double key, Index pos_q,
                        const Values& expected) {
    Module module({.n_heads = 1, .head_dim = 1, .n_positions = n_positions, .index = index});
    for_each_parameter(module, [](std::string_view name, auto& tensor) {
      for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<double>(i);
      if (name == "position_key_proj.weight") tensor.setConstant(1);
      if (name == "position_query_proj.weight") tensor.setConstant(100);
    });
    Tensor<double> q(1, 1, 1, 1), k(1, 6, 1, 1);
    q.setConstant(query);
    k.setConstant(key);
    CHECK(flat(module.make_mask(q, k, k, {.q = Positions::range(pos_q), .k = Positions::range(100)})) == expected);
  };
  using enum DisentangledIndex;
  // Keys at 100 .. 105, the query at 103.
  check(key_minus_query, 5, 1, 0, 103, {0, 0, 1, 2, 3, 4});
  check(key_minus_query, 4, 1, 0, 103, {0, 0, 1, 2, 3, 3});
  check(key_minus_query, 5, 0, 1, 103, {0, 0, 100, 200, 300, 400});
  check(query_minus_key, 5, 1, 0, 103, {4, 4, 3, 2, 1, 0});
  check(query_minus_key, 4, 0, 1, 103, {300, 300, 300, 200, 100, 0});
  check(paper, 5, 1, 0, 103, {4, 4, 3, 2, 1, 0});
  check(paper, 4, 1, 0, 103, {3, 3, 3, 2, 1, 0});
  check(paper, 5, 0, 1, 103, {0, 0, 100, 200, 300, 400});
  check(paper, 4, 0, 1, 103, {0, 0, 100, 200, 300, 300});
  check(key_minus_query, 2, 1, 1, 103, {0, 0, 0, 101, 101, 101});
  check(key_minus_query, 1, 1, 1, 103, Values(6, 0));
  check(key_minus_query, 5, 2, 1, 200, Values(6, 0));
  check(key_minus_query, 5, 2, 1, -200, Values(6, 408));
}

// ---- Gradients

/// What a bias depends on.
struct Inputs {
  Module module;
  Tensor<double> q, k;

  /// Sum of weight times bias.
  [[nodiscard]] double loss(const Tensor<double>& weights, const PairPositions& at) const {
    const auto mask = module.make_mask(q, k, k, at);
    Real sum = 0;
    for (Index i = 0; i < mask.size(); ++i)
      sum += static_cast<Real>(weights.data()[i]) * static_cast<Real>(mask.data()[i]);
    return static_cast<double>(sum);
  }

  /// visit(name, tensor)
  template <class Visit>
  void for_each(const Visit& visit) {
    visit("q", q);
    visit("k", k);
    for_each_parameter(module, [&](std::string_view name, auto& tensor) { visit(name, tensor); });
  }
};

/// Gradients of all inputs, by name. They start as 5, what is given back is what was added.
Named gradients_of(const Inputs& in, const Tensor<double>& weights, const PairPositions& at) {
  Tensor<double> grad_q = in.q, grad_k = in.k, grad_v = in.k;
  const Tensor<double> grad_mask = weights;
  auto grads = in.module.zero_gradients();
  grad_q.setConstant(5);
  grad_k.setConstant(5);
  for_each_parameter(grads, [](std::string_view, auto& tensor) { tensor.setConstant(5); });
  in.module.mod_mask_backward(grad_mask, grad_q, grad_k, grad_v, in.q, in.k, in.k, at, grads);
  CHECK(flat(grad_mask) == flat(weights));
  CHECK(flat(grad_v) == flat(in.k));
  Named result = named(grads);
  result["q"] = flat(grad_q);
  result["k"] = flat(grad_k);
  for (auto& [name, values] : result)
    for (double& value : values) value -= 5;
  return result;
}

TEST_CASE("DisentangledBias: every entry's gradient is that of differences, grouped keys and no columns included",
          "[differences]") {
  const std::vector<PositionCase> some{{"fewer, packed",
                                        {4, [](Index n, Index i) -> std::int64_t { return 100 + n + i % 3; }},
                                        {5, [](Index n, Index i) -> std::int64_t { return 99 - n + i; }}},
                                       {"no columns", {5, cubes}, {7, cubes}}};
  using enum DisentangledIndex;
  const Options both{.n_heads = 4, .head_dim = 2, .n_positions = 6, .position_size = 3};
  Options same = both, keys_only = both, queries_only = both;
  same.same_positional_key_query_proj = true;
  same.index = paper;
  same.scale = 0.3;
  keys_only.mode = {c2p};
  keys_only.index = query_minus_key;
  queries_only.mode = {p2c};
  for (const Setting& setting : {Setting{both, 4}, {both, 2}, {same, 1}, {keys_only, 2}, {queries_only, 2}}) {
    const Options& options = setting.options;  // a structured binding could not be captured
    const Index NHk = setting.NHk;
    Inputs in{module_of<double>(options), numbers_of<double>(2, 2, 5, 4, 2), numbers_of<double>(3, 2, 7, NHk, 2)};
    const auto weights = numbers_of<double>(4, 2, 4, 5, 7);
    for (const PositionCase& position_case : some) {
      INFO(position_case.name << ", NHk " << NHk << ", c2p " << options.mode.contains(c2p) << ", p2c "
                              << options.mode.contains(p2c) << ", same " << options.same_positional_key_query_proj);
      const PairPositions at = position_case.at();
      // With shared heads of keys and without columns, sums of different heads are one.
      const bool shares = NHk < 4 && options.mode.contains(p2c);
      CHECK(in.module.prepare(in.q, in.k, at).heads_are_independent() ==
            (position_case.name != "no columns" && !shares));
      const Named gradients = gradients_of(in, weights, at);
      in.for_each([&](std::string_view name, auto& tensor) {
        const Values& gradient = gradients.at(std::string(name));
        REQUIRE(gradient.size() == static_cast<std::size_t>(tensor.size()));
        const bool unused = (name == "q" && !options.mode.contains(c2p)) ||
                            (name == "k" && !options.mode.contains(p2c)) ||
                            (name.starts_with("position_query") && !options.mode.contains(p2c)) ||
                            (name.starts_with("position_key") && !options.mode.contains(c2p) &&
                             !options.same_positional_key_query_proj);
        CHECK((largest(gradient) == 0) == unused);
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          // The bias is linear in each entry.
          double& entry = tensor.data()[i];
          const double before = entry;
          entry = before + 0.5;
          const double above = in.loss(weights, at);
          entry = before - 0.5;
          const double slope = above - in.loss(weights, at);
          entry = before;
          if (!(std::abs(gradient[i] - slope) <= 1e-11))
            FAIL_CHECK(name << "[" << i << "]: " << gradient[i] << ", by differences " << slope);
        }
      });
    }
  }
}

TEST_CASE("DisentangledBias: many queries and many keys, over blocks and strips of columns") {
  const auto near = [](Index, Index i) -> std::int64_t { return 100 + i; };
  const auto apart = [](Index, Index i) -> std::int64_t { return 100 + 80 * i; };
  for (const PositionCase& position_case : {PositionCase{"many queries", {1300, near}, {19, near}},
                                            {"many keys", {19, near}, {1300, near}},
                                            {"gaps between strips", {70, apart}, {45, apart}}}) {
    INFO(position_case.name);
    const Index L1 = position_case.q.count, L2 = position_case.k.count;
    Inputs in{module_of<double>({.n_heads = 2, .head_dim = 3, .n_positions = 1100, .position_size = 2}),
              numbers_of<double>(2, 2, L1, 2, 3), numbers_of<double>(3, 2, L2, 1, 3)};
    const PairPositions at = position_case.at();
    const Values expected = Formula(in.module).mask(in.q, in.k, position_case);
    check_close(flat(in.module.make_mask(in.q, in.k, in.k, at)), expected, 1e-12, 1e-13 * largest(expected));

    // All entries at once, each its own way; of third degree, so differences of fourth order are exact.
    const auto weights = numbers_of<double>(4, 2, 2, L1, L2);
    const Named gradients = gradients_of(in, weights, at);
    double along = 0;
    const auto loss = [&](double step) {
      Inputs moved = in;
      Numbers numbers(5);
      along = 0;
      moved.for_each([&](std::string_view name, auto& tensor) {
        for (Index i = 0; i < tensor.size(); ++i) {
          const double direction = numbers.value();
          along += direction * gradients.at(std::string(name))[static_cast<std::size_t>(i)];
          tensor.data()[i] += step * direction;
        }
      });
      return moved.loss(weights, at);
    };
    const double slope = (8 * (loss(0.25) - loss(-0.25)) - (loss(0.5) - loss(-0.5))) / 3;
    CHECK(std::abs(slope) > 1);
    CHECK(along == Approx(slope).epsilon(1e-10));
  }
}

TEST_CASE("DisentangledBias: one tensor may be queries and keys, and one their gradient") {
  const Module module = module_of<double>({.n_heads = 3, .head_dim = 2, .n_positions = 7});
  const auto x = numbers_of<double>(2, 2, 5, 3, 2), grad_mask = numbers_of<double>(4, 2, 3, 5, 5);
  Tensor<double> grad_q = x, grad_k = x, grad_x = x, none = x;
  for (auto* tensor : {&grad_q, &grad_k, &grad_x}) tensor->setZero();
  auto apart = module.zero_gradients(), together = module.zero_gradients();
  module.mod_mask_backward(grad_mask, grad_q, grad_k, none, x, x, x, {}, apart);
  module.mod_mask_backward(grad_mask, grad_x, grad_x, none, x, x, x, {}, together);
  grad_q += grad_k;
  check_close(flat(grad_x), flat(grad_q), 1e-13);
  CHECK(named(together) == named(apart));
}

// ---- Tiles

TEST_CASE("a transposed tile is the same logits, with keys in the place of queries") {
  Values logits(2 * 5 * 7);
  const LogitTile<double> tile{logits.data(), 35, 7, 1, 1, 3, 2, 10, 5, 20, 7}, turned = tile.transposed();
  CHECK(std::tuple(turned.batch, turned.head, turned.heads) == std::tuple(1, 3, 2));
  CHECK(std::tuple(turned.query, turned.queries, turned.key, turned.keys) == std::tuple(20, 7, 10, 5));
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 7; ++j)
        CHECK(turned.row(h, j) + i * turned.key_stride == tile.row(h, i) + j * tile.key_stride);
}

TEST_CASE("DisentangledBias in tiles is the bias of the whole mask, and its gradient") {
  const Module module = module_of<double>({.n_heads = 4, .head_dim = 3, .n_positions = 9, .position_size = 5});
  const Index B = 2, NH = 4, L1 = 5, L2 = 7;
  const auto q = numbers_of<double>(2, B, L1, NH, 3), k = numbers_of<double>(3, B, L2, 2, 3);
  const auto grad_mask = numbers_of<double>(4, B, NH, L1, L2);
  Eigen::Tensor<std::int64_t, 2> apart(B, L2 - 1);
  for (Index i = 0; i < apart.size(); ++i) apart.data()[i] = 100 + i * i * i;
  for (const PairPositions& at : {PairPositions{.q = Positions::range(103), .k = Positions::range(100)},
                                  PairPositions{.q = Positions::range(200), .k = apart}}) {
    const auto mask = module.make_mask(q, k, k, at);
    auto whole_q = q, tiled_q = q, whole_k = k, tiled_k = k, none = k;
    auto whole = module.zero_gradients(), tiled = module.zero_gradients();
    module.mod_mask_backward(grad_mask, whole_q, whole_k, none, q, k, k, at, whole);

    const auto prepared = module.prepare(q, k, at);
    CHECK(prepared.accumulates());
    auto sums = prepared.accumulator(tiled_q, tiled_k);
    Tensor<double> tiles(B, NH, L1, L2);
    tiles.setZero();
    for (Index n = 0; n < B; ++n)
      for (Index h = 0; h < NH; h += 3)
        for (Index i = 0; i < L1; i += 3)
          for (Index j = 0; j < L2; j += 4) {
            const auto tile = [&](auto* data) {
              return LogitTile<std::remove_pointer_t<decltype(data)>>{data,
                                                                      L1 * L2,
                                                                      L2,
                                                                      1,
                                                                      n,
                                                                      h,
                                                                      std::min<Index>(3, NH - h),
                                                                      i,
                                                                      std::min<Index>(3, L1 - i),
                                                                      j,
                                                                      std::min<Index>(4, L2 - j)};
            };
            prepared.add_to(tile(&tiles(n, h, i, j)));
            prepared.accumulate(tile(&std::as_const(grad_mask)(n, h, i, j)), sums);
          }
    prepared.finish(sums, tiled);
    CHECK(flat(tiles) == flat(mask));
    check_close(flat(tiled_q), flat(whole_q), 1e-12);
    check_close(flat(tiled_k), flat(whole_k), 1e-12);
    const Named expected = named(whole);
    for (const auto& [name, gradient] : named(tiled)) check_close(gradient, expected.at(name), 1e-12);
  }
}

// ---- Attention

/// q·k of head h; B, L, heads, features.
Real product_of(const Tensor<double>& q, const Tensor<double>& k, Index n, Index h, Index i, Index j) {
  const Index group = q.dimension(2) / k.dimension(2);
  Real sum = 0;
  for (Index f = 0; f < q.dimension(3); ++f)
    sum += static_cast<Real>(q(n, i, h, f)) * static_cast<Real>(k(n, j, h / group, f));
  return sum;
}

TEST_CASE("DisentangledBias with its table is RelativeAttention's c2p and p2c") {
  const Index B = 2, L1 = 5, L2 = 7, NH = 3, H = 4, D = NH * H;
  struct Terms {
    AttentionTerms of_layer, of_bias;
    Index count;
  };
  for (const bool same : {false, true})
    for (const Terms& terms : {Terms{{c2c, c2p, p2c}, {c2p, p2c}, 3},
                               {{c2p, p2c}, {c2p, p2c}, 2},
                               {{c2c, p2c}, {p2c}, 2},
                               {{c2p}, {c2p}, 1}}) {
      INFO("terms " << terms.count << ", same " << same);
      RelativeAttention<double> layer({.size = D,
                                       .n_heads = NH,
                                       .n_positions = 8,
                                       .position_size = 5,
                                       .same_positional_key_query_proj = same,
                                       .head_bias = false,
                                       .do_pooling = false,
                                       .mode = terms.of_layer});
      Options options{.n_heads = NH,
                      .head_dim = H,
                      .n_positions = 8,
                      .position_size = 5,
                      .same_positional_key_query_proj = same,
                      .mode = terms.of_bias};
      // Its own default is that of one term.
      const double scale = 1 / std::sqrt(static_cast<double>(terms.count * H));
      if (terms.count > 1) options.scale = scale;
      const Module module = module_of<double>(options);
      copy_by_name(layer, module);
      for_each_parameter(layer, [&](std::string_view name, auto& tensor) {
        if (!name.starts_with("content_")) return;
        tensor.setZero();
        if (name.ends_with("weight"))
          for (Index d = 0; d < D; ++d) tensor.data()[d * (D + 1)] = 1;
      });
      const auto q = numbers_of<double>(2, B, L1, NH, H), k = numbers_of<double>(3, B, L2, NH, H);
      const Eigen::TensorMap<const Eigen::Tensor<double, 3, Eigen::RowMajor>> queries(q.data(), B, L1, D),
          keys(k.data(), B, L2, D);
      Eigen::Tensor<std::int64_t, 2> packed(B, L1 - 1);
      for (Index i = 0; i < packed.size(); ++i) packed.data()[i] = 100 + 2 * (i % 3);
      const PairPositions at{.q = packed, .k = Positions::range(101)};

      const auto logits = layer(queries, keys, {.positions = {at}});
      const auto bias = module.make_mask(q, k, k, at);
      Values expected, found;
      for (Index n = 0; n < B; ++n)
        for (Index h = 0; h < NH; ++h)
          for (Index i = 0; i < L1; ++i)
            for (Index j = 0; j < L2; ++j) {
              const Real content = terms.of_layer.contains(c2c) ? scale * product_of(q, k, n, h, i, j) : 0;
              found.push_back(bias(n, h, i, j) + static_cast<double>(content));
              expected.push_back(logits(n, i, j, h));
            }
      check_close(found, expected, 1e-12, 1e-13 * largest(expected));
    }
}

TEST_CASE("DisentangledBias in fused attention is DeBERTa's") {
  const Index B = 2, L1 = 5, L2 = 7, NH = 4, NHk = 2, H = 3;
  const double scale = 1 / std::sqrt(3. * H);
  const Module module = module_of<double>({.n_heads = NH,
                                           .head_dim = H,
                                           .n_positions = 6,
                                           .position_size = 8,
                                           .scale = scale,
                                           .index = DisentangledIndex::query_minus_key});
  const auto q = numbers_of<double>(2, B, L1, NH, H), k = numbers_of<double>(3, B, L2, NHk, H),
             v = numbers_of<double>(4, B, L2, NHk, H);
  const PositionCase position_case{"",
                                   {L1, [](Index, Index i) -> std::int64_t { return 103 + i; }},
                                   {L2, [](Index, Index i) -> std::int64_t { return 100 + i; }}};
  Values weights = Formula(module).mask(q, k, position_case);
  Tensor<double> expected(B, L1, NH, H), out = expected;
  for (Index n = 0, row = 0; n < B; ++n)
    for (Index h = 0; h < NH; ++h)
      for (Index i = 0; i < L1; ++i, row += L2) {
        Real sum = 0;
        std::array<Real, 3> pooled{};
        for (Index j = 0; j < L2; ++j) {
          const Real logit = scale * product_of(q, k, n, h, i, j) + weights[static_cast<std::size_t>(row + j)];
          sum += std::exp(logit);
          for (std::size_t f = 0; f < 3; ++f) pooled[f] += std::exp(logit) * v(n, j, h / 2, static_cast<Index>(f));
        }
        for (std::size_t f = 0; f < 3; ++f)
          expected(n, i, h, static_cast<Index>(f)) = static_cast<double>(pooled[f] / sum);
      }
  attention(out, q, k, v, module, {.scale = scale, .at = position_case.at()});
  check_close(flat(out), flat(expected), 1e-12, 1e-14);
}

// ---- Parameters

TEST_CASE("DisentangledBias: names, shapes and start of its parameters") {
  const Options options{.n_heads = 4, .head_dim = 8, .n_positions = 50, .position_size = 16};
  const auto shapes = [](const Module& module) {
    std::map<std::string, std::vector<Index>> result;
    for_each_parameter(module, [&](std::string_view name, const auto& tensor) {
      result[std::string(name)] = {tensor.dimensions().begin(), tensor.dimensions().end()};
    });
    return result;
  };
  std::map<std::string, std::vector<Index>> expected{{"position_embedding", {50, 16}},
                                                     {"position_key_proj.weight", {1, 16, 32}},
                                                     {"position_key_proj.bias", {1, 32}},
                                                     {"position_query_proj.weight", {1, 16, 32}},
                                                     {"position_query_proj.bias", {1, 32}}};
  CHECK(shapes(Module(options)) == expected);
  Options same = options;
  same.same_positional_key_query_proj = true;
  expected.erase("position_query_proj.weight");
  expected.erase("position_query_proj.bias");
  CHECK(shapes(Module(same)) == expected);
  same.position_size = 0;
  CHECK(shapes(Module(same)).at("position_embedding") == std::vector<Index>{50, 32});
  CHECK(Module(same).options().position_size == 32);
  CHECK(options.mode.contains(c2p));
  CHECK(options.mode.contains(p2c));
  CHECK(options.index == DisentangledIndex::key_minus_query);

  const auto start = [&](std::uint64_t seed) { return named(Module(options, seed)); };
  CHECK(start(7) == start(7));
  CHECK(start(0) == named(Module(options)));
  const Named values = start(7), other = start(8);
  for (const std::string name : {"position_key_proj", "position_query_proj"}) {
    INFO(name);
    CHECK(largest(values.at(name + ".bias")) == 0);
    const Values& weight = values.at(name + ".weight");
    CHECK(weight != other.at(name + ".weight"));
    const auto [least, most] = std::ranges::minmax(weight);
    CHECK(least >= -0.25);
    CHECK(most < 0.25);
    CHECK(most - least > 0.48);  // of 512
  }
  CHECK(values.at("position_key_proj.weight") != values.at("position_query_proj.weight"));
  const Values& table = values.at("position_embedding");
  CHECK(table != other.at("position_embedding"));
  double mean = 0, square = 0;
  for (const double value : table) {
    mean += value / 800;
    square += value * value / 800;
  }
  CHECK(std::abs(mean) < 0.15);  // 4 deviations
  CHECK(std::abs(square - 1) < 0.2);
}

TEST_CASE("DisentangledBias reads the table of a RelativeAttention's checkpoint") {
  const auto path = std::filesystem::temp_directory_path() /
                    ("posbias-disentangled-bias-" + std::to_string(std::random_device{}()) + ".safetensors");
  const RelativeAttention<double> layer({.size = 12, .n_heads = 3, .n_positions = 7, .position_size = 5}, 3);
  io::SafeTensorsWriter writer;
  io::save_parameters(writer, layer, "encoder.0.");
  writer.write(path);
  Module module({.n_heads = 3, .head_dim = 4, .n_positions = 7, .position_size = 5}, 4);
  io::load_parameters(module, path, "encoder.0.");
  std::filesystem::remove(path);
  const Named of_layer = named(layer);
  CHECK(named(module).size() == 5);
  for (const auto& [name, values] : named(module)) CHECK(values == of_layer.at(name));
}

// ---- What is refused

template <class Q, class K>
concept CanPrepare = requires(const Module& module, Q&& q, K&& k) {
  module.prepare(std::forward<Q>(q), std::forward<K>(k));
};
template <class M>
concept CanBePrepared = requires(M&& module, const Tensor<double>& q) {
  std::forward<M>(module).prepare(q, q);
};
using Map = Eigen::TensorMap<Tensor<double>>;

// What is prepared refers to all three. A map does not own what it refers to.
static_assert(CanPrepare<const Tensor<double>&, Tensor<double>&> && CanPrepare<Map, Map>);
static_assert(!CanPrepare<Tensor<double>, const Tensor<double>&> && !CanPrepare<const Tensor<double>&, Tensor<double>>);
static_assert(!CanPrepare<Tensor<double>, Tensor<double>> && !CanPrepare<const Tensor<double>, Map>);
static_assert(!CanPrepare<Map, const Tensor<double>>);
static_assert(CanBePrepared<const Module&> && CanBePrepared<Module&> && !CanBePrepared<Module>);

/// Compiled once: these texts are many.
void same(const std::string& text, const std::string& expected) {
  CHECK(text == expected);
}

TEST_CASE("DisentangledBias: options that cannot be are refused by name") {
  const auto refused = [](const Options& options) { return message_of<OptionError>([&] { Module module(options); }); };
  const Options good{.n_heads = 2, .head_dim = 3, .n_positions = 4};
  const auto with = [&](auto Options::*option, auto value) {
    Options options = good;
    options.*option = value;
    return refused(options);
  };
  const std::string name = "DisentangledBias: ",
                    required = "; it is required, and must be positive and at most 2147483647";
  same(refused(good), "<nothing thrown>");
  same(refused({}), name + "n_heads = 0" + required);
  same(with(&Options::n_heads, -1), name + "n_heads = -1" + required);
  same(refused({.n_heads = 2, .n_positions = 4}), name + "head_dim = 0" + required);
  same(with(&Options::head_dim, 0), name + "head_dim = 0" + required);
  same(with(&Options::head_dim, -3), name + "head_dim = -3" + required);
  same(with(&Options::n_positions, 0), name + "n_positions = 0" + required);
  same(with(&Options::n_positions, -7), name + "n_positions = -7" + required);
  same(with(&Options::position_size, -1), name + "position_size = -1; it must not be negative");
  same(with(&Options::mode, AttentionTerms{c2c, c2p}), name + "mode has c2c; that is what attention computes itself");
  same(with(&Options::mode, AttentionTerms{c2c}), name + "mode has c2c; that is what attention computes itself");
  same(with(&Options::mode, AttentionTerms{}), name + "mode has no term");
  const std::string finite = "; it must be finite, also as the tensors' scalar";
  same(with(&Options::scale, std::nan("")), name + "scale = nan" + finite);
  same(with(&Options::scale, -std::numeric_limits<double>::infinity()), name + "scale = -inf" + finite);
  same(with(&Options::scale, 0.), "<nothing thrown>");
  Options large = good;
  large.scale = 1e300;
  same(refused(large), "<nothing thrown>");
  same(message_of<OptionError>([&] { DisentangledBias<float> module(large); }), name + "scale = 1e+300" + finite);
}

TEST_CASE("DisentangledBias names what is wrong and writes nothing") {
  using Heads = Tensor<double>;
  const Options options{.n_heads = 3, .head_dim = 8, .n_positions = 4, .position_size = 5};
  const Module module(options, 1);
  Heads mask(2, 3, 5, 7), q(2, 5, 3, 8), k(2, 7, 3, 8), narrow_q(2, 5, 3, 4), narrow_k(2, 7, 3, 4), two_q(2, 5, 2, 8),
      two_k(2, 7, 2, 8), two(2, 2, 5, 7), square_k(2, 5, 3, 8), square(2, 3, 5, 5);
  const std::array all_tensors{&mask, &q, &k, &narrow_q, &narrow_k, &two_q, &two_k, &two, &square_k, &square};
  for (Heads* tensor : all_tensors) tensor->setConstant(0.5);
  const auto zero_gradients = [&](auto Options::*option, auto value) {
    Options other = options;
    other.*option = value;
    return Module(other).zero_gradients();
  };
  auto grads = module.zero_gradients(), longer = zero_gradients(&Options::n_positions, 6),
       sharing_grads = zero_gradients(&Options::same_positional_key_query_proj, true);

  const std::string hook = "DisentangledBias::mod_mask: ", backward = "DisentangledBias::mod_mask_backward: ";
  const auto forward_message = [&]<class E>(std::type_identity<E>, Heads& to, Heads& query, Heads& key,
                                            const PairPositions& at = {}) {
    const std::string text = message_of<E>([&] { module.mod_mask(to, query, key, key, at); });
    same(message_of<E>([&] { (void)module.plan_mod_mask(to, query, key, key, at); }), text);
    return text;
  };
  const auto backward_message = [&]<class E>(std::type_identity<E>, Heads& grad_mask, Heads& grad_q, Heads& grad_k,
                                             auto& into, const PairPositions& at = {}) {
    const std::string text =
        message_of<E>([&] { module.mod_mask_backward(grad_mask, grad_q, grad_k, grad_k, q, k, k, at, into); });
    same(message_of<E>([&] { (void)module.plan_mod_mask_backward(grad_mask, grad_q, grad_k, grad_k, q, k, k, at, into); }),
         text);
    return text;
  };
  constexpr std::type_identity<ShapeError> shape;
  constexpr std::type_identity<PositionError> position;

  same(forward_message(shape, two, two_q, two_k), hook + "q has 2 heads; n_heads = 3");
  same(forward_message(shape, mask, narrow_q, narrow_k), hook + "q has 4 features per head; head_dim = 8");
  same(forward_message(shape, mask, q, two_k),
       hook +
           "k has shape (2, 7, 2, 8); q has (2, 5, 3, 8) and needs (B, *, L2, NH, H) with the same B, *, NH (or a "
           "divisor of it) and H");
  same(forward_message(shape, two, q, k),
       hook +
           "mask has shape (2, 2, 5, 7); q of shape (2, 5, 3, 8) and k of shape (2, 7, 3, 8) need (B, *, NH, L1, "
           "L2)");
  same(message_of<ShapeError>([&] { (void)module.prepare(two_q, two_k); }),
       "DisentangledBias::prepare: q has 2 heads; n_heads = 3");
  CHECK(message_of<ShapeError>([&] { (void)module.make_mask(narrow_q, narrow_k, narrow_k); }) != "<nothing thrown>");

  same(backward_message(shape, two, q, k, grads),
       backward +
           "grad_mask has shape (2, 2, 5, 7); q of shape (2, 5, 3, 8) and k of shape (2, 7, 3, 8) need (B, *, "
           "NH, L1, L2)");
  same(backward_message(shape, mask, narrow_q, k, grads),
       backward + "grad_q has shape (2, 5, 3, 4); q has (2, 5, 3, 8)");
  same(backward_message(shape, mask, q, two_k, grads), backward + "grad_k has shape (2, 7, 2, 8); k has (2, 7, 3, 8)");
  const std::string use_own = "; use the module's zero_gradients()";
  same(backward_message(shape, mask, q, k, longer),
       backward + "grads entry position_embedding has shape (6, 5); the parameter has (4, 5)" + use_own);
  same(backward_message(shape, mask, q, k, sharing_grads),
       backward + "grads lacks an entry position_query_proj.weight" + use_own);
  const Module sharing(
      {.n_heads = 3, .head_dim = 8, .n_positions = 4, .position_size = 5, .same_positional_key_query_proj = true});
  same(message_of<ShapeError>([&] { sharing.mod_mask_backward(mask, q, k, k, q, k, k, {}, grads); }),
       backward + "grads has an entry position_query_proj.weight that the module does not learn" + use_own);

  // Gradients of q and k are one tensor or apart.
  Heads grad_k = k;
  same(message_of<ShapeError>(
           [&] { module.mod_mask_backward(mask, narrow(grad_k, 1, 0, 5), grad_k, grad_k, q, k, k, {}, grads); }),
       backward + "grad_q shares memory with grad_k; it is written to");
  CHECK(std::all_of(grad_k.data(), grad_k.data() + grad_k.size(), [](double value) { return value == 0.5; }));

  // Positions: integers alone.
  const std::string needed = "; integers strictly between -2^62 and 2^62 are needed";
  Eigen::Tensor<double, 1> reals(5);
  reals.setValues({0, 1, 2.5, 3, 4});
  same(forward_message(position, mask, q, k, {.q = reals}), hook + "q at index 2 is 2.5" + needed);
  same(forward_message(position, mask, q, k, {.k = reals}), hook + "k at index 2 is 2.5" + needed);
  same(forward_message(position, square, q, square_k, {.q_k = reals}), hook + "q_k at index 2 is 2.5" + needed);
  same(backward_message(position, mask, q, k, grads, {.k = reals}), backward + "k at index 2 is 2.5" + needed);
  same(message_of<PositionError>([&] { (void)module.prepare(q, k, {.q = reals}); }),
       "DisentangledBias::prepare: q at index 2 is 2.5" + needed);
  reals.setValues({0, 1, 2, 0x1p62, 4});
  CHECK_THAT(forward_message(position, mask, q, k, {.q = reals}), contains(hook + "q at index 3 is 4.6"));
  reals.setValues({0, 1, 2, 3, std::nan("")});
  same(forward_message(position, mask, q, k, {.k = reals}), hook + "k at index 4 is nan; positions must be finite");
  Eigen::Tensor<std::int64_t, 1> integers(8);
  integers.setZero();
  same(forward_message(position, mask, q, k, {.k = integers}), hook + "k has 8 positions for 7 tokens");
  const Eigen::TensorMap<Eigen::Tensor<std::int64_t, 1>> three(integers.data(), 3);
  three(1) = -(std::int64_t{1} << 62);
  same(forward_message(position, mask, q, k, {.k = three}),
       hook + "k at index 1 is -4611686018427387904; integers must lie strictly between -2^62 and 2^62");
  same(forward_message(shape, mask, q, k, {.q_k = Positions::range()}),
       hook + "positions q_k need L1 = L2; L1 = 5, L2 = 7; give q and k instead");

  for (const Heads* tensor : all_tensors)
    CHECK(std::all_of(tensor->data(), tensor->data() + tensor->size(), [](double value) { return value == 0.5; }));
  for (const auto* untouched : {&grads, &longer, &sharing_grads})
    for (const auto& [name, values] : named(*untouched)) CHECK(largest(values) == 0);
}

}  // namespace
