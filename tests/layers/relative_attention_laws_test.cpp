// SPDX-License-Identifier: MIT
/// \file
/// RelativeAttention is its formula, written down pair by pair and head by head in double; its gradients are those of
/// differences; and what must not matter does not, to the last bit.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/layers/relative_attention.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"
#include "support/thread_runner.hpp"

using namespace posbias;
using namespace posbias_test;
using posbias::Index;

namespace {

using Options = RelativeAttentionOptions;
using Call = RelativeAttentionCall;
using Sizes = std::vector<Index>;
using Doubles = std::vector<double>;
using Named = std::map<std::string, Doubles>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t lowest = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t highest = std::numeric_limits<std::int64_t>::max();

Index product(const Sizes& sizes) {
  Index result = 1;
  for (const Index size : sizes) result *= size;
  return result;
}
std::size_t at(Index place) {
  return static_cast<std::size_t>(place);
}

/// Entries of a tensor that a call may be given, row-major. `shape` has a size for each dimension, 1 where all share an
/// entry; `given` is what the library sees, which may lack some of those.
template <class T>
struct Entries {
  Sizes shape{}, given{};
  std::vector<T> values{};

  [[nodiscard]] bool any() const { return !shape.empty(); }
  [[nodiscard]] T operator()(const Sizes& place) const {
    Index flat = 0;
    for (std::size_t d = 0; d < shape.size(); ++d) flat = flat * shape[d] + (shape[d] == 1 ? 0 : place[d]);
    return values[at(flat)];
  }
};

/// The part [begin, end) of a dimension that is not lacking, if it has more than one entry.
template <class T>
Entries<T> cut(const Entries<T>& from, std::size_t dimension, Index begin, Index end) {
  if (!from.any() || from.shape[dimension] == 1) return from;
  Entries<T> part = from;
  part.values.clear();
  const Sizes before(from.shape.begin(), from.shape.begin() + static_cast<std::ptrdiff_t>(dimension));
  const Sizes behind(from.shape.begin() + static_cast<std::ptrdiff_t>(dimension) + 1, from.shape.end());
  const Index inner = product(behind), size = from.shape[dimension];
  for (Index n = 0; n < product(before); ++n)
    part.values.insert(part.values.end(), from.values.begin() + (n * size + begin) * inner,
                       from.values.begin() + (n * size + end) * inner);
  part.shape[dimension] = end - begin;
  part.given[dimension] = end - begin;
  return part;
}

enum class Integer { of_int, of_long, of_long_long };

/// One layer and one call, in terms that owe nothing to the library.
struct Problem {
  Options options{};
  Sizes leading{};
  Index L1 = 0, L2 = 0;
  bool pooled = true;  ///< values are given
  Doubles queries{}, keys{}, values{};
  Entries<bool> mask{}, hidden{};
  Entries<std::int64_t> relative{};
  Integer integer = Integer::of_long;
  Entries<double> base{};
  bool base_is_float = false;
  std::uint64_t layer_seed = 1;

  [[nodiscard]] Index batches() const { return product(leading); }
  [[nodiscard]] Index heads() const { return options.n_heads + options.n_additional_heads; }
  [[nodiscard]] Index logits() const { return batches() * L1 * L2 * heads(); }

  [[nodiscard]] std::string text() const {
    std::string result = "leading";
    for (const Index size : leading) result += " " + std::to_string(size);
    const auto add = [&](const char* name, Index value) { result += std::string(", ") + name + std::to_string(value); };
    add("L1 ", L1);
    add("L2 ", L2);
    add("heads ", options.n_heads);
    add("additional ", options.n_additional_heads);
    add("head size ", options.head_size);
    add("coordinates ", options.n_coordinates);
    add("positions ", options.n_positions);
    add("c2c ", options.mode.contains(c2c));
    add("c2p ", options.mode.contains(c2p));
    add("p2c ", options.mode.contains(p2c));
    add("same ", options.same_key_query_proj + 2 * options.same_positional_key_query_proj);
    const auto add_shape = [&](const char* name, const Sizes& shape) {
      if (shape.empty()) return;
      result += std::string(", ") + name;
      for (const Index size : shape) result += " " + std::to_string(size);
    };
    add_shape("mask", mask.given);
    add_shape("no positions", hidden.given);
    add_shape("relative", relative.given);
    add_shape("base", base.given);
    return result;
  }
};

/// Without an expression of Eigen's, which take long to compile.
template <class Tensor, class S>
void fill(Tensor& tensor, S value) {
  std::fill_n(tensor.data(), tensor.size(), static_cast<typename Tensor::Scalar>(value));
}

// ---- The oracle

/// Everything by its definition. Parameters by name, as double.
class Oracle {
 public:
  Doubles pooled{}, logits{};

  Oracle(const Problem& problem, const Named& parameters) : p_(problem), o_(problem.options), w_(parameters) {
    const Index heads = p_.heads(), H = o_.head_size;
    const Doubles k = linear(p_.keys, o_.key_size, "content_key_proj");
    const Doubles q =
        linear(p_.queries, o_.query_size, o_.same_key_query_proj ? "content_key_proj" : "content_query_proj");
    const bool located = p_.relative.any();
    const bool to_keys = located && o_.mode.contains(c2p), to_queries = located && o_.mode.contains(p2c);
    const bool same = o_.same_key_query_proj || o_.same_positional_key_query_proj;
    Doubles table_k, table_q;
    if (to_keys) table_k = grouped("position_key_proj");
    if (to_queries) table_q = grouped(same ? "position_key_proj" : "position_query_proj");
    const int terms = int{o_.mode.contains(c2c)} + int{to_keys} + int{to_queries};
    const Index C = o_.n_coordinates, part = H / C;

    logits.assign(at(p_.logits()), 0);
    for_each_pair([&](Index n, Index i, Index j, Sizes place) {
      const double* query = q.data() + (n * p_.L1 + i) * heads * H;
      const double* key = k.data() + (n * p_.L2 + j) * heads * H;
      for (Index h = 0; h < heads; ++h) {
        double sum = 0;
        if (o_.mode.contains(c2c))
          for (Index d = 0; d < H; ++d) sum += query[h * H + d] * key[h * H + d];
        place.back() = 0;
        const bool far = p_.hidden.any() && p_.hidden(place);
        for (Index x = 0; (to_keys || to_queries) && !far && x < C; ++x) {
          place.back() = x;
          const Index row = index(p_.relative(place));
          for (Index d = 0; d < part; ++d) {
            // Of a coordinate all heads, of a head its features of that coordinate.
            const std::size_t entry = at(((row * C + x) * heads + h) * part + d);
            if (to_keys) sum += query[h * H + x * part + d] * table_k[entry];
            if (to_queries) sum += key[h * H + x * part + d] * table_q[entry];
          }
        }
        double& logit = logits[at(((n * p_.L1 + i) * p_.L2 + j) * heads + h)];
        logit = sum / std::sqrt(static_cast<double>(H)) / std::sqrt(static_cast<double>(terms));
        place.back() = h;
        if (p_.base.any()) logit += p_.base(place);
        if (o_.head_bias) logit += w_.at("bias")[at(h)];
      }
    });
    if (p_.pooled) pool();
  }

 private:
  template <class Visit>
  void for_each_pair(const Visit& visit) const {
    for (Index n = 0; n < p_.batches(); ++n)
      for (Index i = 0; i < p_.L1; ++i)
        for (Index j = 0; j < p_.L2; ++j) visit(n, i, j, place(n, i, j));
  }

  /// (B, *, i, j, 0)
  [[nodiscard]] Sizes place(Index n, Index i, Index j) const {
    Sizes result(p_.leading.size() + 3);
    for (std::size_t d = p_.leading.size(); d-- > 0; n /= p_.leading[d]) result[d] = n % p_.leading[d];
    result[p_.leading.size()] = i;
    result[p_.leading.size() + 1] = j;
    return result;
  }

