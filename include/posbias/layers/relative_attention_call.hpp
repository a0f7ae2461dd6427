// SPDX-License-Identifier: MIT
/// \file
/// What RelativeAttention is made with, what it learns, and what a call of it is given: which pairs of a query and a key
/// have which relative position.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/core/attention_terms.hpp"
#include "posbias/core/checked_positions.hpp"
#include "posbias/core/error.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/index.hpp"
#include "posbias/core/optional_tensor.hpp"
#include "posbias/core/parameters.hpp"
#include "posbias/core/positions.hpp"
#include "posbias/core/view.hpp"
#include "posbias/kernel/bucketing.hpp"
#include "posbias/kernel/dropout.hpp"
#include "posbias/kernel/linear.hpp"
#include "posbias/kernel/relative_position_table.hpp"

namespace posbias {

/// Options of `RelativeAttention`. A size of 0 takes its default.
struct RelativeAttentionOptions {
  Index size = 0;                    ///< features of what is pooled, and the default of other sizes; required
  Index n_heads = 0;                 ///< heads that are pooled; required
  Index query_size = 0;              ///< features of queries; default size
  Index key_size = 0;                ///< features of keys; default size
  Index value_size = 0;              ///< features of values; default key_size
  Index head_size = 0;               ///< features of a head, H; default key_size / n_heads
  Index n_positions = 0;             ///< rows of the table of relative positions; default none
  Index position_size = 0;           ///< features of the table; default size
  double dropout_p = 0;              ///< probability that an attention weight is dropped, in calls with a seed
  bool same_key_query_proj = false;  ///< queries are projected as keys are, content and positions
  bool same_positional_key_query_proj = false;  ///< positions are projected to queries as to keys
  Index n_coordinates = 1;                      ///< coordinates of a position
  bool head_bias = true;                        ///< learn a number for each head to add to its logits
  bool do_pooling = true;                       ///< there are values
  AttentionTerms mode = {c2c, p2c, c2p};        ///< the terms; those with positions only where they are given
  Index n_additional_heads = 0;                 ///< heads that have logits only
  bool learn_position_embedding = true;         ///< otherwise the gradient of the table is 0
};

namespace detail {

/// The options with defaults filled in. Throws OptionError, naming `layer`.
inline RelativeAttentionOptions completed(std::string_view layer, RelativeAttentionOptions o) {
  const auto reject_option = [&](const auto&... parts) { fail<OptionError>(layer, ": ", parts...); };
  const auto require = [&](std::string_view option, Index value, Index least) {
    constexpr Index most = (std::numeric_limits<std::int32_t>::max)();  // so that no product of two overflows
    if (value < least) reject_option(option, " = ", value, "; it must be at least ", least);
    if (value > most) reject_option(option, " = ", value, "; it must be at most ", most);
  };
  const auto fill = [&](std::string_view option, Index& value, Index otherwise) {
    require(option, value, 0);
    if (value == 0) value = otherwise;
  };
  const auto divides = [&](std::string_view divisor, Index by, std::string_view option, Index value) {
    if (value % by != 0) reject_option(option, " = ", value, "; it must be a multiple of ", divisor, " = ", by);
  };
  require("size", o.size, 1);
  require("n_heads", o.n_heads, 1);
  require("n_additional_heads", o.n_additional_heads, 0);
  require("n_coordinates", o.n_coordinates, 1);
  require("n_positions", o.n_positions, 0);
  fill("query_size", o.query_size, o.size);
  fill("key_size", o.key_size, o.size);
  fill("value_size", o.value_size, o.key_size);
  if (o.head_size == 0) divides("n_heads", o.n_heads, "key_size", o.key_size);
  fill("head_size", o.head_size, o.key_size / o.n_heads);
  if (o.do_pooling) divides("n_heads", o.n_heads, "size", o.size);
  if (o.same_key_query_proj && o.query_size != o.key_size)
    reject_option("same_key_query_proj needs query_size = key_size; they are ", o.query_size, " and ", o.key_size);
  if (o.n_positions == 0) {
    if (o.position_size != 0)
      reject_option("position_size = ", o.position_size, "; there is no table: n_positions = 0");
    if (!o.mode.contains(c2c)) reject_option("mode has no term that can be computed: no c2c, and n_positions = 0");
  } else {
    if (!o.mode.contains(c2c) && !o.mode.contains(c2p) && !o.mode.contains(p2c)) reject_option("mode has no term");
    fill("position_size", o.position_size, o.size);
    divides("n_coordinates", o.n_coordinates, "position_size", o.position_size);
    divides("n_coordinates", o.n_coordinates, "head_size", o.head_size);
  }
  if (!(o.dropout_p >= 0 && o.dropout_p < 1))
    reject_option("dropout_p = ", o.dropout_p, "; it must be at least 0 and below 1");
  return o;
}

}  // namespace detail

/// Names and shapes are those of edspdf's state_dict. What is shared appears once, under the name of the keys'.
template <class Scalar>
struct RelativeAttentionParameters {
  std::optional<RelativePositionTable<Scalar>> table{};  ///< none without positional terms
  std::optional<ParameterTensor<Scalar, 1>> bias{};      ///< (heads)
  Linear<Scalar> key{};                                  ///< content to keys
  std::optional<Linear<Scalar>> query{},                 ///< content to queries; none: as to keys
      value{};                                           ///< content to values; none: nothing is pooled

