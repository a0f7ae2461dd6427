// SPDX-License-Identifier: MIT
/// \file
/// The positional terms of disentangled attention (DeBERTa; He et al., 2020, arXiv 2006.03654), for any attention.
///
///     bias(h, i, j) = scale · ( q(i, h)·K_h[index]  +  k(j, h)·Q_h[index] )         K, Q = projected table
///     index = pos_k(j) - pos_q(i) + n_positions / 2, held within [0, n_positions)
///
/// The first term is content to position (c2p), the second position to content (p2c); attention itself has content to
/// content. By default `scale` is attention's own, 1 / sqrt(H). DeBERTa divides all three terms by sqrt(3·H): give that to
/// both, attention's options and this module's.
///
/// Shapes: q (B, *, L1, NH, H), k (B, *, L2, NHk, H) with NHk = NH or a divisor of it, mask (B, *, NH, L1, L2). Cost: the
/// projections of the table; then for each term at most about as many multiplications as q·kᵀ, and fewer where relative
/// positions are beyond the table. Workspace O((L1+L2)·NH·H). Integers
/// only. Backward runs on the calling thread where heads of keys are shared by heads of queries.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/bias/content_bias.hpp"
#include "posbias/core/attention_terms.hpp"
#include "posbias/core/standard.hpp"
#include "posbias/kernel/bucketing.hpp"
#include "posbias/kernel/relative_position_table.hpp"
#include "posbias/tile/projected_bias.hpp"

namespace posbias {

/// Which difference of positions picks the row of the table.
enum class DisentangledIndex {
  key_minus_query,  ///< pos_k - pos_q in both terms, as edspdf
  query_minus_key,  ///< pos_q - pos_k in both terms, as DeBERTa's code
  paper,            ///< pos_q - pos_k in c2p, pos_k - pos_q in p2c: δ(i, j) and δ(j, i)
};

/// Options of `DisentangledBias`.
struct DisentangledBiasOptions {
  Index n_heads = 0;                                             ///< heads, NH; required
  Index head_dim = 0;                                            ///< features per head, H; required
  Index n_positions = 0;                                         ///< rows of the table; required
  Index position_size = 0;                                       ///< features of the table; default NH·H
  bool same_positional_key_query_proj = false;                   ///< positions are projected to queries as to keys
  AttentionTerms mode = {p2c, c2p};                              ///< the terms
  std::optional<double> scale{};                                 ///< of both terms; default 1 / sqrt(H)
  DisentangledIndex index = DisentangledIndex::key_minus_query;  ///< what picks the row of the table
};

namespace detail {

/// One term, as `ProjectedBias` wants it: the table's projection at given relative positions.
template <class Scalar_>
class DisentangledTerm {
 public:
  using Scalar = Scalar_;
  using Gradients = RelativePositionTable<Scalar>;

  /// Gradient of the projected table (positions, dim), in double; nothing before there is any.
  struct ProjectionSums {
    std::vector<double> table;
  };

  /// Rows are picked by `sign` times the relative positions that are given.
  DisentangledTerm(const RelativePositionTable<Scalar>& table, bool to_queries, Index n_heads, Scalar scale,
                   std::int64_t sign, const Executor& executor);

  [[nodiscard]] Index n_heads() const { return n_heads_; }
  [[nodiscard]] Index head_dim() const { return dim() / n_heads_; }
  [[nodiscard]] Scalar scale() const { return scale_; }
  [[nodiscard]] std::vector<Scalar> offsets() const { return std::vector<Scalar>(static_cast<std::size_t>(dim())); }

  /// Those of the table.
  [[nodiscard]] std::pair<double, double> clamp_range() const {
    const Index middle = table_->positions() / 2;
    const auto first = static_cast<double>(-middle), last = static_cast<double>(table_->positions() - 1 - middle);
    return sign_ > 0 ? std::pair(first, last) : std::pair(-last, -first);
  }

