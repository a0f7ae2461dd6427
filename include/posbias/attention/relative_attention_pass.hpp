// SPDX-License-Identifier: MIT
/// \file
/// Forward and backward of RelativeAttention, on checked views.
///
///     q, k, v = projected content          K, Q = projected table of relative positions, for each coordinate
///     logit(i, j) = scale · ( q_i·k_j  +  q_i·K[index(i, j)]  +  k_j·Q[index(i, j)] ) + base + bias
///     weights = softmax over keys, -10000 where a key is masked          pooled = weights · v
///
/// Forward takes some batch entries at a time, the heads of their keys first, then blocks of queries with all heads,
/// because heads are what is next to each other in the logits. Backward takes one head at a time, and finds the weights
/// again from the logits.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "posbias/attention/position_scores.hpp"
#include "posbias/attention/relative_attention_parameters.hpp"
#include "posbias/attention/relative_index.hpp"
#include "posbias/core/executor.hpp"
#include "posbias/core/tensor_view.hpp"
#include "posbias/kernel/dropout.hpp"
#include "posbias/kernel/exponential.hpp"
#include "posbias/kernel/linear.hpp"
#include "posbias/kernel/product.hpp"
#include "posbias/kernel/relative_position_table.hpp"
#include "posbias/kernel/workspace.hpp"

namespace posbias::detail {

/// One call, checked.
template <class Scalar>
struct RelativeAttentionViews {
  const RelativeAttentionParameters<Scalar>& parameters;
  Index heads, additional_heads;  // all, and those of them that are not pooled
  bool c2c, c2p, p2c;             // the terms of this call
  TensorView<const Scalar, 2> queries, keys;
  std::optional<TensorView<const Scalar, 2>> values;  // none: nothing is pooled
  std::optional<RelativeIndex> index;                 // if c2p or p2c
  std::optional<TensorView<const bool, 3>> mask;      // (L1, L2, pooled heads)
  std::optional<TensorView<const float, 3>> base_float;
  std::optional<TensorView<const double, 3>> base_double;  // (L1, L2, heads)
  Dropout dropout;
  Executor executor;

  [[nodiscard]] Index head_size() const { return parameters.key.outputs() / heads; }
  [[nodiscard]] Index pooled_heads() const { return heads - additional_heads; }
  [[nodiscard]] bool pools(Index head) const { return values && head >= additional_heads; }
  /// Features of a head of the values, if there are any.
  [[nodiscard]] Index value_size() const { return values ? parameters.value->outputs() / pooled_heads() : 0; }
  [[nodiscard]] Index coordinates() const { return index ? parameters.table->key.groups() : 0; }
};

/// What backward reads and writes beside the gradients of parameters.
template <class Scalar>
struct RelativeAttentionGradientViews {
  std::optional<TensorView<const Scalar, 2>> grad_pooled{};
  std::optional<TensorView<const Scalar, 3>> logits{};  // as forward wrote them, if there is grad_pooled
  std::optional<TensorView<const Scalar, 3>> grad_logits{};
  std::optional<TensorView<Scalar, 3>> grad_base{};  // to write the gradient of base_attn to; may be grad_logits
  TensorView<Scalar, 2> queries, keys;               // added to
  std::optional<TensorView<Scalar, 2>> values{};
};

/// What forward and backward have in common.
template <class Scalar>
class RelativeAttentionPass {
 public:
  using Views = RelativeAttentionViews<Scalar>;
  using Scores = PositionScores<Scalar>;
  using Window = ScoreWindow<Scalar>;
  using Reads = RelativeIndex::Reads;
  static constexpr Index together = RelativeIndex::together;
  static constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();