  /// relative + n_positions / 2, held within the table; written so that nothing overflows.
  [[nodiscard]] Index index(std::int64_t relative) const {
    const Index P = o_.n_positions;
    if (relative > P) return P - 1;
    if (relative < -P) return 0;
    return std::min(std::max<Index>(static_cast<Index>(relative) + P / 2, 0), P - 1);
  }

  [[nodiscard]] Doubles linear(const Doubles& x, Index inputs, const std::string& name) const {
    const Doubles& weight = w_.at(name + ".weight");
    const Doubles& bias = w_.at(name + ".bias");
    Doubles y;
    for (std::size_t row = 0; row < x.size(); row += at(inputs))
      for (std::size_t o = 0; o < bias.size(); ++o) {
        double sum = bias[o];
        for (std::size_t d = 0; d < at(inputs); ++d) sum += weight[o * at(inputs) + d] * x[row + d];
        y.push_back(sum);
      }
    return y;
  }

  /// (n_positions, n_coordinates, outputs / n_coordinates)
  [[nodiscard]] Doubles grouped(const std::string& name) const {
    const Doubles& table = w_.at("position_embedding");
    const Doubles& weight = w_.at(name + ".weight");
    const Doubles& bias = w_.at(name + ".bias");
    const Index C = o_.n_coordinates, inputs = o_.position_size / C, outputs = static_cast<Index>(bias.size()) / C;
    Doubles y;
    for (Index row = 0; row < o_.n_positions; ++row)
      for (Index x = 0; x < C; ++x)
        for (Index o = 0; o < outputs; ++o) {
          double sum = bias[at(x * outputs + o)];
          for (Index d = 0; d < inputs; ++d)
            sum += weight[at((x * inputs + d) * outputs + o)] * table[at((row * C + x) * inputs + d)];
          y.push_back(sum);
        }
    return y;
  }

  void pool() {
    const Index heads = p_.heads(), size = o_.size, part = size / o_.n_heads;
    const Doubles v = linear(p_.values, o_.value_size, "content_value_proj");
    pooled.assign(at(p_.batches() * p_.L1 * size), 0);
    for (Index n = 0; n < p_.batches(); ++n)
      for (Index i = 0; i < p_.L1; ++i)
        for (Index h = 0; h < o_.n_heads; ++h) {
          Doubles weights;
          double most = -infinity, sum = 0;
          for (Index j = 0; j < p_.L2; ++j) {
            Sizes here = place(n, i, j);
            here.back() = h;
            const bool visible = !p_.mask.any() || p_.mask(here);
            const double logit = logits[at(((n * p_.L1 + i) * p_.L2 + j) * heads + o_.n_additional_heads + h)];
            weights.push_back(visible ? logit : -10000);
            most = std::max(most, weights.back());
          }
          for (double& weight : weights) sum += weight = std::exp(weight - most);
          for (Index j = 0; j < p_.L2; ++j)
            for (Index d = 0; d < part; ++d)
              pooled[at((n * p_.L1 + i) * size + h * part + d)] +=
                  weights[at(j)] / sum * v[at((n * p_.L2 + j) * size + h * part + d)];
        }
  }

  const Problem& p_;
  const Options& o_;
  const Named& w_;
};

// ---- The library, on tensors of a rank known at run time

template <class S, int Rank>
using Map = Eigen::TensorMap<Eigen::Tensor<S, Rank, Eigen::RowMajor>>;

template <int Rank, class S>
Map<S, Rank> map_of(S* data, const Sizes& shape) {
  Eigen::array<Index, static_cast<std::size_t>(Rank)> sizes{};
  std::copy(shape.begin(), shape.end(), sizes.begin());
  return Map<S, Rank>(data, sizes);
}

/// Gives a tensor of that shape, if there is one.
template <class S, class T, class Optional>
void give(const Entries<T>& entries, std::vector<S>& memory, Optional& to) {
  if (!entries.any()) return;
  memory.assign(entries.values.begin(), entries.values.end());
  const auto as = [&]<int Rank>(std::integral_constant<int, Rank>) {
    if (entries.given.size() == Rank) to = map_of<Rank>(memory.data(), entries.given);
  };
  as(std::integral_constant<int, 1>());
  as(std::integral_constant<int, 2>());
  as(std::integral_constant<int, 3>());
  as(std::integral_constant<int, 4>());
  as(std::integral_constant<int, 5>());
}
/// There is no vector of bools to refer to.
template <class Optional>
void give_flags(const Entries<bool>& entries, std::vector<unsigned char>& memory, Optional& to) {
  static_assert(sizeof(bool) == 1);
  if (!entries.any()) return;
  memory.assign(entries.values.begin(), entries.values.end());
  bool* flags = reinterpret_cast<bool*>(memory.data());
  const auto as = [&]<int Rank>(std::integral_constant<int, Rank>) {
    if (entries.given.size() == Rank) to = map_of<Rank>(flags, entries.given);
  };
  as(std::integral_constant<int, 1>());
  as(std::integral_constant<int, 2>());
  as(std::integral_constant<int, 3>());
  as(std::integral_constant<int, 4>());
  as(std::integral_constant<int, 5>());
}

/// The call of a problem, and the tensors that it refers to.
class CopiedCall {
 public:
  explicit CopiedCall(const Problem& p) {
    give_flags(p.mask, mask_, call.mask);
    give_flags(p.hidden, hidden_, call.no_position_mask);
    if (p.integer == Integer::of_int)
      give(p.relative, ints_, call.relative_positions);
    else if (p.integer == Integer::of_long)
      give(p.relative, longs_, call.relative_positions);
    else
      give(p.relative, long_longs_, call.relative_positions);
    if (p.base_is_float)
      give(p.base, floats_, call.base_attn);
    else
      give(p.base, doubles_, call.base_attn);
  }
  CopiedCall(const CopiedCall&) = delete;

  Call call{};