  /// How content becomes queries: as keys, where the projection is shared.
  [[nodiscard]] const Linear<Scalar>& query_projection() const { return query ? *query : key; }
  /// The same, to be written.
  [[nodiscard]] Linear<Scalar>& query_projection() { return query ? *query : key; }

  /// Shows each parameter to `visitor(name, tensor)`.
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    if (self.table) RelativePositionTable<Scalar>::visit(*self.table, visitor);
    if (self.bias) visitor("bias", *self.bias);
    Linear<Scalar>::visit("content_key_proj", self.key, visitor);
    if (self.query) Linear<Scalar>::visit("content_query_proj", *self.query, visitor);
    if (self.value) Linear<Scalar>::visit("content_value_proj", *self.value, visitor);
  }
};

/// Relative positions, key minus query: integers (B, *, L1, L2, n_coordinates), or none. B, * and L1 may be 1 for all.
using RelativePositions = OptionalTensor<int, long, long long>;

/// Flags of pairs (B, *, L1, L2), or none. B, * and L1 may be 1 for all.
using PairFlags = OptionalTensor<bool>;

namespace detail {

/// Flags of pairs, if there are any, as (L1, L2). Throws ShapeError.
inline OptionalView<2, bool> fit_pairs(const Hook& hook, const PairFlags& flags, const BatchShape& leading,
                                       Index queries, Index keys) {
  OptionalView<2, bool> result;
  result.entries.leading = leading;
  result.entries.shape = {queries, keys};
  if (!broadcast(flags.view(), {true, false}, result))
    fail<ShapeError>(hook, ": no_position_mask has shape ", flags.view().entries.leading.shape(),
                     "; (B, *, L1, L2) is needed, with B, * = ", leading.shape(), ", L1 = ", queries, ", L2 = ", keys);
  return result;
}

/// Rows [begin, end) of a table.
struct TableRange {
  Index begin = (std::numeric_limits<Index>::max)(), end = 0;

  [[nodiscard]] bool empty() const { return begin >= end; }

  /// Grows to have a row, or a range.
  void add(Index row) { add(TableRange{row, row + 1}); }
  void add(const TableRange& other) {
    begin = (std::min)(begin, other.begin);
    end = (std::max)(end, other.end);
  }
};

/// The rows of a table of clamped relative positions that the pairs of an attention read, coordinate by coordinate, and the
/// pairs that do not. Owns positions, refers to tensors.
class RelativeIndex {
 public:
  using Row = std::int32_t;
  /// Queries, and mostly keys, are taken so many at a time: neighbours read much the same rows.
  static constexpr Index together = 32;

  using Pairs = OptionalView<2, bool>;

  struct Sizes {
    BatchShape leading;
    Index queries, keys, coordinates, positions;
  };

  /// From relative positions if they are given, or else from the positions of queries and keys, for each coordinate;
  /// `disabled` pairs have none. Throws ShapeError, PositionError.
  RelativeIndex(const Hook& hook, const RelativePositions& relative, const std::vector<PairPositions>& positions,
                const Pairs& disabled, const Sizes& sizes)
      : sizes_(sizes), buckets_(hook.module, sizes.positions), disabled_(disabled) {
    if (relative.given())
      adopt(hook, relative);
    else
      locate(hook, positions);
  }