  RelativeAttentionPass(const Views& views, typename Scores::For what)
      : call(views),
        queries(views.queries.shape[0]),
        keys(views.keys.shape[0]),
        H(views.head_size()),
        Hv(views.value_size()),
        width(whole_lanes<Scalar>(H)),
        value_width(whole_lanes<Scalar>(Hv)),
        key_width(whole_lanes<Scalar>(keys)),
        scale(static_cast<Scalar>(1 / std::sqrt(static_cast<double>(H * (views.c2c + views.c2p + views.p2c))))),
        query_heads(views.parameters.query_projection(), views.heads),
        key_heads(views.parameters.key, views.heads) {
    const auto& parameters = call.parameters;
    if (call.values) value_heads.emplace(*parameters.value, call.pooled_heads());
    if (call.c2p) of_queries.emplace(*parameters.table, false, call.heads, Scalar(1), what);  // queries are scaled
    if (call.p2c) of_keys.emplace(*parameters.table, true, call.heads, scale, what);
  }

  /// Queries of a head, scaled: (count, width).
  void project_queries(Index n, Index first, Index count, Index h, Scalar* q) const {
    query_heads.apply(h, token_rows(call.queries, n, first), count, q);
    std::for_each_n(q, count * width, [&](Scalar& value) { value *= scale; });
  }
  /// Keys of a head: (keys, width).
  void project_keys(Index n, Index h, Scalar* k) const { key_heads.apply(h, token_rows(call.keys, n, 0), keys, k); }
  /// Values of a head that is pooled: (keys, value_width).
  void project_values(Index n, Index h, Scalar* v) const {
    value_heads->apply(h - call.additional_heads, token_rows(*call.values, n, 0), keys, v);
  }

  /// Turns the logits of a query, for a head that is pooled, into e^(logit - largest), and 0 behind the last key. Returns
  /// 1 / their sum, or 0.
  Scalar weigh(Index n, Index i, Index h, Scalar* row) const {
    using Values = Eigen::Map<Lane<Scalar>>;
    constexpr Scalar masked = -10000;
    for_each_masked(n, i, h, [&](Index j) { row[j] = masked; });
    std::fill(row + keys, row + key_width, -infinity);
    Lane<Scalar> most = Lane<Scalar>::Constant(-infinity);
    for (Index j = 0; j < key_width; j += lanes<Scalar>) most = most.max(Values(row + j));
    const Scalar top = most.maxCoeff(), reference = top == -infinity ? Scalar(0) : top;
    Lane<Scalar> sums = Lane<Scalar>::Zero();
    for (Index j = 0; j < key_width; j += lanes<Scalar>) {
      const Lane<Scalar> weight = exponential_(Values(row + j) - reference);
      Values(row + j) = weight;
      sums += weight;
    }
    const auto sum = static_cast<double>(sums.sum());
    return sum == 0 ? Scalar(0) : static_cast<Scalar>(1 / sum);
  }

  /// Calls `visit(j)` for the keys that a query may not attend to.
  template <class Visit>
  void for_each_masked(Index n, Index i, Index h, const Visit& visit) const {
    if (!call.mask) return;
    const auto [query_stride, key_stride, head_stride] = call.mask->strides;
    const bool* flags = call.mask->batch(n) + i * query_stride + (h - call.additional_heads) * head_stride;
    for (Index j = 0; j < keys; ++j)
      if (!flags[j * key_stride]) visit(j);
  }

  /// What some queries read. Nothing, without positional terms.
  [[nodiscard]] Reads reads_of_queries(Index n, Index first, Index count) const {
    return call.index ? call.index->reads_of_queries(n, first, count) : Reads();
  }

  /// What blocks of keys are read at: (coordinates, blocks). Nothing, if only the queries' scores are read.
  [[nodiscard]] std::vector<Window> windows_of_keys(Index n) const {
    std::vector<Window> windows;
    if (call.p2c)
      for (const TableRange& range : call.index->ranges_of_keys(n)) windows.emplace_back(range);
    return windows;
  }

