// SPDX-License-Identifier: MIT
/// \file
/// Forward and backward of RelativeAttention.
///
/// Forward takes some batch entries at a time, the heads of their keys first, then blocks of queries with all heads, because
/// the heads of a logit are what is next to each other in memory. Backward takes one head at a time, whose weights it finds
/// again from the logits.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include "posbias/kernel/workspace.hpp"
#include "posbias/layers/relative_attention_logits.hpp"

namespace posbias::detail {

/// Forward of one call.
template <class Scalar>
class RelativeAttentionForward {
  using Pass = RelativeAttentionPass<Scalar>;

 public:
  /// Writes logits (B, *, L1, L2, heads) and, if there are values, pooled (B, *, L1, size).
  RelativeAttentionForward(const RelativeAttentionViews<Scalar>& call, const TensorView<Scalar, 2>& pooled,
                           const TensorView<Scalar, 3>& logits)
      : pass_(call, Pass::Scores::For::forward), call_(call), pooled_(pooled), logits_(logits) {}

  void run() const {
    constexpr Index max_values = Index{1} << 22;  // of keys at a time
    const Index batches = call_.queries.batches(), heads = call_.heads;
    const Index blocks = (pass_.queries + together - 1) / together;
    const Index entries =
        std::clamp<Index>(max_values / std::max<Index>(heads * max_of_head(), 1), 1, std::max<Index>(batches, 1));
    std::vector<KeyHead> key_heads(at(entries * heads));
    for (Index first = 0; first < batches; first += entries) {
      const Index count = (std::min)(entries, batches - first);
      call_.executor.parallel_for(count * heads,
                                  [&](Index task) { fill(key_heads[at(task)], first + task / heads, task % heads); });
      call_.executor.parallel_for(count * blocks, [&](Index task) {
        const Index n = task / blocks, query = task % blocks * together;
        attend(&key_heads[at(n * heads)], first + n, query, (std::min)(together, pass_.queries - query));
      });
    }
  }

 private:
  static constexpr Index together = Pass::together;

  static constexpr std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  /// The keys of a head, packed, and their scores.
  struct KeyHead {
    Workspace<Scalar> k_memory, v_memory;
    PackedMatrix<Scalar> k_by_feature, v;  // (H, keys), (keys, Hv)
    bool v_is_finite = true;
    KeyScores<Scalar> scores;
  };

  /// The most values of a head of keys.
  [[nodiscard]] Index max_of_head() const {
    const Index scores =
        call_.p2c ? call_.coordinates() * round_up_to_lanes<Scalar>(call_.parameters.table->positions()) : 0;
    return pass_.key_width * pass_.H + pass_.keys * (pass_.value_width + scores);
  }

  void fill(KeyHead& head, Index n, Index h) const {
    Workspace<Scalar> rows(pass_.keys * (std::max)(pass_.width, pass_.value_width));
    pass_.project_keys(n, h, rows.data());
    if (call_.c2c) {
      head.k_memory.make_room(packed_size<Scalar>(pass_.H, pass_.keys));
      head.k_by_feature =
          pack(MatrixView<Scalar>{rows.data(), 1, pass_.width}, pass_.H, pass_.keys, head.k_memory.data());
    }
    if (call_.p2c) {
      head.scores.lay_out(pass_.ranges_of_keys[at(n)], pass_.keys);
      head.scores.score(*pass_.of_keys, h, rows.data(), pass_.width, pass_.keys);
    }
    if (!call_.pools(h)) return;
    pass_.project_values(n, h, rows.data());
    head.v_memory.make_room(packed_size<Scalar>(pass_.keys, pass_.Hv));
    head.v = pack(MatrixView<Scalar>{rows.data(), pass_.value_width, 1}, pass_.keys, pass_.Hv, head.v_memory.data());
    head.v_is_finite = !call_.hides() || all_finite(head.v.data, packed_size<Scalar>(pass_.keys, pass_.Hv));
  }