 private:
  std::vector<unsigned char> mask_, hidden_;
  std::vector<int> ints_;
  std::vector<long> longs_;
  std::vector<long long> long_longs_;
  std::vector<float> floats_;
  std::vector<double> doubles_;
};

template <class S>
struct Outcome {
  std::vector<S> pooled, logits;
};

template <class S>
struct Differentiated {
  std::vector<S> queries, keys, values, base;
  std::map<std::string, std::vector<S>> parameters;
};

Sizes with(Sizes shape, std::initializer_list<Index> more) {
  shape.insert(shape.end(), more);
  return shape;
}

/// Calls `run(integral_constant<rank of leading dimensions>)`. Float is only tried with one.
template <class S, class Run>
void with_rank(const Problem& p, const Run& run) {
  if constexpr (std::is_same_v<S, double>) {
    if (p.leading.empty()) return run(std::integral_constant<int, 0>());
    if (p.leading.size() == 2) return run(std::integral_constant<int, 2>());
  }
  REQUIRE(p.leading.size() == 1);
  run(std::integral_constant<int, 1>());
}

template <class S>
std::vector<S> as(const Doubles& values) {
  return {values.begin(), values.end()};
}

template <class S>
Outcome<S> forward(const RelativeAttention<S>& layer, const Problem& p, const Call& call) {
  auto queries = as<S>(p.queries), keys = as<S>(p.keys), values = as<S>(p.values);
  Outcome<S> out;
  out.logits.assign(at(p.logits()), std::numeric_limits<S>::quiet_NaN());
  if (p.pooled) out.pooled.assign(at(p.batches() * p.L1 * p.options.size), std::numeric_limits<S>::quiet_NaN());
  with_rank<S>(p, [&]<int Rank>(std::integral_constant<int, Rank>) {
    const auto q = map_of<Rank + 2>(queries.data(), with(p.leading, {p.L1, p.options.query_size}));
    const auto k = map_of<Rank + 2>(keys.data(), with(p.leading, {p.L2, p.options.key_size}));
    const auto logits = map_of<Rank + 3>(out.logits.data(), with(p.leading, {p.L1, p.L2, p.heads()}));
    if (!p.pooled) return layer.forward(logits, q, k, call);
    const auto v = map_of<Rank + 2>(values.data(), with(p.leading, {p.L2, p.options.value_size}));
    const auto pooled = map_of<Rank + 2>(out.pooled.data(), with(p.leading, {p.L1, p.options.size}));
    layer.forward(pooled, logits, q, k, v, call);
  });
  return out;
}

template <class S>
Outcome<S> forward(const RelativeAttention<S>& layer, const Problem& p) {
  return forward(layer, p, CopiedCall(p).call);
}

/// A random linear functional of what is pooled and of the logits, as its gradient.
template <class S>
Outcome<S> functional(const Problem& p) {
  Numbers numbers(99);
  Outcome<S> result;
  if (p.pooled) result.pooled.resize(at(p.batches() * p.L1 * p.options.size));
  result.logits.resize(at(p.logits()));
  for (auto* list : {&result.pooled, &result.logits})
    for (S& value : *list) value = static_cast<S>(numbers.value());
  return result;
}

/// With the gradient of the logits, or without. Gradients of parameters start at `start`, others at 0.
template <class S>
Differentiated<S> backward(const RelativeAttention<S>& layer, const Problem& p, const Call& call, const Outcome<S>& out,
                           bool of_logits = true, S start = 0) {
  auto queries = as<S>(p.queries), keys = as<S>(p.keys), values = as<S>(p.values);
  Outcome<S> gradient = functional<S>(p);
  auto attended = out.logits;
  Differentiated<S> result{
      std::vector<S>(queries.size()), std::vector<S>(keys.size()), std::vector<S>(values.size()), {}, {}};
  auto grads = layer.zero_gradients();
  for_each_parameter(grads, [&](std::string_view, auto& tensor) { fill(tensor, start); });
  with_rank<S>(p, [&]<int Rank>(std::integral_constant<int, Rank>) {
    const Sizes q_shape = with(p.leading, {p.L1, p.options.query_size}),
                k_shape = with(p.leading, {p.L2, p.options.key_size}),
                v_shape = with(p.leading, {p.L2, p.options.value_size}),
                logits_shape = with(p.leading, {p.L1, p.L2, p.heads()});
    const auto q = map_of<Rank + 2>(queries.data(), q_shape), k = map_of<Rank + 2>(keys.data(), k_shape);
    const auto to_q = map_of<Rank + 2>(result.queries.data(), q_shape),
               to_k = map_of<Rank + 2>(result.keys.data(), k_shape);
    const auto of_added = map_of<Rank + 3>(gradient.logits.data(), logits_shape);
    if (!p.pooled) return layer.backward(to_q, to_k, of_added, q, k, call, grads);
    const auto v = map_of<Rank + 2>(values.data(), v_shape), to_v = map_of<Rank + 2>(result.values.data(), v_shape);
    const auto of_pooled = map_of<Rank + 2>(gradient.pooled.data(), with(p.leading, {p.L1, p.options.size}));
    const auto logits = map_of<Rank + 3>(attended.data(), logits_shape);
    if (of_logits)
      layer.backward(to_q, to_k, to_v, of_pooled, of_added, logits, q, k, v, call, grads);
    else
      layer.backward(to_q, to_k, to_v, of_pooled, logits, q, k, v, call, grads);
  });
  if (of_logits) result.base = gradient.logits;
  for_each_parameter(grads, [&](std::string_view name, const auto& tensor) {
    result.parameters[std::string(name)].assign(tensor.data(), tensor.data() + tensor.size());
  });
  return result;
}

template <class S>
Named parameters_of(const RelativeAttention<S>& layer) {
  Named result;
  for_each_parameter(layer, [&](std::string_view name, const auto& tensor) {
    result[std::string(name)].assign(tensor.data(), tensor.data() + tensor.size());
  });
  return result;
}

template <class S>
void set_parameters(RelativeAttention<S>& layer, const Named& values) {
  for_each_parameter(layer, [&](std::string_view name, auto& tensor) {
    std::transform(values.at(std::string(name)).begin(), values.at(std::string(name)).end(), tensor.data(),
                   [](double value) { return static_cast<S>(value); });
  });
}

/// A layer whose parameters are all something: biases start at 0.
template <class S>
RelativeAttention<S> layer_of(const Problem& p) {
  RelativeAttention<S> layer(p.options, p.layer_seed);
  Numbers numbers(p.layer_seed + 50);
  for_each_parameter(layer, [&](std::string_view name, auto& tensor) {
    if (name.ends_with("bias"))
      std::generate_n(tensor.data(), tensor.size(), [&] { return static_cast<S>(numbers.value()); });
  });
  return layer;
}

// ---- Problems

Doubles numbers_of(Index count, std::uint64_t seed) {
  Numbers numbers(seed);
  Doubles result(at(count));
  for (double& value : result) value = numbers.value();
  return result;
}

/// Draws what a problem does not set.
class Lottery {
 public:
  explicit Lottery(std::uint64_t seed) : numbers_(seed) {}

  Index below(Index bound) { return static_cast<Index>(numbers_.below(static_cast<std::uint64_t>(bound))); }
  bool flip() { return below(2) == 0; }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return *(choices.begin() + below(static_cast<Index>(choices.size())));
  }

  /// Fits sizes, and content, to the options and leading dimensions of a problem.
  void fill(Problem& p) {
    p.layer_seed = static_cast<std::uint64_t>(1 + below(1000));
    p.queries = numbers_of(p.batches() * p.L1 * p.options.query_size, p.layer_seed + 1);
    p.keys = numbers_of(p.batches() * p.L2 * p.options.key_size, p.layer_seed + 2);
    if (p.pooled) p.values = numbers_of(p.batches() * p.L2 * p.options.value_size, p.layer_seed + 3);
  }

  Options options(unsigned mode, Index n_coordinates, Index n_positions) {
    Options o;
    o.n_heads = 1 + below(3);
    o.n_additional_heads = one_of<Index>({0, 0, 1, 2});
    o.n_coordinates = n_coordinates;
    o.n_positions = n_positions;
    o.size = o.n_heads * one_of<Index>({1, 3, 4, 9});
    o.query_size = one_of<Index>({1, 5, 8, 13});
    o.key_size = one_of<Index>({2, 7, 8, 11});
    o.value_size = one_of<Index>({1, 6, 10});
    o.head_size = n_coordinates * one_of<Index>({1, 2, 3, 5, 8});
    o.position_size = n_positions == 0 ? 0 : n_coordinates * one_of<Index>({1, 2, 5});
    o.same_key_query_proj = below(4) == 0;
    if (o.same_key_query_proj) o.query_size = o.key_size;
    o.same_positional_key_query_proj = below(3) == 0;
    o.head_bias = flip();
    o.do_pooling = below(5) > 0;
    o.mode = mode_of(mode);
    return o;
  }

  static AttentionTerms mode_of(unsigned bits) {
    switch (bits) {
      case 1:
        return {c2c};
      case 2:
        return {c2p};
      case 3:
        return {c2c, c2p};
      case 4:
        return {p2c};
      case 5:
        return {c2c, p2c};
      case 6:
        return {p2c, c2p};
      default:
        return {p2c, c2p, c2c};
    }
  }