  /// Calls `visit(number of a block of keys, query, first key, keys, index)` for each block of keys and each of some
  /// queries, for one coordinate: a block by all queries, which read neighbouring scores, then the next. `scores` are of
  /// all blocks, if there are any.
  template <class S, class Visit>
  void for_each_block(const Reads& reads, Index coordinate, Index count, const std::vector<ScoreRows<S>>& scores,
                      const Visit& visit) const {
    const auto* index = reads.rows.data() + coordinate * count * keys;
    Index block = coordinate * blocks_of_keys();
    for (Index key = 0; key < keys; key += together, ++block, index += together) {
      const Index next = std::min(together, keys - key - together);
      if (next > 0 && !scores.empty())
        scores[static_cast<std::size_t>(block + 1)].prefetch(index + together, index + together + (count - 1) * keys,
                                                             next);
      for (Index i = 0; i < count; ++i) visit(block, i, key, std::min(together, keys - key), index + i * keys);
    }
  }

  /// Makes 0 of what belongs to pairs without a relative position.
  void hide(const Reads& reads, Index i, Index key, Index count, Scalar* terms) const {
    if (reads.hidden.empty()) return;
    const char* hidden = reads.hidden.data() + i * keys + key;
    for (Index j = 0; j < count; ++j) terms[j] = hidden[j] != 0 ? Scalar(0) : terms[j];
  }

  [[nodiscard]] Index blocks_of_keys() const { return (keys + together - 1) / together; }

  /// Multiplies each weight of a query by what dropout makes of it.
  void drop(Index n, Index i, Index h, Scalar* row) const {
    if (!call.dropout.active()) return;
    const Index first = (n * queries + i) * keys;
    for (Index j = 0; j < keys; ++j)
      row[j] *= static_cast<Scalar>(call.dropout((first + j) * call.pooled_heads() + h - call.additional_heads));
  }

  const Views& call;
  const Index queries, keys, H, Hv;           // L1, L2, features of a head, of its values
  const Index width, value_width, key_width;  // H, Hv and L2 in whole lanes
  const Scalar scale;                         // of each term
  const LinearHeads<Scalar> query_heads, key_heads;
  std::optional<LinearHeads<Scalar>> value_heads;
  std::optional<Scores> of_queries, of_keys;  // c2p, p2c

 private:
  Exponential<Scalar> exponential_;
};

/// Forward of one call.
template <class Scalar>
class RelativeAttentionForward {
  using Pass = RelativeAttentionPass<Scalar>;
  using Window = ScoreWindow<Scalar>;

 public:
  /// Writes logits (B, *, L1, L2, heads) and, if there are values, pooled (B, *, L1, size).
  RelativeAttentionForward(const RelativeAttentionViews<Scalar>& call, const TensorView<Scalar, 2>& pooled,
                           const TensorView<Scalar, 3>& logits)
      : pass_(call, Pass::Scores::For::forward), call_(call), pooled_(pooled), logits_(logits) {}

  void run() const {
    constexpr Index most_values = Index{1} << 22;  // of keys at a time
    const Index batches = call_.queries.batches(), heads = call_.heads;
    const Index blocks = (pass_.queries + together - 1) / together;
    const Index entries =
        std::clamp<Index>(most_values / std::max<Index>(heads * most_of_head(), 1), 1, std::max<Index>(batches, 1));
    std::vector<KeyHead> key_heads(static_cast<std::size_t>(entries * heads));
    std::vector<std::vector<Window>> windows(static_cast<std::size_t>(entries));
    for (Index first = 0; first < batches; first += entries) {
      const Index count = std::min(entries, batches - first);
      call_.executor.parallel_for(
          count, [&](Index n) { windows[static_cast<std::size_t>(n)] = pass_.windows_of_keys(first + n); });
      call_.executor.parallel_for(count * heads, [&](Index task) {
        const Index n = task / heads;
        fill(key_heads[static_cast<std::size_t>(task)], first + n, task % heads, windows[static_cast<std::size_t>(n)]);
      });
      call_.executor.parallel_for(count * blocks, [&](Index task) {
        const Index n = task / blocks, query = task % blocks * together;
        attend(&key_heads[static_cast<std::size_t>(n * heads)], first + n, query,
               std::min(together, pass_.queries - query));
      });
    }
  }

