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
  const auto expected =
      pad_left_and_top(golden.expected<Scalar>("out.mask"), rows, columns, recorded_rows, recorded_columns);
  for_each_form([&]<class Form>() {
    auto q = golden.input<Scalar, Rank, Form>("in.q");
    auto k = golden.input<Scalar, Rank, Form>("in.k");
    auto& v = k.tensor();
    if (golden.has("in.mask")) {
      auto mask = golden.input<Scalar, Rank, Form>("in.mask");
      const auto made = module.make_mask(q.tensor(), k.tensor(), v, at, mask.tensor());
      check_close(flat(made), expected, tolerance, tables);
      if (mask.tensor().dimension(Rank - 2) == rows && mask.tensor().dimension(Rank - 1) == columns) {
        module.mod_mask(mask.tensor(), q.tensor(), k.tensor(), v, at);
        CHECK(flat(mask.tensor()) == flat(made));
      }
    } else {
      check_close(flat(module.make_mask(q.tensor(), k.tensor(), v, at)), expected, tolerance, tables);
    }
    if (!golden.has("grad_out.mask")) return;
    auto grad_mask = golden.input<Scalar, Rank, Form>("grad_out.mask");
    auto grad_q = golden.input<Scalar, Rank, Form>("in.q");
    auto grad_k = golden.input<Scalar, Rank, Form>("in.k");
    auto grads = module.zero_gradients();
    module.mod_mask_backward(grad_mask.tensor(), grad_q.tensor(), grad_k.tensor(), grad_k.tensor(), q.tensor(),
                             k.tensor(), v, at, grads);
    CHECK(flat(grad_mask.tensor()) == flat(golden.input<Scalar, Rank, Form>("grad_out.mask").tensor()));
    golden.check_gradients<Scalar>(grads);
  });
}

}  // namespace posbias_test