  /// Some queries of a batch entry, all heads.
  void attend(const KeyHead* key_heads, Index n, Index first, Index count) const {
    const auto reads = pass_.reads_of_queries(n, first, count);
    Workspace<Scalar> q(count * pass_.width), scores, tile(count * pass_.key_width);
    for (Index h = 0; h < call_.heads; ++h) {
      const KeyHead& keys = key_heads[h];
      pass_.project_queries(n, first, count, h, q.data());
      if (call_.c2c)
        multiply<Accumulate::overwrite>(count, pass_.keys, pass_.H, MatrixView<Scalar>{q.data(), pass_.width, 1},
                                        keys.k_by_feature, tile.data(), pass_.key_width);
      else
        std::fill_n(tile.data(), count * pass_.key_width, Scalar(0));
      for (Index x = 0; x < call_.coordinates(); ++x) {
        const ScoreWindow<Scalar> window(reads.ranges[at(x)]);
        if (call_.c2p) {
          scores.make_room(count * window.width);
          pass_.of_queries->score(h, x, q.data(), pass_.width, count, window, scores.data());
        }
        const auto add_terms = [&](std::size_t block, Index i, Index key, Index of_block, const auto* index) {
          std::array<Scalar, at(together)> terms{};
          const ScoreRows<Scalar> of_query{scores.data() + i * window.width, 0, window.begin};
          if (call_.c2p) of_query.gather(index, of_block, terms.data());
          if (call_.p2c) keys.scores.rows()[block].gather(index, of_block, terms.data());
          pass_.hide(reads, i, key, of_block, terms.data());
          Scalar* row = tile.data() + i * pass_.key_width + key;
          for (Index j = 0; j < of_block; ++j) row[j] += terms[at(j)];
        };
        pass_.for_each_block(reads, x, count, keys.scores, add_terms);
      }
      for (Index i = 0; i < count; ++i) write_logits(n, first + i, h, tile.data() + i * pass_.key_width);
      if (call_.pools(h)) pool(keys, n, first, count, h, tile);
    }
  }

  /// Adds base_attn and the head's bias.
  void write_logits(Index n, Index i, Index h, Scalar* row) const {
    const auto& strides = call_.base_attn.entries.strides;
    call_.base_attn.visit_batch(n, [&](const auto* first) {
      const auto* from = first + i * strides[0] + h * strides[2];
      for (Index j = 0; j < pass_.keys; ++j) {
        const auto base = static_cast<Scalar>(widen(from[j * strides[1]]));
        row[j] = visible_or_hidden(!is_minus_infinity(base), row[j] + base);
      }
    });
    const auto& head_bias = call_.parameters.bias;
    const Scalar bias = head_bias ? (*head_bias)(h) : Scalar(0);
    Scalar* to = logits_.batch(n).data() + i * logits_.strides[0] + h * logits_.strides[2];
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
    pass_.multiply_by_keys(count, pass_.Hv, tile.data(), keys.v, keys.v_is_finite, out.data());
    const Index feature = (h - call_.additional_heads) * pass_.Hv;
    for (Index i = 0; i < count; ++i) {
      Scalar* to = pooled_.batch(n).data() + (first + i) * pooled_.strides[0] + feature * pooled_.strides[1];
      for (Index d = 0; d < pass_.Hv; ++d)
        to[d * pooled_.strides[1]] = parts.data()[i] * out.data()[i * pass_.value_width + d];
    }
  }

  Pass pass_;
  const RelativeAttentionViews<Scalar>& call_;
  TensorView<Scalar, 2> pooled_;
  TensorView<Scalar, 3> logits_;
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
    if (call.c2p) zeros(grad_key_table_, pass_.of_queries->positions(), parameters.table->outputs());
    if (call.p2c) zeros(grad_query_table_, pass_.of_keys->positions(), parameters.table->outputs());
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
    const auto of_table = [&](bool to_queries, const auto& scores, const std::vector<double>& gradient) {
      parameters.table->project_backward(to_queries, scores.first(), scores.positions(), gradient.data(), *grads.table,
                                         executor);
    };
    if (call_.c2p) of_table(false, *pass_.of_queries, grad_key_table_);
    if (call_.p2c) of_table(true, *pass_.of_keys, grad_query_table_);
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
          q_(max_queries * pass_.width),
          grad_q_(max_queries * pass_.width),
          packed_q_(packed_size<Scalar>(max_queries, pass_.H)),
          weights_(max_queries * pass_.key_width),
          grad_logits_(max_queries * pass_.key_width),
          k_(pass_.keys * pass_.width),
          grad_k_(pass_.keys * pass_.width),
          packed_k_(packed_size<Scalar>(pass_.keys, pass_.H)),
          grad_v_(pass_.keys * pass_.value_width),
          packed_v_(packed_size<Scalar>(pass_.Hv, pass_.keys)),
          grad_out_(max_queries * pass_.Hv),
          packed_grad_out_(packed_size<Scalar>(max_queries, pass_.Hv)) {}

