// SPDX-License-Identifier: MIT
/// \file
/// Rows of sines and cosines for the tokens of a hook's call: computed in it, or looked up where they are precomputed.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"
#include "posbias/core/positions.hpp"
#include "posbias/core/standard.hpp"
#include "posbias/kernel/sin_cos.hpp"
#include "posbias/kernel/token_rows.hpp"

namespace posbias::detail {

/// The sinusoids of a module. A value; copies share what is precomputed.
template <class Scalar>
class CosSinCache {
 public:
  /// `divisor` is the one that calls will most likely have.
  CosSinCache(std::span<const double> frequencies, double divisor, SinusoidLayout layout)
      : maker_(std::make_shared<SinCos>(frequencies, divisor)), layout_(layout) {}

  [[nodiscard]] std::span<const double> frequencies() const { return maker_->frequencies(); }

  /// What makes them for this divisor.
  [[nodiscard]] std::shared_ptr<const SinCos> maker(double divisor) const {
    return divisor == maker_->divisor() ? maker_ : std::make_shared<SinCos>(frequencies(), divisor);
  }

  /// Makes the rows of positions 0 .. length - 1 ahead, for as long as this is the divisor. Throws OptionError, naming
  /// `module`.
  void reserve(std::string_view module, Index length, double divisor) {
    if (length < 0) fail<OptionError>(module, "::reserve: length = ", length, "; it must not be negative");
    std::vector<double> positions(static_cast<std::size_t>(length));
    std::iota(positions.begin(), positions.end(), 0.0);
    Table table{divisor, static_cast<double>(length), Eigen::ArrayX<Scalar>(length * width())};
    maker_ = maker(divisor);
    maker_->fill_rows(positions, layout_, table.rows.data());
    table_ = std::make_shared<Table>(std::move(table));
  }

  /// What finds the rows of a call's tokens, for several threads at once. Refers to these sinusoids.
  [[nodiscard]] auto in_call(double divisor) const {
    const Table* table = table_ && table_->divisor == divisor ? table_.get() : nullptr;
    return [this, table, maker = maker(divisor)](std::span<const double> positions, TokenRows<Scalar>& rows) {
      const auto reserved = [&](double position) {
        return position >= 0 && position < table->length && position == std::floor(position);
      };
      if (table != nullptr && std::ranges::all_of(positions, reserved)) {
        for (std::size_t token = 0; token < positions.size(); ++token)
          rows.refer(token, table->rows.data() + static_cast<Index>(positions[token]) * width());
      } else {
        maker->fill_rows(positions, layout_, rows.compute(positions.size(), width()));
      }
    };
  }

 private:
  struct Table {
    double divisor, length;
    Eigen::ArrayX<Scalar> rows;  // (length, width); aligned
  };

  [[nodiscard]] Index width() const { return 2 * std::ssize(frequencies()); }

  std::shared_ptr<const SinCos> maker_;
  SinusoidLayout layout_;
  std::shared_ptr<const Table> table_;
};

}  // namespace posbias::detail