  /// What up to `together` queries read.
  struct GatherIndices {
    std::vector<Row> rows;           // (coordinates, count, keys)
    std::vector<TableRange> ranges;  // (coordinates)
    std::vector<char> masked;        // (count, keys): pairs that read nothing; none, if all read
  };

  [[nodiscard]] GatherIndices reads_of_queries(Index n, Index first, Index count) const {
    GatherIndices reads{std::vector<Row>(size(sizes_.coordinates * count * sizes_.keys)),
                        std::vector<TableRange>(size(sizes_.coordinates)),
                        {}};
    Row* row = reads.rows.data();
    for (TableRange& range : reads.ranges)
      for (Index i = first; i < first + count; ++i, row += sizes_.keys) {
        rows(n, i, &range - reads.ranges.data(), row);
        for (Index j = 0; j < sizes_.keys; ++j) range.add(row[j]);
      }
    if (disabled_.given() || first_key_ > 0 || first < first_query_) {
      reads.masked.resize(size(count * sizes_.keys));
      for (Index i = 0; i < count; ++i) hide(n, first + i, reads.masked.data() + i * sizes_.keys);
    }
    return reads;
  }

  /// What any query reads of each key of a batch entry: (coordinates, keys).
  [[nodiscard]] std::vector<TableRange> ranges_of_keys(Index n) const {
    std::vector<TableRange> ranges(size(sizes_.coordinates * sizes_.keys));
    std::vector<Row> row(size(sizes_.keys)), least, most;
    for (Index x = 0; x < sizes_.coordinates; ++x) {
      least.assign(row.size(), (std::numeric_limits<Row>::max)());
      most.assign(row.size(), -1);
      for (Index i = 0; i < sizes_.queries; ++i) {
        rows(n, i, x, row.data());
        for (std::size_t j = 0; j < row.size(); ++j) least[j] = (std::min)(least[j], row[j]);
        for (std::size_t j = 0; j < row.size(); ++j) most[j] = (std::max)(most[j], row[j]);
      }
      for (std::size_t j = 0; j < row.size(); ++j) ranges[size(x * sizes_.keys) + j] = {least[j], Index{most[j]} + 1};
    }
    return ranges;
  }

 private:
  [[nodiscard]] static std::size_t size(Index count) { return static_cast<std::size_t>(count); }

  void adopt(const Hook& hook, const RelativePositions& relative) {
    given_.entries.leading = sizes_.leading;
    given_.entries.shape = {sizes_.queries, sizes_.keys, sizes_.coordinates};
    if (!broadcast(relative.view(), {true, false, false}, given_))
      fail<ShapeError>(hook, ": relative_positions has shape ", relative.view().entries.leading.shape(),
                       "; (B, *, L1, L2, n_coordinates) is needed, with B, * = ", sizes_.leading.shape(),
                       ", L1 = ", sizes_.queries, ", L2 = ", sizes_.keys, ", n_coordinates = ", sizes_.coordinates);
  }

  void locate(const Hook& hook, const std::vector<PairPositions>& positions) {
    if (static_cast<Index>(positions.size()) != sizes_.coordinates)
      fail<ShapeError>(hook, ": positions has ", positions.size(),
                       " coordinates; n_coordinates = ", sizes_.coordinates);
    for (const PairPositions& at : positions) {
      const std::string where = std::string(hook.function) + ": positions[" + std::to_string(located_.size()) + "]";
      const Hook of_coordinate{hook.module, where};
      const CheckedPairPositions& found =
          located_.emplace_back(of_coordinate, at, sizes_.leading, sizes_.queries, sizes_.keys);
      found.require_integers(of_coordinate, at);
      first_query_ = (std::max)(first_query_, found.q.first());
      first_key_ = (std::max)(first_key_, found.k.first());
    }
  }

  /// Writes what query i of batch entry n reads for each key, something where it reads nothing.
  void rows(Index n, Index i, Index coordinate, Row* to) const {
    if (!given_.given()) return locate_row(located_[size(coordinate)], n, i, to);
    const auto strides = given_.entries.strides;
    given_.visit_batch(n, [&](const auto* first) {
      const auto* from = first + i * strides[0] + coordinate * strides[2];
      for (Index j = 0; j < sizes_.keys; ++j) to[j] = static_cast<Row>(buckets_(from[j * strides[1]]));
    });
  }

