// SPDX-License-Identifier: MIT
/// \file
/// A module's addend to tiles of logits, behind virtual functions: attention is compiled once per scalar, not once per
/// module. A call per tile costs nothing beside its products.
#pragma once

#include "posbias/core/infinity.hpp"
#include "posbias/tile/logit_tile.hpp"

namespace posbias::detail {

/// Adds itself to tiles of logits, in any order and from any thread.
template <class Scalar>
class LogitTerm {
 public:
  LogitTerm() = default;
  LogitTerm(const LogitTerm&) = delete;
  LogitTerm& operator=(const LogitTerm&) = delete;

  virtual void add_to(const LogitTile<Scalar>& tile) const = 0;
  /// Whether it may be -inf, which hides keys; `hide` then makes -inf the logits where it is, whatever they were.
  [[nodiscard]] virtual bool hides() const = 0;
  virtual void hide(const LogitTile<Scalar>& tile) const = 0;

 protected:
  ~LogitTerm() = default;
};

/// Sums the gradients of tiles up. Tiles come one after another, unless they are of different heads and
/// `heads_are_independent()`.
template <class Scalar>
class LogitAdjoint {
 public:
  LogitAdjoint() = default;
  LogitAdjoint(const LogitAdjoint&) = delete;
  LogitAdjoint& operator=(const LogitAdjoint&) = delete;

  /// Whether the gradients of tiles come to anything; if not they may be left out.
  [[nodiscard]] virtual bool accumulates() const = 0;
  [[nodiscard]] virtual bool heads_are_independent() const = 0;
  virtual void accumulate(const LogitTile<const Scalar>& gradient) = 0;

 protected:
  ~LogitAdjoint() = default;
};

/// The term of a prepared bias, to which it refers (see `Module::prepare`).
template <class Scalar, class Prepared>
class PreparedTerm final : public LogitTerm<Scalar> {
 public:
  explicit PreparedTerm(const Prepared& prepared) : prepared_(prepared) {}

  void add_to(const LogitTile<Scalar>& tile) const override { prepared_.add_to(tile); }
  [[nodiscard]] bool hides() const override { return hides_keys(prepared_); }
  void hide(const LogitTile<Scalar>& tile) const override { hide_keys(prepared_, tile); }

 private:
  const Prepared& prepared_;
};

/// Its adjoint, to sums of `Prepared::accumulator`.
template <class Scalar, class Prepared, class Sums>
class PreparedAdjoint final : public LogitAdjoint<Scalar> {
 public:
  PreparedAdjoint(const Prepared& prepared, Sums& sums) : prepared_(prepared), sums_(sums) {}

  [[nodiscard]] bool accumulates() const override { return prepared_.accumulates(); }
  [[nodiscard]] bool heads_are_independent() const override { return prepared_.heads_are_independent(); }
  void accumulate(const LogitTile<const Scalar>& gradient) override { prepared_.accumulate(gradient, sums_); }

 private:
  const Prepared& prepared_;
  Sums& sums_;
};

}  // namespace posbias::detail
