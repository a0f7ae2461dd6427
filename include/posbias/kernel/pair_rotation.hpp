// SPDX-License-Identifier: MIT
/// \file
/// Rotations of pairs of features by given sines and cosines. Features are of `Scalar`, or stored for it.
/// Heads are rotated inline, because constants of the conversions are then made once per block, not once per head.
#pragma once

#include "posbias/core/index.hpp"
#include "posbias/core/storage.hpp"

namespace posbias::detail {

/// What a feature becomes, given the other one of its pair: a·cos + b·(-sin), or b·cos + a·sin.
template <class Scalar>
Scalar rotated(Scalar own, Scalar cosine, Scalar partner, Scalar signed_sine) {
  return own * cosine + partner * signed_sine;
}

/// Rotates a pair.
template <class Scalar, class S>
void rotate_pair(Scalar sine, Scalar cosine, S& a, S& b) {
  const Scalar was_a = widen(a), was_b = widen(b);
  put_result(a, rotated(was_a, cosine, was_b, -sine));
  put_result(b, rotated(was_b, cosine, was_a, sine));
}

/// Rotates a head of features [a... b...], given its row [sines | cosines].
template <class Scalar, class S>
[[gnu::always_inline]] inline void rotate_half(const Scalar* __restrict row, Index pairs, S* __restrict as,
                                               S* __restrict bs) {
  for (Index i = 0; i < pairs; ++i) rotate_pair<Scalar>(row[i], row[pairs + i], as[i], bs[i]);
}

/// A row [s s | c c] as [c c c c | -s s -s s]: then heads of features [a b a b] only take a swap of neighbours.
template <class Scalar>
void duplicate_pairs(const Scalar* __restrict row, Index pairs, Scalar* __restrict duplicated) {
  Scalar* __restrict sines = duplicated + 2 * pairs;
  for (Index i = 0; i < pairs; ++i) {
    duplicated[2 * i] = duplicated[2 * i + 1] = row[pairs + i];
    sines[2 * i] = -row[i];
    sines[2 * i + 1] = row[i];
  }
}

/// Rotates a head of features [a b a b ...], given its duplicated row.
template <class Scalar, class S>
[[gnu::always_inline]] inline void rotate_every_two(const Scalar* __restrict duplicated, Index pairs,
                                                    S* __restrict head) {
  const Scalar* __restrict sines = duplicated + 2 * pairs;
  for (Index i = 0; i < 2 * pairs; i += 2) {
    const Scalar a = widen(head[i]), b = widen(head[i + 1]);
    put_result(head[i], rotated(a, duplicated[i], b, sines[i]));
    put_result(head[i + 1], rotated(b, duplicated[i + 1], a, sines[i + 1]));
  }
}

}  // namespace posbias::detail