  void project(std::span<const double> relative, Scalar* r, Index stride, const Executor& executor) const {
    for_each_entry(relative, executor, [&](Index row, Index d, Index c) {
      r[d * stride + c] = projected_[static_cast<std::size_t>(row * dim() + d)];
    });
  }

  /// Adjoint of `project`.
  void project_backward(std::span<const double> relative, const double* grad_r, Index stride, ProjectionSums& sums,
                        const Executor& executor) const {
    sums.table.resize(projected_.size());
    for_each_entry(relative, executor, [&](Index row, Index d, Index c) {
      sums.table[static_cast<std::size_t>(row * dim() + d)] += grad_r[d * stride + c];
    });
  }

  void finish(const ProjectionSums& sums, const std::vector<double>& /*grad_offsets*/, Gradients& grads,
              const Executor& executor) const {
    if (!sums.table.empty())
      table_->project_backward(to_queries_, 0, table_->positions(), sums.table.data(), grads, executor);
  }

 private:
  /// Calls `visit(row of the table, feature, relative position)`, head by head, for a cache line of positions at a time.
  template <class Visit>
  void for_each_entry(std::span<const double> relative, const Executor& executor, const Visit& visit) const {
    constexpr std::size_t together = 16;
    executor.parallel_for(n_heads_, [&](Index h) {
      for (std::size_t first = 0; first < relative.size(); first += together) {
        const auto some = relative.subspan(first, (std::min)(together, relative.size() - first));
        std::array<Index, together> rows;
        std::transform(some.begin(), some.end(), rows.begin(), [&](double position) { return bucket(position); });
        for (Index d = h * head_dim(); d < (h + 1) * head_dim(); ++d)
          for (std::size_t c = 0; c < some.size(); ++c) visit(rows[c], d, static_cast<Index>(first + c));
      }
    });
  }

  [[nodiscard]] Index dim() const { return table_->outputs(); }
  [[nodiscard]] Index bucket(double relative) const {
    constexpr double limit = 0x1p62;  // beyond any table, and an integer that can be negated
    return buckets_(sign_ * static_cast<std::int64_t>(std::clamp(relative, -limit, limit)));
  }

  const RelativePositionTable<Scalar>* table_;
  bool to_queries_;
  Index n_heads_;
  Scalar scale_;
  std::int64_t sign_;
  ClampedBuckets buckets_;
  std::vector<Scalar> projected_;  // (positions, dim)
};

}  // namespace detail

/// The terms of a `DisentangledBias` at given positions, ready to add themselves to tiles of logits in any order and from
/// any thread. Refers to the module, to q and to k, which must outlive it.
template <class Scalar_>
class DisentangledTerm {
  using Term = detail::DisentangledTerm<Scalar_>;
  using PreparedTerm = ProjectedBias<Term>;

 public:
  using Scalar = Scalar_;                                                    ///< of its tensors and parameters
  using Gradients = RelativePositionTable<Scalar>;                           ///< of the parameters
  using Content = detail::TensorView<const Scalar, 3>;                       ///< queries or keys (L, heads, H)
  static constexpr detail::TileWidth tile_width = PreparedTerm::tile_width;  ///< which tiles it is quick on

  /// What the gradients of tiles add up to, for the terms that there are.
  struct Accumulator {
    std::optional<typename PreparedTerm::Accumulator> c2p,  ///< of content to position, if there is that term
        p2c;                                                ///< of position to content, if there is that term
  };

  /// Projects the rows of the table that are read, in tasks of the executor.
  DisentangledTerm(const RelativePositionTable<Scalar>& table, const DisentangledBiasOptions& options, Scalar scale,
                   const Content& q, const Content& k, const CheckedPairPositions& at, const Executor& executor);

  /// Whether tiles of different heads may be accumulated at the same time.
  [[nodiscard]] bool heads_are_independent() const;
  /// Whether the gradient of tiles comes to anything: to those of q and k, always.
  [[nodiscard]] bool accumulates() const { return true; }