  /// A shape whose dimensions may be 1: leading ones, and those of the rest that `repeat`.
  Sizes shape(const Problem& p, const Sizes& rest, const std::vector<bool>& repeat) {
    Sizes result;
    for (const Index size : p.leading) result.push_back(below(4) == 0 ? 1 : size);
    for (std::size_t d = 0; d < rest.size(); ++d) result.push_back(repeat[d] && below(4) == 0 ? 1 : rest[d]);
    return result;
  }

  void give_mask(Problem& p) {
    const Index rank = below(4);  // none, or that of (L2), (L1, L2), (L1, L2, heads) beyond the leading
    if (rank == 0) return;
    p.mask.shape = shape(p, {p.L1, p.L2, p.options.n_heads}, {true, false, true});
    p.mask.given = p.mask.shape;
    if (rank < 3) {
      p.mask.shape.back() = 1;
      p.mask.given.pop_back();
    }
    if (rank < 2) {
      p.mask.shape[p.leading.size()] = 1;
      p.mask.given.erase(p.mask.given.begin() + static_cast<std::ptrdiff_t>(p.leading.size()));
    }
    // A third hidden, and of some rows all.
    const Index row = rank < 3 ? p.L2 : p.L2 * p.mask.shape.back();
    for (Index i = 0; i < product(p.mask.shape); ++i) p.mask.values.push_back(i / row % 5 != 3 && below(3) > 0);
  }

  void give_base(Problem& p) {
    const Index kind = below(3);
    if (kind == 0) return;
    p.base_is_float = kind == 1;
    p.base.given = p.base.shape = shape(p, {p.L1, p.L2, p.heads()}, {true, false, true});
    p.base.values = numbers_of(product(p.base.shape), p.layer_seed + 4);
  }

  /// Near, around the ends of the table, and as far as integers go.
  void give_relative(Problem& p) {
    const Index P = p.options.n_positions;
    p.relative.given = p.relative.shape = shape(p, {p.L1, p.L2, p.options.n_coordinates}, {true, false, false});
    p.integer = one_of({Integer::of_int, Integer::of_long, Integer::of_long_long});
    const std::int64_t least = p.integer == Integer::of_int ? std::numeric_limits<int>::min() : lowest;
    const std::int64_t most = p.integer == Integer::of_int ? std::numeric_limits<int>::max() : highest;
    const Index kind = below(3);
    const Index queries = p.relative.shape[p.leading.size()], coordinates = p.options.n_coordinates;
    const Index offset = below(7) - 3;
    for (Index place = 0; place < product(p.relative.shape); ++place) {
      const Index x = place % coordinates, j = place / coordinates % p.L2, i = place / coordinates / p.L2 % queries;
      if (kind == 0)  // as in a text
        p.relative.values.push_back(j - i + offset * (x + 1));
      else if (kind == 1)
        p.relative.values.push_back(below(2 * P + 6) - P - 3);
      else
        p.relative.values.push_back(
            one_of<std::int64_t>({least, least + 1, -P, -1, 0, 1, P / 2, P, most - P / 2, most - 1, most}));
    }
  }

  void give_hidden(Problem& p) {
    if (flip()) return;
    p.hidden.given = shape(p, {p.L1, p.L2}, {true, false});
    p.hidden.shape = with(p.hidden.given, {1});
    for (Index i = 0; i < product(p.hidden.shape); ++i) p.hidden.values.push_back(below(4) == 0);
  }

  Problem problem(unsigned mode, Index coordinates, Index n_positions, Sizes leading, Index L1, Index L2) {
    Problem p;
    p.options = options(mode, coordinates, n_positions);
    p.pooled = p.options.do_pooling && below(6) > 0;
    p.leading = std::move(leading);
    p.L1 = L1;
    p.L2 = L2;
    fill(p);
    give_mask(p);
    give_base(p);
    if (n_positions > 0 && (!p.options.mode.contains(c2c) || below(8) > 0)) give_relative(p);
    give_hidden(p);  // without relative positions it hides nothing
    return p;
  }

 private:
  Numbers numbers_;
};

/// The largest difference of two lists, beside the largest expected value or 1; infinite where one is NaN.
template <class S>
double difference(const std::vector<S>& values, const Doubles& expected) {
  if (values.size() != expected.size()) return infinity;
  double worst = 0, largest = 1;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(static_cast<double>(values[i]) - expected[i]);
    if (!(error <= worst)) worst = std::isnan(error) ? infinity : error;
  }
  return worst / largest;
}

void check_against_oracle(const Problem& p) {
  INFO(p.text());
  const auto layer = layer_of<double>(p);
  const Outcome<double> found = forward(layer, p);
  const Oracle expected(p, parameters_of(layer));
  CHECK(difference(found.logits, expected.logits) <= 1e-13);
  CHECK(difference(found.pooled, expected.pooled) <= 1e-13);
}

constexpr Index table_sizes[] = {1, 2, 7, 16, 17, 100};

}  // namespace

TEST_CASE("RelativeAttention is its formula: short sequences, all modes", "[relative_attention]") {
  Lottery lottery(1);
  for (unsigned mode = 1; mode < 8; ++mode)
    for (Index coordinates = 1; coordinates <= 3; ++coordinates)
      for (const Index n_positions : table_sizes) {
        Sizes leading;
        for (Index rank = lottery.below(3); rank > 0; --rank) leading.push_back(1 + lottery.below(3));
        check_against_oracle(
            lottery.problem(mode, coordinates, n_positions, leading, 1 + lottery.below(9), 1 + lottery.below(11)));
      }
}

TEST_CASE("RelativeAttention is its formula: no table", "[relative_attention]") {
  Lottery lottery(2);
  for (unsigned mode = 1; mode < 8; mode += 2) check_against_oracle(lottery.problem(mode, 2, 0, {3}, 5, 7));
}

TEST_CASE("RelativeAttention is its formula: several blocks of queries and keys", "[relative_attention]") {
  Lottery lottery(3);
  unsigned number = 0;
  for (const Index L1 : {1, 31, 32, 33, 70})
    for (const Index L2 : {1, 31, 32, 33, 70}) {
      ++number;
      check_against_oracle(lottery.problem(1 + number % 7, 1 + number % 3, table_sizes[number % 6],
                                           number % 4 == 0 ? Sizes{2} : Sizes{}, L1, L2));
    }
}

TEST_CASE("RelativeAttention is its formula: more keys than are taken at a time", "[relative_attention]") {
  // 2^22 scores of keys are kept at a time: here those of one batch entry, so that entries follow each other.
  Lottery lottery(4);
  Problem p;
  p.options = {.size = 2,
               .n_heads = 2,
               .query_size = 2,
               .key_size = 2,
               .value_size = 2,
               .head_size = 1,
               .n_positions = 60'000,
               .position_size = 1};
  p.leading = {3};
  p.L1 = 3;
  p.L2 = 41;
  lottery.fill(p);
  lottery.give_relative(p);
  for (std::int64_t& relative : p.relative.values) relative = lottery.below(60) - 30;
  p.relative.values[3 * 41 + 40] = 29'000;
  p.relative.given = p.relative.shape = {3, 3, 41, 1};
  p.relative.values.resize(3 * 3 * 41, -20);
  check_against_oracle(p);
}

