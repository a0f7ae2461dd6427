// SPDX-License-Identifier: MIT
/// \file
/// Which tokens are to be encoded, as a caller says it and checked against a tensor.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/core/optional_tensor.hpp"
#include "posbias/core/tensor.hpp"
#include "posbias/core/view.hpp"

namespace posbias {

/// A boolean per token: an Eigen tensor of rank 1 (for the whole batch) or (B, *, L). Right-aligned; tokens to the
/// left of the first flag count as true. A copyable value that owns its flags.
class TokenMask {
 public:
  /// "Not given": all true.
  TokenMask() = default;

  /// Explicit flags: rank 1 for the whole batch, or (B, *, L), each of B, * possibly 1 for all.
  template <TensorOf<bool, 1> T>
  TokenMask(const T& tensor) : given_(true), values_(static_cast<std::size_t>(tensor.size())) {
    const auto tokens = detail::view<1>(tensor);
    leading_ = tokens.leading;
    count_ = tokens.shape[0];
    detail::for_each_row_major(tensor, [&](Index i, bool value) { values_[static_cast<std::size_t>(i)] = value; });
  }

  /// False for a default-constructed value.
  [[nodiscard]] bool given() const { return given_; }

 private:
  friend class CheckedTokenMask;
  bool given_ = false;
  Index count_ = 0;
  detail::BatchShape leading_;
  std::vector<unsigned char> values_;
};

/// A mask checked against the tensor it belongs to; refers to the `TokenMask` it was made from.
class CheckedTokenMask {
 public:
  /// Throws ShapeError.
  CheckedTokenMask(const detail::Hook& hook, const TokenMask& flags, const detail::BatchShape& leading, Index tokens)
      : flags_(&flags), first_(tokens - flags.count_) {
    if (flags.count_ > tokens)
      detail::fail<ShapeError>(hook, ": mask has ", flags.count_, " flags for ", tokens, " tokens");
    if (all()) return;
    std::optional<std::vector<Index>> rows = detail::broadcast_rows(flags.leading_, leading);
    if (!rows)
      detail::fail<ShapeError>(hook, ": mask has leading dimensions ", flags.leading_.shape(), "; x has ",
                               leading.shape());
    rows_ = std::move(*rows);
  }

  /// True if every flag is, because none were given.
  [[nodiscard]] bool all() const { return !flags_->given_; }

  /// The flag of a token of batch entry n; true where there is none.
  [[nodiscard]] bool operator()(Index n, Index token) const {
    if (token < first_ || all()) return true;
    const Index row = rows_[static_cast<std::size_t>(n)];
    return flags_->values_[static_cast<std::size_t>(row * flags_->count_ + token - first_)] != 0;
  }

 private:
  const TokenMask* flags_;
  Index first_;
  std::vector<Index> rows_;  // of each batch entry
};

}  // namespace posbias