  /// Adds the terms to a tile. Queries and keys without a position get none.
  void add_to(const LogitTile<Scalar>& tile) const;

  /// grad_q (B, *, L1, NH, H) and grad_k (B, *, L2, NHk, H) are where `accumulate` adds the gradients of content.
  template <WritableTensorOf<Scalar, 3> GQ, WritableTensorOf<Scalar, 3> GK>
  [[nodiscard]] Accumulator accumulator(GQ&& grad_q, GK&& grad_k) const {
    return accumulator(detail::view<3>(grad_q), detail::view<3>(grad_k));
  }
  /// The same, of views.
  [[nodiscard]] Accumulator accumulator(const detail::TensorView<Scalar, 3>& grad_q,
                                        const detail::TensorView<Scalar, 3>& grad_k) const;

  /// Adjoint of `add_to`. Tiles that share a head must come one after another, unless `heads_are_independent()`.
  void accumulate(const detail::StoredTile<Scalar>& tile, Accumulator& to) const;

  /// Adds what was accumulated to the parameters' gradients.
  void finish(Accumulator& from, Gradients& grads) const;

 private:
  std::unique_ptr<const Term> keys_, queries_;  // the terms refer to these
  std::optional<PreparedTerm> c2p_, p2c_;
};

/// Adds the positional terms of disentangled attention to logits (hook `mod_mask`). Parameters, named and shaped as
/// edspdf's: "position_embedding" (n_positions, position_size), starting normal; "position_key_proj.weight" and
/// "position_query_proj.weight" (1, position_size, NH·H), uniform in ±1/sqrt(position_size), and their ".bias" (1, NH·H), 0.
template <class Scalar_>
class DisentangledBias : public ContentBias<DisentangledBias<Scalar_>, Scalar_, RelativePositionTable<Scalar_>> {
  using Base = ContentBias<DisentangledBias, Scalar_, RelativePositionTable<Scalar_>>;

 public:
  using Scalar = Scalar_;                                       ///< of its tensors and parameters
  using Options = DisentangledBiasOptions;                      ///< what it is made from
  using Prepared = DisentangledTerm<Scalar>;                    ///< what adds itself to tiles
  static constexpr std::string_view name = "DisentangledBias",  ///< in messages
      head_dim_option = "head_dim";                             ///< what sets the features of a head, in messages
  static constexpr bool integers_only = true,                   ///< positions must be integers
      depends_on_keys = true;                                   ///< k has a gradient

  /// Throws OptionError.
  explicit DisentangledBias(const Options& options, std::uint64_t seed = 0);

  /// With the default in the place of a position_size that was 0.
  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] Index n_heads() const { return options_.n_heads; }    ///< NH
  [[nodiscard]] Index head_dim() const { return options_.head_dim; }  ///< H

  /// What `mod_mask` adds. Refers to this module, to q and to k.
  [[nodiscard]] Prepared prepared(const typename Base::ConstView& q, const typename Base::ConstView& k,
                                  const CheckedPairPositions& at, const Executor& executor) const {
    return Prepared(this->parameters_, options_, scale_, q, k, at, executor);
  }

 private:
  Options options_;
  Scalar scale_;
};

template <class Scalar>
detail::DisentangledTerm<Scalar>::DisentangledTerm(const RelativePositionTable<Scalar>& table, bool to_queries,
                                                   Index n_heads, Scalar scale, std::int64_t sign,
                                                   const Executor& executor)
    : table_(&table),
      to_queries_(to_queries),
      n_heads_(n_heads),
      scale_(scale),
      sign_(sign),
      buckets_("DisentangledBias", table.positions()),
      projected_(static_cast<std::size_t>(table.positions() * table.outputs())) {
  table.project(to_queries, 0, table.positions(), projected_.data(), executor);
}

