// SPDX-License-Identifier: MIT
/// \file
/// Forward of RelativeAttention.
///
/// Some batch entries are taken at a time, the heads of their keys first, then blocks of queries with all heads, because
/// the heads of a logit are what is next to each other in memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "posbias/attention/relative_attention_pass.hpp"
#include "posbias/kernel/workspace.hpp"

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
    constexpr Index most_values = Index{1} << 22;  // of keys at a time
    const Index batches = call_.queries.batches(), heads = call_.heads;
    const Index blocks = (pass_.queries + together - 1) / together;
    const Index entries =
        std::clamp<Index>(most_values / std::max<Index>(heads * most_of_head(), 1), 1, std::max<Index>(batches, 1));
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
    Panels<Scalar> k_by_feature, v;  // (H, keys), (keys, Hv)
    bool v_is_finite = true;
    KeyScores<Scalar> scores;
  };

  /// The most values of a head of keys.
  [[nodiscard]] Index most_of_head() const {
    const Index scores = call_.p2c ? call_.coordinates() * whole_lanes<Scalar>(call_.parameters.table->positions()) : 0;
    return pass_.key_width * pass_.H + pass_.keys * (pass_.value_width + scores);
  }

  void fill(KeyHead& head, Index n, Index h) const {
    Workspace<Scalar> rows(pass_.keys * (std::max)(pass_.width, pass_.value_width));
    pass_.project_keys(n, h, rows.data());
    if (call_.c2c) {
      head.k_memory.make_room(packed_size<Scalar>(pass_.H, pass_.keys));
      head.k_by_feature = pack(Factor<Scalar>{rows.data(), 1, pass_.width}, pass_.H, pass_.keys, head.k_memory.data());
    }
    if (call_.p2c) {
      head.scores.lay_out(pass_.ranges_of_keys[at(n)], pass_.keys);
      head.scores.score(*pass_.of_keys, h, rows.data(), pass_.width, pass_.keys);
    }
    if (!call_.pools(h)) return;
    pass_.project_values(n, h, rows.data());
    head.v_memory.make_room(packed_size<Scalar>(pass_.keys, pass_.Hv));
    head.v = pack(Factor<Scalar>{rows.data(), pass_.value_width, 1}, pass_.keys, pass_.Hv, head.v_memory.data());
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
        multiply<Sum::fresh>(count, pass_.keys, pass_.H, Factor<Scalar>{q.data(), pass_.width, 1}, keys.k_by_feature,
                             tile.data(), pass_.key_width);
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

}  // namespace posbias::detail