  void locate_row(const CheckedPairPositions& at, Index n, Index i, Row* to) const {
    const Index first = i < at.q.first() ? sizes_.keys : at.k.first();
    std::fill_n(to, first, static_cast<Row>(buckets_(0)));
    if (first == sizes_.keys) return;
    const std::int64_t origin = at.q.integer(n, i - at.q.first());
    for (Index j = first; j < sizes_.keys; ++j) to[j] = static_cast<Row>(buckets_(at.k.integer(n, j - first) - origin));
  }

  void hide(Index n, Index i, char* masked) const {
    std::fill_n(masked, i < first_query_ ? sizes_.keys : first_key_, char{1});
    const auto strides = disabled_.entries.strides;
    disabled_.visit_batch(n, [&](const bool* first) {
      const bool* flags = first + i * strides[0];
      for (Index j = 0; j < sizes_.keys; ++j)
        if (flags[j * strides[1]]) masked[j] = 1;
    });
  }

  Sizes sizes_;
  ClampedBuckets buckets_;
  OptionalView<3, int, long, long long> given_;  // (L1, L2, coordinates), or else
  std::vector<CheckedPairPositions> located_;    // one a coordinate
  Index first_query_ = 0, first_key_ = 0;        // with a position in every coordinate
  Pairs disabled_;
};

}  // namespace detail

/// What a call of `RelativeAttention` may be given beside content. Tensors are borrowed and must outlive it, unless they
/// are temporaries or moved in, which it keeps.
struct RelativeAttentionCall {
  /// True where a query may attend: (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, n_heads). Masked keys have logits of
  /// -10000 in the softmax, so that a query whose keys are all masked attends to all alike; logits are returned as they
  /// were before. Here and below B, *, L1 and heads may be 1 for all. Default: all true.
  OptionalTensor<bool> mask{};
  /// Relative positions, or else the positions of queries and keys for each coordinate; tokens without a position have no
  /// positional terms. Default: none, and no positional terms at all.
  RelativePositions relative_positions{};
  /// Where queries and keys are in each coordinate, in the place of relative positions.
  std::vector<PairPositions> positions{};
  /// True where a pair has no positional terms.
  PairFlags no_position_mask{};
  /// Numbers to add to logits: (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, heads). Their gradient is that of the logits,
  /// to be summed where one stands for many.
  OptionalTensor<float, double, Eigen::bfloat16, Eigen::half> base_attn{};
  /// Of dropout: the same seed drops the weights at the same places, in backward too, and in another layer. 0, for
  /// inference, drops none.
  std::uint64_t seed = 0;
  Executor executor{};  ///< who runs the tasks; default that of `positions`
};

namespace detail {

/// One call, checked.
template <class Scalar>
struct RelativeAttentionViews {
  const RelativeAttentionParameters<Scalar>& parameters;
  Index heads, additional_heads;  // all, and those of them that are not pooled
  bool c2c, c2p, p2c;             // the terms of this call
  TensorView<const Scalar, 2> queries, keys;
  std::optional<TensorView<const Scalar, 2>> values;  // none: nothing is pooled
  Dropout dropout;
  Executor executor;
  std::optional<RelativeIndex> index{};                                      // if c2p or p2c
  OptionalView<3, bool> mask{};                                              // (L1, L2, pooled heads)
  OptionalView<3, float, double, Eigen::bfloat16, Eigen::half> base_attn{};  // (L1, L2, heads)