TEST_CASE("RelativeAttention in float is the formula, and its gradients those in double", "[relative_attention]") {
  Lottery lottery(5);
  for (unsigned number = 0; number < 14; ++number) {
    const bool many = number % 7 == 3;
    const Problem p = lottery.problem(1 + number % 7, 1 + number % 3, table_sizes[number % 6], {2},
                                      many ? 35 : 1 + lottery.below(9), many ? 67 : 1 + lottery.below(11));
    INFO(p.text());
    const auto layer = layer_of<float>(p);
    const CopiedCall copied(p);
    const auto found = forward(layer, p, copied.call);
    const Oracle expected(p, parameters_of(layer));
    CHECK(difference(found.logits, expected.logits) <= 2e-6);
    CHECK(difference(found.pooled, expected.pooled) <= 2e-6);

    auto exact_layer = layer_of<double>(p);
    set_parameters(exact_layer, parameters_of(layer));
    const auto grads = backward(layer, p, copied.call, found);
    const auto exact = backward(exact_layer, p, copied.call, forward(exact_layer, p, copied.call));
    CHECK(difference(grads.queries, exact.queries) <= 1e-5);
    CHECK(difference(grads.keys, exact.keys) <= 1e-5);
    CHECK(difference(grads.values, exact.values) <= 1e-5);
    CHECK(difference(grads.base, exact.base) <= 1e-5);
    for (const auto& [name, values] : grads.parameters) {
      INFO(name);
      CHECK(difference(values, exact.parameters.at(name)) <= 1e-5);
    }
  }
}

// ---- Gradients

namespace {

/// Gradients are those of central differences of fourth order, along an entry and along all at once.
void check_gradients(const Problem& problem, std::uint64_t seed = 0) {
  constexpr double h = 0x1p-9;
  INFO(problem.text());
  auto layer = layer_of<double>(problem);
  const Named parameters = parameters_of(layer);
  const Outcome<double> grad = functional<double>(problem);
  const auto run = [&](const Problem& p) {
    const CopiedCall copied(p);
    Call call = copied.call;
    call.seed = seed;
    return forward(layer, p, call);
  };
  const CopiedCall copied(problem);
  Call call = copied.call;
  call.seed = seed;
  const Outcome<double> out = forward(layer, problem, call);

  for (const bool of_logits : {true, false}) {
    if (!problem.pooled && !of_logits) continue;
    INFO((of_logits ? "of pooled and logits" : "of pooled alone"));
    constexpr double start = 0.25;
    const auto grads = backward(layer, problem, call, out, of_logits, start);
    const auto functional_of = [&](const Outcome<double>& result) {
      double sum = 0;
      for (std::size_t i = 0; i < result.pooled.size(); ++i) sum += grad.pooled[i] * result.pooled[i];
      for (std::size_t i = 0; of_logits && i < result.logits.size(); ++i) sum += grad.logits[i] * result.logits[i];
      return sum;
    };
    /// `value_at(step)` is the functional's value where what the gradient is of has moved along a direction.
    const auto check_along = [&](const Doubles& gradient, const Doubles& direction, const auto& value_at) {
      double expected = 0;
      for (std::size_t i = 0; i < gradient.size(); ++i) expected += gradient[i] * direction[i];
      const auto central = [&](double step) { return (value_at(step) - value_at(-step)) / (2 * step); };
      const double found = (4 * central(h) - central(2 * h)) / 3;
      CHECK(std::abs(found - expected) <= 1e-8 * std::max(1.0, std::abs(expected)));
    };
    const auto check_all = [&](const std::string& name, const Doubles& gradient, const auto& value_at) {
      INFO(name);
      if (gradient.empty()) return;
      Numbers choose(7);
      Doubles one(gradient.size());
      one[choose.below(gradient.size())] = 1;
      check_along(gradient, one, [&](double step) { return value_at(one, step); });
      Doubles direction = numbers_of(static_cast<Index>(gradient.size()), 3);
      for (double& part : direction) part /= 4;
      check_along(gradient, direction, [&](double step) { return value_at(direction, step); });
    };
    const auto moved = [](const Doubles& values, const Doubles& direction, double step) {
      Doubles result = values;
      for (std::size_t i = 0; i < result.size(); ++i) result[i] += step * direction[i];
      return result;
    };
    const auto of_tensor = [&](Doubles Problem::*tensor) {
      return [&, tensor](const Doubles& direction, double step) {
        Problem p = problem;
        p.*tensor = moved(problem.*tensor, direction, step);
        return functional_of(run(p));
      };
    };
    check_all("queries", grads.queries, of_tensor(&Problem::queries));
    check_all("keys", grads.keys, of_tensor(&Problem::keys));
    if (problem.pooled) check_all("values", grads.values, of_tensor(&Problem::values));
    check_all("base_attn", grads.base, [&](const Doubles& direction, double step) {
      Problem p = problem;
      p.base.given = p.base.shape = with(p.leading, {p.L1, p.L2, p.heads()});
      p.base_is_float = false;
      p.base.values = direction;
      for (double& value : p.base.values) value *= step;
      const Entries<double>& before = problem.base;
      if (before.any())
        for (Index entry = 0; entry < p.logits(); ++entry) {
          Sizes place(p.base.shape.size());
          Index left = entry;
          for (std::size_t d = place.size(); d-- > 0; left /= p.base.shape[d]) place[d] = left % p.base.shape[d];
          p.base.values[at(entry)] += before(place);
        }
      return functional_of(run(p));
    });
    for (const auto& parameter : grads.parameters) {
      const std::string& name = parameter.first;
      Doubles added = parameter.second;
      for (double& value : added) value -= start;
      if (name == "position_embedding" && !problem.options.learn_position_embedding) {
        CHECK(std::count(added.begin(), added.end(), 0.0) == static_cast<std::ptrdiff_t>(added.size()));
        continue;
      }
      check_all(name, added, [&](const Doubles& direction, double step) {
        Named values = parameters;
        values[name] = moved(values.at(name), direction, step);
        set_parameters(layer, values);
        const double result = functional_of(run(problem));
        set_parameters(layer, parameters);
        return result;
      });
    }
  }
}

}  // namespace

TEST_CASE("gradients of RelativeAttention are those of central differences", "[relative_attention][differences]") {
  Lottery lottery(6);
  for (unsigned number = 0; number < 21; ++number) {
    Sizes leading;
    for (unsigned rank = number % 3; rank > 0; --rank) leading.push_back(1 + lottery.below(2));
    Problem p = lottery.problem(1 + number % 7, 1 + number / 7, table_sizes[number % 6], leading, 2 + lottery.below(3),
                                2 + lottery.below(4));
    p.options.learn_position_embedding = number % 4 != 1;
    check_gradients(p);
  }
}

TEST_CASE("gradients of RelativeAttention are those of central differences: several blocks", "[relative_attention]") {
  Lottery lottery(7);
  for (const auto& [L1, L2] : {std::pair<Index, Index>{33, 3}, {2, 70}}) {
    Problem p;
    p.options = {.size = 2,
                 .n_heads = 1,
                 .query_size = 2,
                 .key_size = 2,
                 .value_size = 2,
                 .head_size = 4,
                 .n_positions = 17,
                 .position_size = 4,
                 .n_coordinates = 2};
    p.L1 = L1;
    p.L2 = L2;
    lottery.fill(p);
    lottery.give_relative(p);
    lottery.give_mask(p);
    check_gradients(p);
  }
}

// ---- What must not matter