 private:
  static constexpr Index together = Pass::together;

  /// The keys of a head, packed.
  struct KeyHead {
    Workspace<Scalar> memory;
    Panels<Scalar> k_by_feature, v;               // (H, keys), (keys, Hv)
    std::vector<ScoreRows<const Scalar>> scores;  // for each coordinate and block of keys, if p2c
  };

  /// The most values of a head of keys.
  [[nodiscard]] Index most_of_head() const {
    const Index scores = call_.p2c ? call_.coordinates() * whole_lanes<Scalar>(call_.parameters.table->positions()) : 0;
    return pass_.key_width * pass_.H + pass_.keys * (pass_.value_width + scores);
  }

  void fill(KeyHead& head, Index n, Index h, const std::vector<Window>& windows) const {
    Index size = packed_size<Scalar>(pass_.H, pass_.keys) + packed_size<Scalar>(pass_.keys, pass_.Hv);
    for (const Window& window : windows) size += together * window.width;
    head.memory.make_room(size);
    Workspace<Scalar> rows(pass_.keys * std::max(pass_.width, pass_.value_width));
    Scalar* next = head.memory.data();
    pass_.project_keys(n, h, rows.data());
    head.k_by_feature = pack(Factor<Scalar>{rows.data(), 1, pass_.width}, pass_.H, pass_.keys, next);
    next += packed_size<Scalar>(pass_.H, pass_.keys);
    head.scores.clear();
    for (Index b = 0; b < std::ssize(windows); ++b) {
      const Window& window = windows[static_cast<std::size_t>(b)];
      const Index key = b % pass_.blocks_of_keys() * together;
      pass_.of_keys->score(h, b / pass_.blocks_of_keys(), rows.data() + key * pass_.width, pass_.width,
                           std::min(together, pass_.keys - key), window, next);
      head.scores.push_back({next, window.width, window.begin});
      next += together * window.width;
    }
    if (!call_.pools(h)) return;
    pass_.project_values(n, h, rows.data());
    head.v = pack(Factor<Scalar>{rows.data(), pass_.value_width, 1}, pass_.keys, pass_.Hv, next);
  }

  /// Some queries of a batch entry, all heads.
  void attend(const KeyHead* key_heads, Index n, Index first, Index count) const {
    const auto reads = pass_.reads_of_queries(n, first, count);
    Workspace<Scalar> q(count * pass_.width), scores, tile(count * pass_.key_width);
    for (Index h = 0; h < call_.heads; ++h) {
      const KeyHead& keys = key_heads[h];
      pass_.project_queries(n, first, count, h, q.data());
      if (call_.c2c)
        multiply<Sum::fresh>(count, pass_.keys, pass_.H, Factor<Scalar>{q.data(), pass_.width, 1}, keys.k_by_feature,
                             tile.data(), pass_.key_width);
      else
        std::fill_n(tile.data(), count * pass_.key_width, Scalar(0));
      for (Index x = 0; x < call_.coordinates(); ++x) {
        const Window window(reads.ranges[static_cast<std::size_t>(x)]);
        if (call_.c2p) {
          scores.make_room(count * window.width);
          pass_.of_queries->score(h, x, q.data(), pass_.width, count, window, scores.data());
        }
        pass_.for_each_block(reads, x, count, keys.scores,
                             [&](Index b, Index i, Index key, Index of_block, const auto* index) {
                               std::array<Scalar, together> terms{};
                               if (call_.c2p)
                                 ScoreRows<const Scalar>{scores.data() + i * window.width, 0, window.begin}.gather(
                                     index, of_block, terms.data());
                               if (call_.p2c)
                                 keys.scores[static_cast<std::size_t>(b)].gather(index, of_block, terms.data());
                               pass_.hide(reads, i, key, of_block, terms.data());
                               Scalar* row = tile.data() + i * pass_.key_width + key;
                               for (Index j = 0; j < of_block; ++j) row[j] += terms[static_cast<std::size_t>(j)];
                             });
      }
      for (Index i = 0; i < count; ++i) write_logits(n, first + i, h, tile.data() + i * pass_.key_width);
      if (call_.pools(h)) pool(keys, n, first, count, h, tile);
    }
  }

