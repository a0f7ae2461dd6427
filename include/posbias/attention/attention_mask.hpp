// SPDX-License-Identifier: MIT
/// \file
/// A mask that a caller brings along, added to logits tile by tile.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <limits>
#include <span>
#include <string_view>
#include <type_traits>
#include <variant>

#include "posbias/bias/logit_tile.hpp"
#include "posbias/core/error.hpp"
#include "posbias/core/tensor_view.hpp"

namespace posbias {

/// A tensor that can be a mask.
template <class T>
concept MaskTensor = TensorOf<T, bool, 1> || TensorOf<T, float, 1> || TensorOf<T, double, 1>;

/// A tensor of numbers to add to logits, or of bools (true: may attend), that broadcasts to (B, *, NH, L1, L2): its
/// dimensions are the last of these, and each but L2 may be 1. What is beyond the range of the logits' scalar counts as
/// infinite. Refers to the tensor, which must outlive it.
class AttentionMask {
 public:
  /// None: every query may attend to every key.
  AttentionMask() = default;

  template <MaskTensor T>
  AttentionMask(const T& tensor) : entries_(detail::view<0>(tensor)) {}
  template <class S, int Rank, int Layout, class I>
  AttentionMask(const Eigen::Tensor<S, Rank, Layout, I>&& temporary) = delete;

  /// Where its entries are; nowhere, if there is no mask.
  [[nodiscard]] std::span<const std::byte> memory() const {
    const auto bytes = []<class Entries>(const Entries& entries) -> std::span<const std::byte> {
      if constexpr (std::is_same_v<Entries, std::monostate>)
        return {};
      else
        return std::as_bytes(std::span(entries.data, static_cast<std::size_t>(entries.batches())));
    };
    return std::visit(bytes, entries_);
  }

 private:
  friend class BroadcastMask;

  std::variant<std::monostate, detail::TensorView<const bool, 0>, detail::TensorView<const float, 0>,
               detail::TensorView<const double, 0>>
      entries_;
};

/// A mask checked against the attention it belongs to.
class BroadcastMask {
 public:
  /// Throws ShapeError, naming `function`.
  BroadcastMask(std::string_view function, const AttentionMask& mask, const detail::AttentionShape& shape) {
    std::visit([&](const auto& entries) { adopt(function, entries, shape); }, mask.entries_);
  }

  /// Adds the mask to a tile of logits.
  template <class Scalar>
  void add_to(const LogitTile<Scalar>& tile) const {
    std::visit([&](const auto& entries) { add(entries, tile); }, entries_);
  }

 private:
  void adopt(std::string_view, std::monostate, const detail::AttentionShape&) {}

  template <class Entry>
  void adopt(std::string_view function, const detail::TensorView<Entry, 0>& mask, const detail::AttentionShape& shape) {
    const detail::Leading& given = mask.leading;
    detail::TensorView<Entry, 3> entries;
    entries.data = mask.data;
    entries.leading = shape.leading;
    entries.shape = {shape.heads, shape.queries, shape.keys};
    const std::size_t rank = shape.leading.rank + 3;
    const auto reject = [&] {
      detail::fail<ShapeError>("posbias::", function, ": mask has shape ", given.shape(),
                               "; q and k need (B, *, NH, L1, L2) with B, * = ", shape.leading.shape(),
                               ", NH = ", shape.heads, ", L1 = ", shape.queries, ", L2 = ", shape.keys,
                               ", of which all but L2 may be 1 or missing from the left");
    };
    if (given.rank > rank) reject();
    for (std::size_t d = 0; d < given.rank; ++d) {
      const std::size_t place = rank - given.rank + d;
      const bool is_leading = place < shape.leading.rank;
      const Index size = is_leading ? shape.leading.sizes[place] : entries.shape[place - shape.leading.rank];
      const bool broadcast = given.sizes[d] == 1 && place + 1 < rank;
      if (given.sizes[d] != size && !broadcast) reject();
      const Index stride = given.sizes[d] == size ? mask.leading_strides[d] : 0;
      (is_leading ? entries.leading_strides[place] : entries.strides[place - shape.leading.rank]) = stride;
    }
    entries_ = entries;
  }

  template <class Scalar>
  static void add(std::monostate, const LogitTile<Scalar>&) {}

  template <class Entry, class Scalar>
  static void add(const detail::TensorView<Entry, 3>& entries, const LogitTile<Scalar>& tile) {
    const auto [head_stride, query_stride, key_stride] = entries.strides;
    const Entry* first =
        entries.batch(tile.batch) + tile.head * head_stride + tile.query * query_stride + tile.key * key_stride;
    for (Index h = 0; h < tile.heads; ++h)
      for (Index i = 0; i < tile.queries; ++i) {
        const Entry* row = first + h * head_stride + i * query_stride;
        Scalar* logits = tile.row(h, i);
        for (Index j = 0; j < tile.keys; ++j) {
          if constexpr (std::is_same_v<Entry, const bool>)
            logits[j * tile.key_stride] =
                row[j * key_stride] ? logits[j * tile.key_stride] : -std::numeric_limits<Scalar>::infinity();
          else
            logits[j * tile.key_stride] += static_cast<Scalar>(row[j * key_stride]);
        }
      }
  }

  std::variant<std::monostate, detail::TensorView<const bool, 3>, detail::TensorView<const float, 3>,
               detail::TensorView<const double, 3>>
      entries_;
};

}  // namespace posbias