namespace {

template <class S>
std::string differing(const Outcome<S>& a, const Outcome<S>& b) {
  return std::string(a.pooled == b.pooled ? "" : "pooled ") + (a.logits == b.logits ? "" : "logits");
}

template <class S>
std::string differing(const Differentiated<S>& a, const Differentiated<S>& b) {
  std::string names;
  if (a.queries != b.queries) names += "queries ";
  if (a.keys != b.keys) names += "keys ";
  if (a.values != b.values) names += "values ";
  if (a.base != b.base) names += "base ";
  for (const auto& [name, values] : a.parameters)
    if (b.parameters.at(name) != values) names += name + " ";
  return names;
}

/// One with everything that a call can have, and more than a block of queries and keys.
Problem full_problem(std::uint64_t seed, Sizes leading = {2}) {
  Lottery lottery(seed);
  Problem p;
  p.options = {.size = 6,
               .n_heads = 3,
               .query_size = 5,
               .key_size = 7,
               .value_size = 4,
               .head_size = 6,
               .n_positions = 37,
               .position_size = 6,
               .n_coordinates = 2,
               .n_additional_heads = 1};
  p.leading = std::move(leading);
  p.L1 = 67;
  p.L2 = 35;
  lottery.fill(p);
  const auto flags = [&](const Sizes& rest, Index one_of) {
    Entries<bool> result;
    result.given = result.shape = with(p.leading, {});
    result.shape.insert(result.shape.end(), rest.begin(), rest.end());
    result.given = result.shape;
    for (Index i = 0; i < product(result.shape); ++i) result.values.push_back(lottery.below(one_of) > 0);
    return result;
  };
  p.mask = flags({p.L1, p.L2, 3}, 5);
  p.hidden = flags({p.L1, p.L2, 1}, 2);
  p.hidden.given.pop_back();
  p.base.given = p.base.shape = with(p.leading, {p.L1, p.L2, 4});
  p.base.values = numbers_of(product(p.base.shape), seed);
  p.relative.given = p.relative.shape = with(p.leading, {p.L1, p.L2, 2});
  for (Index i = 0; i < product(p.relative.shape); ++i) p.relative.values.push_back(lottery.below(50) - 25);
  return p;
}

}  // namespace

TEST_CASE("RelativeAttention is the same bits with any executor", "[relative_attention]") {
  ThreadRunner runner(3);
  const Problem p = full_problem(11);
  const auto layer = layer_of<double>(p);
  const CopiedCall copied(p);
  Call call = copied.call;
  const auto alone = forward(layer, p, call);
  const auto grads = backward(layer, p, call, alone, true, 0.5);
  call.executor = runner;
  for (int times = 0; times < 3; ++times) {
    const int calls = runner.calls();
    CHECK(differing(forward(layer, p, call), alone) == "");
    CHECK(runner.calls() > calls);
    const int forward_calls = runner.calls();
    CHECK(differing(backward(layer, p, call, alone, true, 0.5), grads) == "");
    CHECK(runner.calls() > forward_calls);
  }
}

TEST_CASE("queries of RelativeAttention by themselves are the bits of all", "[relative_attention]") {
  const Problem p = full_problem(12, {});
  const auto layer = layer_of<double>(p);
  const auto whole = forward(layer, p);
  for (const auto& range : {std::pair<Index, Index>{0, 1}, {31, 33}, {66, 67}, {3, 50}}) {
    const Index begin = range.first, end = range.second;
    INFO("queries " << begin << " to " << end);
    Problem part = p;
    part.L1 = end - begin;
    const auto rows = [&](const auto& values, Index size) {
      return std::remove_cvref_t<decltype(values)>(values.begin() + begin * size, values.begin() + end * size);
    };
    part.queries = rows(p.queries, 5);
    part.mask = cut(p.mask, 0, begin, end);
    part.hidden = cut(p.hidden, 0, begin, end);
    part.base = cut(p.base, 0, begin, end);
    part.relative = cut(p.relative, 0, begin, end);
    CHECK(differing(forward(layer, part), {rows(whole.pooled, 6), rows(whole.logits, p.L2 * 4)}) == "");
  }
}

TEST_CASE("batch entries of RelativeAttention do not see each other", "[relative_attention]") {
  const Problem p = full_problem(13, {2});
  const auto layer = layer_of<double>(p);
  const auto whole = forward(layer, p);
  const auto grads = backward(layer, p, CopiedCall(p).call, whole);
  for (Index n = 0; n < 2; ++n) {
    const auto entry = [&](const Doubles& values) {
      const auto half = static_cast<std::ptrdiff_t>(values.size() / 2);
      return Doubles(values.begin() + n * half, values.begin() + (n + 1) * half);
    };
    Problem one = p;
    one.leading = {1};
    one.queries = entry(p.queries);
    one.keys = entry(p.keys);
    one.values = entry(p.values);
    one.mask = cut(p.mask, 0, n, n + 1);
    one.hidden = cut(p.hidden, 0, n, n + 1);
    one.base = cut(p.base, 0, n, n + 1);
    one.relative = cut(p.relative, 0, n, n + 1);
    CHECK(differing(forward(layer, one), {entry(whole.pooled), entry(whole.logits)}) == "");
  }
  CHECK(grads.queries.size() == p.queries.size());
}

TEST_CASE("more dimensions of the batch are the same bits", "[relative_attention]") {
  Problem p = full_problem(14, {6});
  p.L1 = p.L2 = 5;
  Lottery lottery(14);
  lottery.fill(p);
  p.mask = p.hidden = {};
  p.base = {};
  p.relative = {};
  lottery.give_relative(p);
  p.relative.values.resize(6 * 5 * 5 * 2, 1);
  p.relative.given = p.relative.shape = {6, 5, 5, 2};
  const auto layer = layer_of<double>(p);
  const auto expected = forward(layer, p);
  const auto grads = backward(layer, p, CopiedCall(p).call, expected);
  p.leading = {2, 3};
  p.relative.given = p.relative.shape = {2, 3, 5, 5, 2};
  CHECK(differing(forward(layer, p), expected) == "");
  CHECK(differing(backward(layer, p, CopiedCall(p).call, expected), grads) == "");
}

TEST_CASE("column-major tensors are the same bits, and given tensors those returned", "[relative_attention]") {
  const Problem p = full_problem(15, {2});
  const auto layer = layer_of<double>(p);
  const CopiedCall copied(p);
  const auto expected = forward(layer, p, copied.call);
  const auto expected_grads = backward(layer, p, copied.call, expected);

  // In the other layout: all that the call is given, too.
  const auto of = []<int Rank, class S>(std::integral_constant<int, Rank>, const std::vector<S>& list,
                                        const Sizes& shape) {
    Eigen::array<Index, static_cast<std::size_t>(Rank)> sizes{};
    std::copy(shape.begin(), shape.end(), sizes.begin());
    Eigen::Tensor<S, Rank> result(sizes);
    const auto to = posbias::detail::view<0>(result);
    for (Index i = 0; i < result.size(); ++i) *to.batch(i).data() = list[at(i)];
    return result;
  };
  constexpr std::integral_constant<int, 3> three;
  constexpr std::integral_constant<int, 4> four;
  const auto queries = of(three, p.queries, {2, p.L1, 5}), keys = of(three, p.keys, {2, p.L2, 7}),
             values = of(three, p.values, {2, p.L2, 4});
  const auto base = of(four, p.base.values, p.base.given);
  const auto relative = of(four, p.relative.values, p.relative.given);
  Eigen::Tensor<bool, 4> mask(2, p.L1, p.L2, 3);
  Eigen::Tensor<bool, 3> hidden(2, p.L1, p.L2);
  for (Index n = 0; n < 2; ++n)
    for (Index i = 0; i < p.L1; ++i)
      for (Index j = 0; j < p.L2; ++j) {
        hidden(n, i, j) = p.hidden({n, i, j, 0});
        for (Index h = 0; h < 3; ++h) mask(n, i, j, h) = p.mask({n, i, j, h});
      }
  const Call call{.mask = mask, .relative_positions = relative, .no_position_mask = hidden, .base_attn = base};
  const auto rows = [](const auto& tensor) {
    Doubles result;
    posbias::detail::for_each_row_major(tensor, [&](Index, double value) { result.push_back(value); });
    return result;
  };
  const auto [pooled, logits] = layer(queries, keys, values, call);
  CHECK(rows(pooled) == expected.pooled);
  CHECK(rows(logits) == expected.logits);
  CHECK(rows(layer(queries, keys, call)) == expected.logits);

  const auto functionals = functional<double>(p);
  const auto grad_pooled = of(three, functionals.pooled, {2, p.L1, 6});
  auto grad_logits = of(four, functionals.logits, {2, p.L1, p.L2, 4});
  auto grad_queries = queries, grad_keys = keys, grad_values = values;
  fill(grad_queries, 0);
  fill(grad_keys, 0);
  fill(grad_values, 0);
  auto grads = layer.zero_gradients();
  layer.backward(grad_queries, grad_keys, grad_values, grad_pooled, grad_logits, logits, queries, keys, values, call,
                 grads);
  CHECK(rows(grad_queries) == expected_grads.queries);
  CHECK(rows(grad_keys) == expected_grads.keys);
  CHECK(rows(grad_values) == expected_grads.values);
  CHECK(rows(grad_logits) == expected_grads.base);
  for_each_parameter(grads, [&](std::string_view name, const auto& tensor) {
    INFO(name);
    CHECK(rows(tensor) == expected_grads.parameters.at(std::string(name)));
  });
}