  /// Adds base_attn and the head's bias.
  void write_logits(Index n, Index i, Index h, Scalar* row) const {
    const auto add = [&](const auto& base) {
      if (!base) return;
      const auto* from = base->batch(n) + i * base->strides[0] + h * base->strides[2];
      for (Index j = 0; j < pass_.keys; ++j) row[j] += static_cast<Scalar>(from[j * base->strides[1]]);
    };
    add(call_.base_float);
    add(call_.base_double);
    const auto& head_bias = call_.parameters.bias;
    const Scalar bias = head_bias ? (*head_bias)(h) : Scalar(0);
    Scalar* to = logits_.batch(n) + i * logits_.strides[0] + h * logits_.strides[2];
    for (Index j = 0; j < pass_.keys; ++j) to[j * logits_.strides[1]] = row[j] += bias;
  }

  /// Writes a head of pooled.
  void pool(const KeyHead& keys, Index n, Index first, Index count, Index h, Workspace<Scalar>& tile) const {
    Workspace<Scalar> out(count * pass_.value_width), parts(count);
    for (Index i = 0; i < count; ++i) {
      Scalar* row = tile.data() + i * pass_.key_width;
      parts.data()[i] = pass_.weigh(n, first + i, h, row);
      pass_.drop(n, first + i, h, row);
    }
    multiply<Sum::fresh>(count, pass_.Hv, pass_.keys, Factor<Scalar>{tile.data(), pass_.key_width, 1}, keys.v,
                         out.data(), pass_.value_width);
    const Index feature = (h - call_.additional_heads) * pass_.Hv;
    for (Index i = 0; i < count; ++i) {
      Scalar* to = pooled_.batch(n) + (first + i) * pooled_.strides[0] + feature * pooled_.strides[1];
      for (Index d = 0; d < pass_.Hv; ++d)
        to[d * pooled_.strides[1]] = parts.data()[i] * out.data()[i * pass_.value_width + d];
    }
  }

  Pass pass_;
  const RelativeAttentionViews<Scalar>& call_;
  TensorView<Scalar, 2> pooled_;
  TensorView<Scalar, 3> logits_;
};

/// Backward of one call. Heads run in parallel and batch entries one after another, so that sums over them have an
/// order.
template <class Scalar>
class RelativeAttentionBackward {
  using Pass = RelativeAttentionPass<Scalar>;

 public:
  RelativeAttentionBackward(const RelativeAttentionViews<Scalar>& call,
                            const RelativeAttentionGradientViews<Scalar>& gradients)
      : pass_(call, Pass::Scores::For::backward), call_(call), gradients_(gradients) {
    const auto& parameters = call.parameters;
    const Index batches = call.queries.batches();
    const auto zeros = [](auto& sums, Index rows, Index columns) {
      sums.resize(static_cast<std::size_t>(rows * columns));
    };
    zeros(grad_q_, batches * pass_.queries, parameters.key.outputs());
    zeros(grad_k_, batches * pass_.keys, parameters.key.outputs());
    if (call.values) zeros(grad_v_, batches * pass_.keys, parameters.value->outputs());
    if (call.c2p) zeros(grad_key_table_, parameters.table->positions(), parameters.table->outputs());
    if (call.p2c) zeros(grad_query_table_, parameters.table->positions(), parameters.table->outputs());
    zeros(grad_head_bias_, call.heads, 1);
  }

