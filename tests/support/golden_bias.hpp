// SPDX-License-Identifier: MIT
/// \file
/// Recorded runs of modules that modify the mask.
#pragma once

#include <string>
#include <vector>

#include "support/golden.hpp"

namespace posbias_test {

/// Upstream's result for short positions and no mask has the shape of the positions; here their bias stands at the
/// right and bottom of the whole mask, and tokens without a position get none.
inline std::vector<double> pad_left_and_top(const std::vector<double>& recorded, Index rows, Index columns,
                                            Index placed_rows, Index placed_columns) {
  std::vector<double> result;
  const std::size_t block = static_cast<std::size_t>(placed_rows * placed_columns);
  for (std::size_t first = 0; first < recorded.size(); first += block)
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) {
        const Index row = i - (rows - placed_rows);
        const Index column = j - (columns - placed_columns);
        result.push_back(
            row < 0 || column < 0 ? 0 : recorded[first + static_cast<std::size_t>(row * placed_columns + column)]);
      }
  return result;
}

/// A gradient that began as `before` must have gained the recorded one, or nothing at all where none was recorded.
inline void check_added(const GoldenCase& golden, const std::string& recorded, const std::vector<double>& after,
                        const std::vector<double>& before, double tolerance) {
  if (!golden.has(recorded)) {
    CHECK(after == before);
    return;
  }
  std::vector<double> expected = golden.values(recorded);
  REQUIRE(expected.size() == before.size());
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
  check_close(after, expected, tolerance);
}

/// make_mask, mod_mask where the mask is of full size, and the adjoint, on one case of q (B, *, L1, NH, H).
template <class Scalar, int Rank, class Module>
void check_mask(const GoldenCase& golden, Module module) {
  constexpr double tolerance = golden_tolerance<Scalar>;
  const double tables = golden.float32_tables() ? 0x1p-24 : 0;
  golden.load_parameters(module);
  const posbias::PairPositions at = golden.pair_positions();
  const Index rows = golden.shape("in.q")[Rank - 3];
  const Index columns = golden.shape("in.k")[Rank - 3];
  const Index recorded_rows = golden.shape("out.mask")[Rank - 2];
  const Index recorded_columns = golden.shape("out.mask")[Rank - 1];
  const auto padded = [&](const std::vector<double>& recorded) {
    return pad_left_and_top(recorded, rows, columns, recorded_rows, recorded_columns);
  };
  const auto expected = padded(golden.expected<Scalar>("out.mask"));
  for_each_layout_case([&]<class LayoutCase>() {
    auto q = golden.input<Scalar, Rank, LayoutCase>("in.q");
    auto k = golden.input<Scalar, Rank, LayoutCase>("in.k");
    auto& v = k.tensor();
    auto made = module.make_mask(q.tensor(), k.tensor(), v, at);
    if (golden.has("in.mask")) {
      auto mask = golden.input<Scalar, Rank, LayoutCase>("in.mask");
      made = module.make_mask(q.tensor(), k.tensor(), v, at, mask.tensor());
      if (mask.tensor().dimension(Rank - 2) == rows && mask.tensor().dimension(Rank - 1) == columns) {
        module.mod_mask(mask.tensor(), q.tensor(), k.tensor(), v, at);
        CHECK(flat(mask.tensor()) == flat(made));
      }
    }
    check_close(flat(made), expected, tolerance, tables);
    if (!golden.has("grad_out.mask")) return;
    const auto recorded = padded(golden.values("grad_out.mask"));
    for_each_index(made, [&, i = std::size_t{0}](auto& value) mutable { value = static_cast<Scalar>(recorded[i++]); });
    typename LayoutCase::template Holder<Scalar, Rank> grad_mask(made);
    auto grad_q = golden.input<Scalar, Rank, LayoutCase>("in.q");
    auto grad_k = golden.input<Scalar, Rank, LayoutCase>("in.k");
    auto grad_v = golden.input<Scalar, Rank, LayoutCase>("in.k");
    auto grads = module.zero_gradients();
    module.mod_mask_backward(grad_mask.tensor(), grad_q.tensor(), grad_k.tensor(), grad_v.tensor(), q.tensor(),
                             k.tensor(), v, at, grads);
    CHECK(flat(grad_mask.tensor()) == flat(made));
    CHECK(flat(grad_v.tensor()) == flat(v));
    check_added(golden, "grad_in.q", flat(grad_q.tensor()), flat(q.tensor()), tolerance);
    check_added(golden, "grad_in.k", flat(grad_k.tensor()), flat(k.tensor()), tolerance);
    golden.check_gradients<Scalar>(grads);
  });
}

}  // namespace posbias_test