    void run() {
      for (Index n = 0; n < call_.queries.batches(); ++n) {
        project_keys(n);
        for (Index first = 0; first < pass_.queries; first += max_queries)
          add_queries(n, first, (std::min)(max_queries, pass_.queries - first));
        if (call_.p2c)
          grad_key_scores_.score_backward(*pass_.of_keys, h_, k_.data(), pass_.width, pass_.keys, grad_k_.data(),
                                          to_.grad_query_table_.data());
        write(grad_k_, pass_.width, pass_.H, call_.heads, h_, n * pass_.keys, pass_.keys, Scalar(1), to_.grad_k_);
        if (call_.pools(h_))
          write(grad_v_, pass_.value_width, pass_.Hv, call_.pooled_heads(), h_ - call_.additional_heads, n * pass_.keys,
                pass_.keys, Scalar(1), to_.grad_v_);
      }
    }

   private:
    static constexpr Index max_queries = Pass::together;

    void project_keys(Index n) {
      if (call_.pools(h_)) {
        Workspace<Scalar> v(pass_.keys * pass_.value_width);
        pass_.project_values(n, h_, v.data());
        v_by_feature_ =
            pack(MatrixView<Scalar>{v.data(), 1, pass_.value_width}, pass_.Hv, pass_.keys, packed_v_.data());
        std::fill_n(grad_v_.data(), pass_.keys * pass_.value_width, Scalar(0));
      }
      pass_.project_keys(n, h_, k_.data());
      k_by_key_ = pack(MatrixView<Scalar>{k_.data(), pass_.width, 1}, pass_.keys, pass_.H, packed_k_.data());
      k_is_finite_ = !call_.hides() || all_finite(packed_k_.data(), packed_size<Scalar>(pass_.keys, pass_.H));
      std::fill_n(grad_k_.data(), pass_.keys * pass_.width, Scalar(0));
      if (call_.p2c) {
        grad_key_scores_.lay_out(pass_.ranges_of_keys[static_cast<std::size_t>(n)], pass_.keys);
        grad_key_scores_.set_zero();
      }
    }