template <class Scalar>
DisentangledTerm<Scalar>::DisentangledTerm(const RelativePositionTable<Scalar>& table,
                                           const DisentangledBiasOptions& options, Scalar scale, const Content& q,
                                           const Content& k, const CheckedPairPositions& at, const Executor& executor) {
  const bool by_query_minus_key = options.index == DisentangledIndex::query_minus_key;
  const bool paper = options.index == DisentangledIndex::paper;
  const auto term = [&](bool to_queries, std::int64_t sign) {
    return std::make_unique<const Term>(table, to_queries, options.n_heads, scale, sign, executor);
  };
  if (options.mode.contains(c2p)) {
    keys_ = term(false, by_query_minus_key || paper ? -1 : 1);
    c2p_.emplace(*keys_, q, at, executor);
  }
  if (options.mode.contains(p2c)) {
    queries_ = term(true, by_query_minus_key ? 1 : -1);  // positions are swapped
    p2c_.emplace(*queries_, k, CheckedPairPositions(at.k, at.q), executor);
  }
}

template <class Scalar>
bool DisentangledTerm<Scalar>::heads_are_independent() const {
  return (!c2p_ || c2p_->heads_are_independent()) && (!p2c_ || p2c_->heads_are_independent());
}

template <class Scalar>
void DisentangledTerm<Scalar>::add_to(const LogitTile<Scalar>& tile) const {
  if (c2p_) c2p_->add_to(tile);
  if (p2c_) p2c_->add_to(tile.transposed());
}

template <class Scalar>
auto DisentangledTerm<Scalar>::accumulator(const detail::TensorView<Scalar, 3>& grad_q,
                                           const detail::TensorView<Scalar, 3>& grad_k) const -> Accumulator {
  Accumulator result;
  if (c2p_) result.c2p.emplace(c2p_->accumulator(grad_q, grad_k));
  if (p2c_) result.p2c.emplace(p2c_->accumulator(grad_k, grad_q));
  return result;
}

template <class Scalar>
void DisentangledTerm<Scalar>::accumulate(const detail::StoredTile<Scalar>& tile, Accumulator& to) const {
  if (c2p_) c2p_->accumulate(tile, *to.c2p);
  if (p2c_) p2c_->accumulate(tile.transposed(), *to.p2c);
}

template <class Scalar>
void DisentangledTerm<Scalar>::finish(Accumulator& from, Gradients& grads) const {
  if (c2p_) c2p_->finish(*from.c2p, grads);
  if (p2c_) p2c_->finish(*from.p2c, grads);
}

template <class Scalar>
DisentangledBias<Scalar>::DisentangledBias(const Options& options, std::uint64_t seed) : options_(options) {
  constexpr Index most = (std::numeric_limits<std::int32_t>::max)();  // so that no product of two overflows
  for (const auto& [option, value] : {std::pair("n_heads", options.n_heads), std::pair("head_dim", options.head_dim),
                                      std::pair("n_positions", options.n_positions)})
    if (value < 1 || value > most)
      detail::fail<OptionError>(name, ": ", std::string_view(option), " = ", value,
                                "; it is required, and must be positive and at most ", most);
  const Index dim = options.n_heads * options.head_dim;
  if (options.position_size < 0)
    detail::fail<OptionError>(name, ": position_size = ", options.position_size, "; it must not be negative");
  if (options_.position_size == 0) options_.position_size = dim;
  if (options.mode.contains(c2c))
    detail::fail<OptionError>(name, ": mode has c2c; that is what attention computes itself");
  if (!options.mode.contains(c2p) && !options.mode.contains(p2c)) detail::fail<OptionError>(name, ": mode has no term");
  scale_ = static_cast<Scalar>(options.scale.value_or(1 / std::sqrt(static_cast<double>(options.head_dim))));
  if (!detail::is_finite(static_cast<double>(scale_)))
    detail::fail<OptionError>(name, ": scale = ", *options.scale, "; it must be finite, also as the tensors' scalar");
  detail::Random random(seed);
  this->parameters_.start(
      {options_.n_positions, options_.position_size, 1, dim, options_.same_positional_key_query_proj}, random);
}

}  // namespace posbias
