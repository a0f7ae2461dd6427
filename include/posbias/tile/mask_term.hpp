// SPDX-License-Identifier: MIT
/// \file
/// A mask that a caller brings along, added to logits tile by tile.
#pragma once

#include <Eigen/Core>
#include <string_view>
#include <type_traits>

#include "posbias/core/checks.hpp"
#include "posbias/core/error.hpp"
#include "posbias/core/infinity.hpp"
#include "posbias/core/optional_tensor.hpp"
#include "posbias/core/view.hpp"
#include "posbias/tile/logit_tile.hpp"

namespace posbias {

/// A tensor of numbers to add to logits, or of bools (true: may attend), that broadcasts to (B, *, NH, L1, L2): its
/// dimensions are the last of these, and each but L2 may be 1. What is beyond the range of the logits' scalar counts as
/// infinite. None: every query may attend to every key.
using AttentionMask = OptionalTensor<bool, float, double, Eigen::bfloat16, Eigen::half>;

/// A mask checked against the attention it belongs to.
class MaskTerm {
 public:
  /// Throws ShapeError, naming `function`.
  MaskTerm(std::string_view function, const AttentionMask& mask, const detail::AttentionShape& shape) {
    entries_.entries.leading = shape.leading;
    entries_.entries.shape = {shape.heads, shape.queries, shape.keys};
    auto whole = mask.view();
    while (whole.entries.leading.rank < shape.leading.rank + 3) detail::insert_dimension(whole.entries, 0);
    if (!detail::broadcast(whole, {true, true, false}, entries_))
      detail::fail<ShapeError>("posbias::", function, ": mask has shape ", mask.view().entries.leading.shape(),
                               "; q and k need (B, *, NH, L1, L2) with B, * = ", shape.leading.shape(),
                               ", NH = ", shape.heads, ", L1 = ", shape.queries, ", L2 = ", shape.keys,
                               ", of which all but L2 may be 1 or missing from the left");
  }

  /// Adds the mask to a tile of logits, which are -inf where it hides a key, whatever they were; returns whether it hides
  /// any.
  template <class Scalar>
  bool add_to(const LogitTile<Scalar>& tile) const {
    bool hides = false;
    entries_.visit_batch(tile.batch, [&](const auto* entries) { hides = add(entries, tile); });
    return hides;
  }

 private:
  template <class Entry, class Scalar>
  bool add(const Entry* entries, const LogitTile<Scalar>& tile) const {
    const auto [head_stride, query_stride, key_stride] = entries_.entries.strides;
    const Entry* first = entries + tile.head * head_stride + tile.query * query_stride + tile.key * key_stride;
    bool hides = false;
    for (Index h = 0; h < tile.heads; ++h)
      for (Index i = 0; i < tile.queries; ++i) {
        const Entry* row = first + h * head_stride + i * query_stride;
        Scalar* logits = tile.row(h, i);
        for (Index j = 0; j < tile.keys; ++j) {
          Scalar& logit = logits[j * tile.key_stride];
          bool visible = true;
          if constexpr (std::is_same_v<Entry, bool>) {
            visible = row[j * key_stride];
          } else {
            const auto number = static_cast<Scalar>(detail::widen(row[j * key_stride]));
            visible = !detail::is_minus_infinity(number);
            logit += number;
          }
          logit = detail::visible_or_hidden(visible, logit);
          hides |= !visible;
        }
      }
    return hides;
  }

  detail::OptionalView<3, bool, float, double, Eigen::bfloat16, Eigen::half> entries_;
};

}  // namespace posbias