    void add_queries(Index n, Index first, Index count) {
      find_gradient(n, first, count);
      const MatrixView<Scalar> grad_logits{grad_logits_.data(), pass_.key_width, 1};
      pass_.project_queries(n, first, count, h_, q_.data());
      std::fill_n(grad_q_.data(), count * pass_.width, Scalar(0));
      if (call_.c2c) {
        pass_.multiply_by_keys(count, pass_.H, grad_logits_.data(), k_by_key_, k_is_finite_, grad_q_.data());
        multiply_annihilating<Accumulate::add>(
            pass_.keys, pass_.H, count, grad_logits.transposed(),
            pack(MatrixView<Scalar>{q_.data(), pass_.width, 1}, count, pass_.H, packed_q_.data()), grad_k_.data(),
            pass_.width);
      }
      const auto reads = pass_.reads_of_queries(n, first, count);
      for (Index x = 0; x < call_.coordinates(); ++x) {
        const ScoreWindow<Scalar> window(reads.ranges[static_cast<std::size_t>(x)]);
        query_scores_.make_room(count * window.width);
        std::fill_n(query_scores_.data(), count * window.width, Scalar(0));
        const auto add_gradients = [&](std::size_t block, Index i, Index key, Index of_block, const auto* index) {
          std::array<Scalar, static_cast<std::size_t>(max_queries)> grad_terms;
          std::copy_n(grad_logits_.data() + i * pass_.key_width + key, of_block, grad_terms.data());
          pass_.hide(reads, i, key, of_block, grad_terms.data());
          const ScoreRows<Scalar> of_query{query_scores_.data() + i * window.width, 0, window.begin};
          if (call_.c2p) of_query.scatter(index, of_block, grad_terms.data());
          if (call_.p2c) grad_key_scores_.rows()[block].scatter(index, of_block, grad_terms.data());
        };
        pass_.for_each_block(reads, x, count, grad_key_scores_, add_gradients);
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
      double bias = 0;
      for (Index i = 0; i < count; ++i) {
        Scalar* row = grad_logits_.data() + i * pass_.key_width;
        if (gradients_.grad_logits)
          for_each_logit(*gradients_.grad_logits, n, first + i, [&](Index j, Scalar given) { row[j] += given; });
        if (gradients_.grad_base)
          for_each_logit(*gradients_.grad_base, n, first + i, [&](Index j, Scalar& total) { total = row[j]; });
        for (Index j = 0; j < pass_.keys; ++j) bias += static_cast<double>(row[j]);
      }
      to_.grad_head_bias_[static_cast<std::size_t>(h_)] += bias;
    }

    void through_softmax(Index n, Index first, Index count) {
      using Values = Eigen::Map<Eigen::ArrayX<Scalar>>;
      const TensorView<const Scalar, 2>& pooled = *gradients_.grad_pooled;
      const Index feature = (h_ - call_.additional_heads) * pass_.Hv;
      const Scalar* from = pooled.batch(n).data() + first * pooled.strides[0] + feature * pooled.strides[1];
      for (Index i = 0; i < count; ++i)
        for (Index d = 0; d < pass_.Hv; ++d)
          grad_out_.data()[i * pass_.Hv + d] = from[i * pooled.strides[0] + d * pooled.strides[1]];
      const MatrixView<Scalar> grad_out{grad_out_.data(), pass_.Hv, 1};
      multiply<Accumulate::overwrite>(count, pass_.keys, pass_.Hv, grad_out, v_by_feature_, grad_logits_.data(),
                                      pass_.key_width);

      for (Index i = 0; i < count; ++i) {
        Scalar* row = weights_.data() + i * pass_.key_width;
        for_each_logit(*gradients_.logits, n, first + i, [&](Index j, Scalar logit) { row[j] = logit; });
        Values weights(row, pass_.key_width), grad(grad_logits_.data() + i * pass_.key_width, pass_.key_width);
        const Scalar part = pass_.weigh(n, first + i, h_, row);
        weights *= part;
        pass_.drop(n, first + i, h_, grad.data());
        const auto leave_out_hidden = [&] {
          if (call_.hides()) grad = (weights == Scalar(0)).select(Scalar(0), grad);
        };
        leave_out_hidden();
        double mean = 0;
        pass_.for_each_key_block([&](Index first_key, Index keys) {
          mean += static_cast<double>((weights.segment(first_key, keys) * grad.segment(first_key, keys)).sum());
        });
        grad = weights * (grad - static_cast<Scalar>(mean));
        leave_out_hidden();
        pass_.for_each_masked(n, first + i, h_, [&](Index j) { grad[j] = 0; });
        pass_.drop(n, first + i, h_, row);
      }
      multiply_annihilating<Accumulate::add>(
          pass_.keys, pass_.Hv, count, MatrixView<Scalar>{weights_.data(), 1, pass_.key_width},
          pack(grad_out, count, pass_.Hv, packed_grad_out_.data()), grad_v_.data(), pass_.value_width);
    }

    /// Calls `visit(j, entry)` for the keys of a query.
    template <class S, class Visit>
    void for_each_logit(const TensorView<S, 3>& logits, Index n, Index i, const Visit& visit) const {
      S* entry = logits.batch(n).data() + i * logits.strides[0] + h_ * logits.strides[2];
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
    Workspace<Scalar> query_scores_;     // gradients, of a block of queries
    KeyScores<Scalar> grad_key_scores_;  // of all keys
    PackedMatrix<Scalar> k_by_key_{}, v_by_feature_{};
    bool k_is_finite_ = true;
  };

  Pass pass_;
  const RelativeAttentionViews<Scalar>& call_;
  const RelativeAttentionGradientViews<Scalar>& gradients_;
  std::vector<Scalar> grad_q_, grad_k_, grad_v_;           // (B·L, outputs), of what was projected
  std::vector<double> grad_key_table_, grad_query_table_;  // (positions read, outputs)
  std::vector<double> grad_head_bias_;
};

}  // namespace posbias::detail