TEST_CASE("queries, keys and values may be one tensor, and their gradients", "[relative_attention]") {
  using Rows = Eigen::Tensor<double, 3, Eigen::RowMajor>;
  using Pairs = Eigen::Tensor<double, 4, Eigen::RowMajor>;
  for (const bool same : {false, true}) {
    const RelativeAttention<double> layer(
        {.size = 6, .n_heads = 2, .n_positions = 9, .same_key_query_proj = same, .n_additional_heads = 1}, 3);
    Rows x(2, 37, 6), grad_pooled(2, 37, 6);
    Pairs start(2, 37, 37, 3);
    Numbers numbers(1);
    const auto draw = [&](auto& tensor) {
      std::generate_n(tensor.data(), tensor.size(), [&] { return numbers.value(); });
    };
    draw(x);
    draw(grad_pooled);
    draw(start);
    const Call call{.positions = {{}}};
    const auto result = layer(x, x, x, call);
    const Rows k = x, v = x;
    const auto apart = layer(x, k, v, call);
    CHECK(std::equal(apart.pooled.data(), apart.pooled.data() + apart.pooled.size(), result.pooled.data()));
    CHECK(std::equal(apart.logits.data(), apart.logits.data() + apart.logits.size(), result.logits.data()));

    Pairs grad_logits = start, grad_logits_too = start;
    auto grads = layer.zero_gradients(), grads_too = layer.zero_gradients();
    Rows to_one = x, of_queries(2, 37, 6), of_keys(2, 37, 6), of_values(2, 37, 6);
    fill(of_queries, 0);
    fill(of_keys, 0);
    fill(of_values, 0);
    layer.backward(of_queries, of_keys, of_values, grad_pooled, grad_logits, result.logits, x, k, v, call, grads);
    // Queries, keys, values, in this order.
    layer.backward(to_one, to_one, to_one, grad_pooled, grad_logits_too, result.logits, x, x, x, call, grads_too);
    for (Index i = 0; i < to_one.size(); ++i) {
      const double sum = ((x.data()[i] + of_queries.data()[i]) + of_keys.data()[i]) + of_values.data()[i];
      if (to_one.data()[i] != sum) FAIL_CHECK("entry " << i << ": " << to_one.data()[i] << ", not " << sum);
    }
    CHECK(std::equal(grad_logits.data(), grad_logits.data() + grad_logits.size(), grad_logits_too.data()));

    // Logits alone.
    Rows both = x;
    fill(of_queries, 0);
    fill(of_keys, 0);
    layer.backward(of_queries, of_keys, start, x, k, call, grads);
    layer.backward(both, both, start, x, x, call, grads_too);
    for (Index i = 0; i < both.size(); ++i) {
      const double sum = (x.data()[i] + of_queries.data()[i]) + of_keys.data()[i];
      if (both.data()[i] != sum) FAIL_CHECK("entry " << i << ": " << both.data()[i] << ", not " << sum);
    }
    const auto values_of = [](const auto& owner) {
      Named values;
      for_each_parameter(owner, [&](std::string_view name, const auto& tensor) {
        values[std::string(name)].assign(tensor.data(), tensor.data() + tensor.size());
      });
      return values;
    };
    CHECK(values_of(grads) == values_of(grads_too));
  }
}

// ---- Positions

namespace {

/// A problem whose relative positions are those of `at`, where both tokens have one, and a layer's outcome both ways.
void check_positions(
    Problem p, const std::vector<PairPositions>& positions,
    const std::function<bool(Index n, Index i, Index j, Index x, std::int64_t& relative)>& relative_of) {
  const auto layer = layer_of<double>(p);
  p.relative = {};
  p.relative.given = p.relative.shape = with(p.leading, {p.L1, p.L2, p.options.n_coordinates});
  p.hidden.given = with(p.leading, {p.L1, p.L2});
  p.hidden.shape = with(p.leading, {p.L1, p.L2, 1});
  p.hidden.values.clear();
  for (Index n = 0; n < p.batches(); ++n)
    for (Index i = 0; i < p.L1; ++i)
      for (Index j = 0; j < p.L2; ++j) {
        bool located = true;
        for (Index x = 0; x < p.options.n_coordinates; ++x) {
          std::int64_t relative = 0;
          if (!relative_of(n, i, j, x, relative)) located = false;
          p.relative.values.push_back(relative);
        }
        p.hidden.values.push_back(!located);
      }
  const CopiedCall copied(p);
  const auto expected = forward(layer, p, copied.call);
  const auto expected_grads = backward(layer, p, copied.call, expected);
  Call call = copied.call;
  call.relative_positions = {};
  call.no_position_mask = {};
  call.positions = positions;
  const auto found = forward(layer, p, call);
  CHECK(differing(found, expected) == "");
  CHECK(differing(backward(layer, p, call, found), expected_grads) == "");
  // And both at once.
  call.no_position_mask = copied.call.no_position_mask;
  CHECK(differing(forward(layer, p, call), expected) == "");
}

Problem located_problem(Index coordinates, Index L1, Index L2) {
  Lottery lottery(21);
  Problem p;
  p.options = {.size = 4,
               .n_heads = 2,
               .query_size = 3,
               .key_size = 5,
               .value_size = 4,
               .head_size = 2 * coordinates,
               .n_positions = 23,
               .position_size = 2 * coordinates,
               .n_coordinates = coordinates};
  p.leading = {2};
  p.L1 = L1;
  p.L2 = L2;
  lottery.fill(p);
  return p;
}

}  // namespace