  /// Adds to all gradients.
  void run(RelativeAttentionParameters<Scalar>& grads) {
    call_.executor.parallel_for(call_.heads, [&](Index h) {
      if (call_.pools(h) || gradients_.grad_logits) Head(*this, h).run();
    });
    const auto& parameters = call_.parameters;
    const auto& executor = call_.executor;
    linear_backward(parameters.query_projection(), call_.queries, grad_q_.data(), gradients_.queries,
                    grads.query_projection(), executor);
    linear_backward(parameters.key, call_.keys, grad_k_.data(), gradients_.keys, grads.key, executor);
    if (call_.values)
      linear_backward(*parameters.value, *call_.values, grad_v_.data(), *gradients_.values, *grads.value, executor);
    if (call_.c2p) parameters.table->project_backward(false, grad_key_table_.data(), *grads.table);
    if (call_.p2c) parameters.table->project_backward(true, grad_query_table_.data(), *grads.table);
    for (Index h = 0; grads.bias && h < call_.heads; ++h)
      (*grads.bias)(h) += static_cast<Scalar>(grad_head_bias_[static_cast<std::size_t>(h)]);
  }

 private:
  /// Backward of a head, batch entry by batch entry.
  class Head {
   public:
    Head(RelativeAttentionBackward& backward, Index head)
        : to_(backward),
          pass_(backward.pass_),
          call_(backward.call_),
          gradients_(backward.gradients_),
          h_(head),
          q_(most_queries * pass_.width),
          grad_q_(most_queries * pass_.width),
          packed_q_(packed_size<Scalar>(most_queries, pass_.H)),
          weights_(most_queries * pass_.key_width),
          grad_logits_(most_queries * pass_.key_width),
          k_(pass_.keys * pass_.width),
          grad_k_(pass_.keys * pass_.width),
          packed_k_(packed_size<Scalar>(pass_.keys, pass_.H)),
          grad_v_(pass_.keys * pass_.value_width),
          packed_v_(packed_size<Scalar>(pass_.Hv, pass_.keys)),
          grad_out_(most_queries * pass_.Hv),
          packed_grad_out_(packed_size<Scalar>(most_queries, pass_.Hv)) {}

    void run() {
      for (Index n = 0; n < call_.queries.batches(); ++n) {
        project_keys(n);
        for (Index first = 0; first < pass_.queries; first += most_queries)
          add_queries(n, first, std::min(most_queries, pass_.queries - first));
        add_scores_of_keys();
        write(grad_k_, pass_.width, pass_.H, call_.heads, h_, n * pass_.keys, pass_.keys, Scalar(1), to_.grad_k_);
        if (call_.pools(h_))
          write(grad_v_, pass_.value_width, pass_.Hv, call_.pooled_heads(), h_ - call_.additional_heads, n * pass_.keys,
                pass_.keys, Scalar(1), to_.grad_v_);
      }
    }

   private:
    static constexpr Index most_queries = Pass::together;

    void project_keys(Index n) {
      if (call_.pools(h_)) {
        Workspace<Scalar> v(pass_.keys * pass_.value_width);
        pass_.project_values(n, h_, v.data());
        v_by_feature_ = pack(Factor<Scalar>{v.data(), 1, pass_.value_width}, pass_.Hv, pass_.keys, packed_v_.data());
        std::fill_n(grad_v_.data(), pass_.keys * pass_.value_width, Scalar(0));
      }
      pass_.project_keys(n, h_, k_.data());
      k_by_key_ = pack(Factor<Scalar>{k_.data(), pass_.width, 1}, pass_.keys, pass_.H, packed_k_.data());
      std::fill_n(grad_k_.data(), pass_.keys * pass_.width, Scalar(0));

      windows_ = pass_.windows_of_keys(n);
      Index size = 0;
      for (const auto& window : windows_) size += Pass::together * window.width;
      key_scores_.make_room(size);
      std::fill_n(key_scores_.data(), size, Scalar(0));
      grad_key_scores_.clear();
      Scalar* next = key_scores_.data();
      for (const auto& window : windows_) {
        grad_key_scores_.push_back({next, window.width, window.begin});
        next += Pass::together * window.width;
      }
    }