  [[nodiscard]] Index head_size() const { return parameters.key.outputs() / heads; }
  [[nodiscard]] Index pooled_heads() const { return heads - additional_heads; }
  [[nodiscard]] bool pools(Index head) const { return values && head >= additional_heads; }
  /// Whether a pair may be masked, and so have a weight of 0 beside whatever is in memory.
  [[nodiscard]] bool hides() const { return mask.given() || base_attn.given(); }
  /// Features of a head of the values, if there are any.
  [[nodiscard]] Index value_size() const { return values ? parameters.value->outputs() / pooled_heads() : 0; }
  [[nodiscard]] Index coordinates() const { return index ? parameters.table->key.groups() : 0; }
};

/// Fits the mask and base_attn of a call.
template <class Scalar>
void fit_logits(const Hook& hook, const RelativeAttentionCall& call, RelativeAttentionViews<Scalar>& views) {
  const BatchShape& leading = views.queries.leading;
  const Index L1 = views.queries.shape[0], L2 = views.keys.shape[0];
  const auto fit = [&](std::string_view argument, auto from, Index of_heads, auto& to) {
    UntypedView<0>& entries = from.entries;
    const BatchShape given = entries.leading;
    if (given.rank == leading.rank + 1) insert_dimension(entries, leading.rank);                // (L2): any query
    if (entries.leading.rank == leading.rank + 2) insert_dimension(entries, leading.rank + 2);  // any head
    to.entries.leading = leading;
    to.entries.shape = {L1, L2, of_heads};
    if (!broadcast(from, {true, false, true}, to))
      fail<ShapeError>(hook, ": ", argument, " has shape ", given.shape(),
                       "; (B, *, L2), (B, *, L1, L2) or (B, *, L1, L2, heads) is needed, with B, * = ", leading.shape(),
                       ", L1 = ", L1, ", L2 = ", L2, ", heads = ", of_heads);
  };
  fit("mask", call.mask.view(), views.pooled_heads(), views.mask);
  fit("base_attn", call.base_attn.view(), views.heads, views.base_attn);
}

/// Throws ShapeError, OptionError, PositionError, naming `hook`.
template <class Scalar>
RelativeAttentionViews<Scalar> checked_call(const Hook& hook, const RelativeAttentionOptions& options,
                                            const RelativeAttentionParameters<Scalar>& parameters,
                                            const RelativeAttentionCall& call,
                                            const TensorView<const Scalar, 2>& queries,
                                            const TensorView<const Scalar, 2>& keys,
                                            const std::optional<TensorView<const Scalar, 2>>& values) {
  using Tokens = TensorView<const Scalar, 2>;
  const auto reject = [&](const auto&... parts) { fail<OptionError>(hook, ": ", parts...); };
  const auto check_tokens = [&](std::string_view argument, const Tokens& tokens, std::string_view option, Index size) {
    if (tokens.leading != queries.leading || tokens.shape[1] != size)
      fail<ShapeError>(hook, ": ", argument, " has shape ", tokens.whole_shape().shape(), "; (B, *, L, ", option,
                       ") is needed, with B, * = ", queries.leading.shape(), ", ", option, " = ", size);
  };
  check_tokens("queries", queries, "query_size", options.query_size);
  check_tokens("keys", keys, "key_size", options.key_size);
  if (values) {
    if (!options.do_pooling) reject("values are given; do_pooling = false");
    check_tokens("values", *values, "value_size", options.value_size);
    if (values->shape[0] != keys.shape[0])
      fail<ShapeError>(hook, ": values has ", values->shape[0], " tokens; keys has ", keys.shape[0]);
  }
  if (call.relative_positions.given() && !call.positions.empty())
    fail<PositionError>(hook, ": relative_positions and positions are both given; give one");
  const bool located = call.relative_positions.given() || !call.positions.empty();
  if (located && !parameters.table) reject("relative positions are given; there is no table: n_positions = 0");
  if (!located && !options.mode.contains(c2c))
    reject("no relative positions are given; mode has no term that can do without");

  RelativeAttentionViews<Scalar> views{.parameters = parameters,
                                       .heads = options.n_additional_heads + options.n_heads,
                                       .additional_heads = options.n_additional_heads,
                                       .c2c = options.mode.contains(c2c),
                                       .c2p = located && options.mode.contains(c2p),
                                       .p2c = located && options.mode.contains(p2c),
                                       .queries = queries,
                                       .keys = keys,
                                       .values = values,
                                       .dropout = Dropout(options.dropout_p, call.seed),
                                       .executor = call.executor};
  for (const PairPositions& at : call.positions)
    if (views.executor.serial()) views.executor = at.executor;
  const auto disabled = fit_pairs(hook, call.no_position_mask, queries.leading, queries.shape[0], keys.shape[0]);
  if (located) {
    RelativeIndex index(hook, call.relative_positions, call.positions, disabled,
                        {queries.leading, queries.shape[0], keys.shape[0], options.n_coordinates, options.n_positions});
    if (views.c2p || views.p2c) views.index = std::move(index);
  }
  fit_logits(hook, call, views);
  return views;
}

}  // namespace detail
}  // namespace posbias