TEST_CASE("positions are the relative positions that they make", "[relative_attention]") {
  const Problem line = located_problem(1, 37, 33), page = located_problem(2, 9, 35);
  {
    INFO("0, 1, 2, ...");
    check_positions(line, {{}}, [](Index, Index i, Index j, Index, std::int64_t& relative) {
      relative = j - i;
      return true;
    });
  }
  {
    INFO("ranges far away");
    constexpr Index far = Index{1} << 40;
    check_positions(line, {{.q = Positions::range(far + 5), .k = Positions::range(far)}},
                    [](Index, Index i, Index j, Index, std::int64_t& relative) {
                      relative = j - i - 5;
                      return true;
                    });
    check_positions(page, {{.k = Positions::range(-far)}, {.q = Positions::range(far), .k = Positions::range(far + 7)}},
                    [](Index, Index i, Index j, Index x, std::int64_t& relative) {
                      relative = x == 0 ? j - i - far : j - i + 7;
                      return true;
                    });
  }
  {
    INFO("as far apart as positions may be");
    Eigen::Tensor<std::int64_t, 1> q(37), k(33);
    for (Index i = 0; i < 37; ++i) q(i) = i % 2 == 0 ? Positions::limit : -Positions::limit;
    for (Index j = 0; j < 33; ++j) k(j) = j % 3 == 0 ? Positions::limit : -Positions::limit + j;
    check_positions(line, {{.q = q, .k = k}}, [&](Index, Index i, Index j, Index, std::int64_t& relative) {
      relative = k(j) - q(i);
      return true;
    });
  }
  {
    INFO("of each batch entry, reals that are integers, fewer than tokens");
    Eigen::Tensor<double, 2> q0(2, 7), k0(2, 33);
    Eigen::Tensor<int, 1> q1(9);
    Eigen::Tensor<float, 2, Eigen::RowMajor> k1(2, 30);
    for (Index n = 0; n < 2; ++n) {
      for (Index i = 0; i < 7; ++i) q0(n, i) = static_cast<double>(100 + 3 * i - n);
      for (Index j = 0; j < 33; ++j) k0(n, j) = static_cast<double>(110 + j * (n + 1) % 13);
      for (Index j = 0; j < 30; ++j) k1(n, j) = static_cast<float>(200 - j);
    }
    for (Index i = 0; i < 9; ++i) q1(i) = static_cast<int>(190 + i);
    check_positions(page, {{.q = q0, .k = k0}, {.q = q1, .k = k1}},
                    [&](Index n, Index i, Index j, Index x, std::int64_t& relative) {
                      if (i < 2 || j < 5) return false;  // in one coordinate at least
                      if (x == 0)
                        relative = static_cast<std::int64_t>(k0(n, j - 2)) - static_cast<std::int64_t>(q0(n, i - 2));
                      else
                        relative = static_cast<std::int64_t>(k1(n, j - 5)) - q1(i);
                      return true;
                    });
  }
  {
    INFO("all keys but one");
    Eigen::Tensor<int, 1> k(32);
    for (Index j = 0; j < 32; ++j) k(j) = static_cast<int>(100 + j * j % 17);
    check_positions(line, {{.k = k}}, [&](Index, Index i, Index j, Index, std::int64_t& relative) {
      if (j < 1) return false;
      relative = k(j - 1) - i;
      return true;
    });
  }
  {
    INFO("none for any query");
    const Eigen::Tensor<int, 1> none(0);
    check_positions(line, {{.q = none}}, [](Index, Index, Index, Index, std::int64_t&) { return false; });
  }
  {
    INFO("queries and keys alike");
    Eigen::Tensor<int, 2> both(2, 30);
    for (Index n = 0; n < 2; ++n)
      for (Index i = 0; i < 30; ++i) both(n, i) = static_cast<int>(100 + i * i % (17 + n));
    check_positions(located_problem(1, 33, 33), {{.q_k = both}},
                    [&](Index n, Index i, Index j, Index, std::int64_t& relative) {
                      if (i < 3 || j < 3) return false;
                      relative = both(n, j - 3) - both(n, i - 3);
                      return true;
                    });
  }
}

// ---- Dropout

namespace {

/// A layer that pools its weights: values and their projection are identities, and all logits 0.
struct Weights {
  static constexpr Index B = 2, L1 = 40, L2 = 35;
  explicit Weights(double p) {
    problem.options = {.size = 2 * L2,
                       .n_heads = 2,
                       .query_size = 1,
                       .key_size = 1,
                       .value_size = L2,
                       .head_size = 1,
                       .dropout_p = p,
                       .n_additional_heads = 1};
    problem.leading = {B};
    problem.L1 = L1;
    problem.L2 = L2;
    problem.queries.assign(B * L1, 0);
    problem.keys.assign(B * L2, 0);
    problem.values.assign(B * L2 * L2, 0);
    for (Index n = 0; n < B; ++n)
      for (Index j = 0; j < L2; ++j) problem.values[at((n * L2 + j) * L2 + j)] = 1;
  }

  [[nodiscard]] RelativeAttention<double> layer() const {
    RelativeAttention<double> result(problem.options);
    for_each_parameter(result, [](std::string_view name, auto& tensor) {
      fill(tensor, 0);
      if (name == "content_value_proj.weight")
        for (Index o = 0; o < 2 * L2; ++o) tensor.data()[o * L2 + o % L2] = 1;
    });
    return result;
  }

  Problem problem{};
};

}  // namespace

TEST_CASE("RelativeAttention drops weights by seed, as many as it was told", "[relative_attention]") {
  for (const double p : {0.1, 0.5, 0.9}) {
    INFO("p " << p);
    const Weights weights(p);
    const auto layer = weights.layer();
    const auto run = [&](std::uint64_t seed) { return forward(layer, weights.problem, {.seed = seed}); };
    const auto none = run(0);
    for (const double weight : none.pooled) CHECK(std::abs(weight * Weights::L2 - 1) < 1e-14);
    const auto some = run(7), other = run(8);
    CHECK(differing(run(7), some) == "");
    CHECK(differing(other, some) == "pooled ");
    CHECK(some.logits == none.logits);
    Index dropped = 0, alike = 0;
    for (std::size_t i = 0; i < some.pooled.size(); ++i) {
      dropped += some.pooled[i] == 0;
      alike += some.pooled[i] == other.pooled[i];
      if (some.pooled[i] != 0) CHECK(std::abs(some.pooled[i] * Weights::L2 * (1 - p) - 1) < 1e-13);
    }
    // Within five standard deviations.
    const auto count = static_cast<double>(some.pooled.size());
    CHECK(std::abs(static_cast<double>(dropped) - p * count) < 5 * std::sqrt(p * (1 - p) * count));
    const double both = p * p + (1 - p) * (1 - p);
    CHECK(std::abs(static_cast<double>(alike) - both * count) < 5 * std::sqrt(both * (1 - both) * count));

    // Heads, queries and batch entries are not dropped alike.
    const auto same_pattern = [&](Index a, Index b) {
      for (Index j = 0; j < Weights::L2; ++j)
        if ((some.pooled[at(a + j)] == 0) != (some.pooled[at(b + j)] == 0)) return false;
      return true;
    };
    CHECK(!same_pattern(0, Weights::L2));
    CHECK(!same_pattern(0, 2 * Weights::L2));
    CHECK(!same_pattern(0, Weights::L1 * 2 * Weights::L2));
  }
  // A seed without a probability changes nothing.
  const Weights weights(0);
  CHECK(differing(forward(weights.layer(), weights.problem, {.seed = 7}),
                  forward(weights.layer(), weights.problem, {})) == "");
}

TEST_CASE("dropout keeps what RelativeAttention expects", "[relative_attention]") {
  Problem p = located_problem(1, 3, 5);
  p.options.dropout_p = 0.3;
  const auto layer = layer_of<double>(p);
  const auto expected = forward(layer, p, {.positions = {{}}});
  constexpr int seeds = 1500;
  Doubles sums(expected.pooled.size()), squares(expected.pooled.size());
  for (int seed = 1; seed <= seeds; ++seed) {
    const auto one = forward(layer, p, {.positions = {{}}, .seed = static_cast<std::uint64_t>(seed)});
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums[i] += one.pooled[i];
      squares[i] += one.pooled[i] * one.pooled[i];
    }
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const double mean = sums[i] / seeds, variance = squares[i] / seeds - mean * mean;
    CHECK(variance > 0);
    CHECK(std::abs(mean - expected.pooled[i]) < 5 * std::sqrt(variance / seeds));
  }
}

TEST_CASE("gradients of RelativeAttention go through what was not dropped", "[relative_attention]") {
  Lottery lottery(31);
  for (const unsigned mode : {7u, 1u, 4u}) {
    Problem p = lottery.problem(mode, 1, 7, {2}, 4, 5);
    p.options.dropout_p = 0.4;
    if (!p.options.do_pooling) p.options.do_pooling = true;
    if (!p.pooled) {
      p.pooled = true;
      lottery.fill(p);
    }
    check_gradients(p, 17);
  }
}