    void add_scores_of_keys() {
      for (Index b = 0; b < std::ssize(windows_); ++b) {
        const Index key = b % pass_.blocks_of_keys() * Pass::together;
        pass_.of_keys->score_backward(h_, b / pass_.blocks_of_keys(), k_.data() + key * pass_.width, pass_.width,
                                      std::min(Pass::together, pass_.keys - key), windows_[static_cast<std::size_t>(b)],
                                      grad_key_scores_[static_cast<std::size_t>(b)].data,
                                      grad_k_.data() + key * pass_.width, to_.grad_query_table_.data());
      }
    }

    void add_queries(Index n, Index first, Index count) {
      find_gradient(n, first, count);
      const Factor<Scalar> grad_logits{grad_logits_.data(), pass_.key_width, 1};
      pass_.project_queries(n, first, count, h_, q_.data());
      std::fill_n(grad_q_.data(), count * pass_.width, Scalar(0));
      if (call_.c2c) {
        multiply<Sum::fresh>(count, pass_.H, pass_.keys, grad_logits, k_by_key_, grad_q_.data(), pass_.width);
        multiply<Sum::added>(pass_.keys, pass_.H, count, grad_logits.transposed(),
                             pack(Factor<Scalar>{q_.data(), pass_.width, 1}, count, pass_.H, packed_q_.data()),
                             grad_k_.data(), pass_.width);
      }
      const auto reads = pass_.reads_of_queries(n, first, count);
      for (Index x = 0; x < call_.coordinates(); ++x) {
        const ScoreWindow<Scalar> window(reads.ranges[static_cast<std::size_t>(x)]);
        query_scores_.make_room(count * window.width);
        std::fill_n(query_scores_.data(), count * window.width, Scalar(0));
        pass_.for_each_block(
            reads, x, count, grad_key_scores_, [&](Index b, Index i, Index key, Index of_block, const auto* index) {
              std::array<Scalar, Pass::together> grad_terms;
              std::copy_n(grad_logits_.data() + i * pass_.key_width + key, of_block, grad_terms.data());
              pass_.hide(reads, i, key, of_block, grad_terms.data());
              if (call_.c2p)
                ScoreRows<Scalar>{query_scores_.data() + i * window.width, 0, window.begin}.scatter(index, of_block,
                                                                                                    grad_terms.data());
              if (call_.p2c) grad_key_scores_[static_cast<std::size_t>(b)].scatter(index, of_block, grad_terms.data());
            });
        if (call_.c2p)
          pass_.of_queries->score_backward(h_, x, q_.data(), pass_.width, count, window, query_scores_.data(),
                                           grad_q_.data(), to_.grad_key_table_.data());
      }
      write(grad_q_, pass_.width, pass_.H, call_.heads, h_, n * pass_.queries + first, count, pass_.scale, to_.grad_q_);
    }

    /// The gradient of the queries' logits, and what their weights leave to that of v.
    void find_gradient(Index n, Index first, Index count) {
      std::fill_n(grad_logits_.data(), count * pass_.key_width, Scalar(0));
      if (call_.pools(h_)) through_softmax(n, first, count);
      double& bias = to_.grad_head_bias_[static_cast<std::size_t>(h_)];
      for (Index i = 0; i < count; ++i) {
        Scalar* row = grad_logits_.data() + i * pass_.key_width;
        if (gradients_.grad_logits)
          for_each_logit(*gradients_.grad_logits, n, first + i, [&](Index j, Scalar given) { row[j] += given; });
        if (gradients_.grad_base)
          for_each_logit(*gradients_.grad_base, n, first + i, [&](Index j, Scalar& total) { total = row[j]; });
        for (Index j = 0; j < pass_.keys; ++j) bias += static_cast<double>(row[j]);
      }
    }

    void through_softmax(Index n, Index first, Index count) {
      using Values = Eigen::Map<Eigen::ArrayX<Scalar>>;
      const TensorView<const Scalar, 2>& pooled = *gradients_.grad_pooled;
      const Index feature = (h_ - call_.additional_heads) * pass_.Hv;
      const Scalar* from = pooled.batch(n) + first * pooled.strides[0] + feature * pooled.strides[1];
      for (Index i = 0; i < count; ++i)
        for (Index d = 0; d < pass_.Hv; ++d)
          grad_out_.data()[i * pass_.Hv + d] = from[i * pooled.strides[0] + d * pooled.strides[1]];
      const Factor<Scalar> grad_out{grad_out_.data(), pass_.Hv, 1};
      multiply<Sum::fresh>(count, pass_.keys, pass_.Hv, grad_out, v_by_feature_, grad_logits_.data(), pass_.key_width);

      for (Index i = 0; i < count; ++i) {
        Scalar* row = weights_.data() + i * pass_.key_width;
        for_each_logit(*gradients_.logits, n, first + i, [&](Index j, Scalar logit) { row[j] = logit; });
        Values weights(row, pass_.key_width), grad(grad_logits_.data() + i * pass_.key_width, pass_.key_width);
        const Scalar part = pass_.weigh(n, first + i, h_, row);
        weights *= part;
        pass_.drop(n, first + i, h_, grad.data());
        const Scalar mean = (weights * grad).sum();
        grad = weights * (grad - mean);
        pass_.for_each_masked(n, first + i, h_, [&](Index j) { grad[j] = 0; });
        pass_.drop(n, first + i, h_, row);
      }
      multiply<Sum::added>(pass_.keys, pass_.Hv, count, Factor<Scalar>{weights_.data(), 1, pass_.key_width},
                           pack(grad_out, count, pass_.Hv, packed_grad_out_.data()), grad_v_.data(), pass_.value_width);
    }

    /// Calls `visit(j, entry)` for the keys of a query.
    template <class S, class Visit>
    void for_each_logit(const TensorView<S, 3>& logits, Index n, Index i, const Visit& visit) const {
      S* entry = logits.batch(n) + i * logits.strides[0] + h_ * logits.strides[2];
      for (Index j = 0; j < pass_.keys; ++j) visit(j, entry[j * logits.strides[1]]);
    }

    /// Writes the gradient of a head of tokens, scaled, to where that of all heads is.
    static void write(const Workspace<Scalar>& from, Index stride, Index features, Index heads, Index head, Index first,
                      Index tokens, Scalar scale, std::vector<Scalar>& to) {
      Scalar* row = to.data() + (first * heads + head) * features;
      for (Index i = 0; i < tokens; ++i, row += heads * features)
        for (Index d = 0; d < features; ++d) row[d] = scale * from.data()[i * stride + d];
    }

    RelativeAttentionBackward& to_;
    const Pass& pass_;
    const RelativeAttentionViews<Scalar>& call_;
    const RelativeAttentionGradientViews<Scalar>& gradients_;
    Index h_;
    Workspace<Scalar> q_, grad_q_, packed_q_, weights_, grad_logits_;  // of a block of queries
    Workspace<Scalar> k_, grad_k_, packed_k_, grad_v_, packed_v_;      // of all keys
    Workspace<Scalar> grad_out_, packed_grad_out_;
    Workspace<Scalar> query_scores_, key_scores_;  // gradients of scores
    std::vector<ScoreWindow<Scalar>> windows_;     // of keys: (coordinates, blocks)
    std::vector<ScoreRows<Scalar>> grad_key_scores_;
    Panels<Scalar> k_by_key_{}, v_by_feature_{};
  };

  Pass pass_;
  const RelativeAttentionViews<Scalar>& call_;
  const RelativeAttentionGradientViews<Scalar>& gradients_;
  std::vector<Scalar> grad_q_, grad_k_, grad_v_;           // (B·L, outputs), of what was projected
  std::vector<double> grad_key_table_, grad_query_table_;  // (positions, outputs)
  std::vector<double> grad_head_bias_;
};

}  // namespace posbias::detail
