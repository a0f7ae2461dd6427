// SPDX-License-Identifier: MIT
/// \file
/// Biases of logits against their formulas, T5's buckets, and biases of positions that are all shifted.
#include <cstdint>
#include <cstring>
#include <functional>

#include "accuracy/accuracy.hpp"

namespace posbias_accuracy {
namespace {

using posbias::Positions;
namespace reference = posbias_test::reference;

constexpr Index L1 = 48, L2 = 64, NH = 4, H = 16;
constexpr int dim = 16;

template <class Scalar>
struct Modules {
  posbias::ALiBi<Scalar> alibi{{.n_heads = NH}};
  posbias::RelativePositionBias<Scalar> t5{{.n_heads = NH}, 1};
  posbias::DynamicPositionBias<Scalar> dpb{{.dim = dim, .n_heads = NH, .depth = 3, .norm = true, .divide = 16}, 2};
  posbias::TransformerXL<Scalar> xl{{.dim = NH * H, .n_heads = NH}, 3};
};

/// The largest error of a mask over its largest value; `reference(h, i, j)`.
template <class Mask, class ReferenceModel>
std::string error_of(const Mask& mask, const ReferenceModel& reference_model) {
  Worst worst;
  for (Index h = 0; h < NH; ++h)
    for (Index i = 0; i < L1; ++i)
      for (Index j = 0; j < L2; ++j) worst.see(mask(h, i, j), reference_model(h, i, j));
  return worst.relative();
}

template <class Scalar>
std::vector<std::string> errors() {
  const Modules<Scalar> modules;
  const auto slopes = reference::alibi_slopes(static_cast<int>(NH));
  const auto t5 = weights_of(modules.t5), dpb = weights_of(modules.dpb), xl = weights_of(modules.xl);
  const auto alibi_reference_model = [&](Index h, Index i, Index j) {
    return reference::alibi(slopes[static_cast<std::size_t>(h)], static_cast<Real>(i), static_cast<Real>(j), 1);
  };
  const auto t5_truth = [&](Index h, Index i, Index j) {
    return t5.at("relative_attention_bias.weight")[static_cast<std::size_t>(reference::t5_bucket(j - i, {}) * NH + h)];
  };
  const auto dpb_reference_model = [&](Index h, Index i, Index j) {
    return -reference::dynamic_bias(static_cast<Real>(i - j) / 16, dpb, 3, true)[static_cast<std::size_t>(h)].value;
  };

  auto q = numbers<Scalar, 3>({L1, NH, H}, 4);
  Tensor<Scalar, 3> k(L2, NH, H);
  k.setZero();
  modules.xl.mod_qkv(q, k, k);
  const auto xl_reference_model = [&](Index h, Index i, Index j) {
    const std::vector<Real> query(&q(i, h, 0), &q(i, h, 0) + H);
    const auto r = reference::xl_row(static_cast<Real>(i - j), 1, xl, false);
    return reference::xl(static_cast<int>(h), query, r, xl, false).value;
  };
  return {error_of(modules.alibi.bias(L1, L2), alibi_reference_model), error_of(modules.t5.bias(L1, L2), t5_truth),
          error_of(modules.dpb.bias(L1, L2), dpb_reference_model),
          error_of(modules.xl.make_mask(q, k, k), xl_reference_model)};
}

/// One direction of T5's buckets, and how many distances are looked at.
struct Buckets {
  Index count, max_distance;
  [[nodiscard]] Index max_exact() const { return count / 2; }
  [[nodiscard]] Index distances() const { return 2 * max_distance; }
};

/// T5's formula in other arithmetic than the float that the weights were trained with.
template <class Scalar>
Index bucket_in(Index distance, const Buckets& buckets) {
  const Index max_exact = buckets.max_exact();
  if (distance < max_exact) return distance;
  const auto log_ratio = [&](Index number) {
    return std::log(static_cast<Scalar>(number) / static_cast<Scalar>(max_exact));
  };
  const Scalar large =
      log_ratio(distance) / log_ratio(buckets.max_distance) * static_cast<Scalar>(buckets.count - max_exact);
  return std::min(max_exact + static_cast<Index>(large), buckets.count - 1);
}

/// T5's formula in float, with Eigen's logarithms of whole registers.
std::vector<Index> buckets_of_registers(const Buckets& buckets) {
  const Index max_exact = buckets.max_exact();
  const auto exact = static_cast<float>(max_exact);
  const Eigen::ArrayXf distances =
      Eigen::ArrayXf::LinSpaced(buckets.distances(), 0, static_cast<float>(buckets.distances() - 1));
  const Eigen::ArrayXf logarithm = (distances.max(exact) / exact).log();
  const auto width =
      static_cast<float>(std::log(static_cast<double>(buckets.max_distance) / static_cast<double>(max_exact)));
  std::vector<Index> result;
  for (Index d = 0; d < buckets.distances(); ++d) {
    const float large = logarithm(d) / width * static_cast<float>(buckets.count - max_exact);
    result.push_back(d < max_exact ? d : std::min(max_exact + static_cast<Index>(large), buckets.count - 1));
  }
  return result;
}

void print_buckets() {
  std::puts("\n## T5 buckets\n");
  print_header({"max_distance", "distances", "posbias", "float, vectorised log", "double", "long double"});
  for (const Index max_distance : {64, 128, 256, 1000, 1024, 4096}) {
    Index all = 0, ours = 0, of_registers = 0, in_double = 0, in_long_double = 0;
    for (Index count = 2; count <= 512 && count / 2 < max_distance; ++count) {
      const Buckets buckets{count, max_distance};
      const posbias::T5Buckets bucket_of("T5",
                                         {.bidirectional = false, .num_buckets = count, .max_distance = max_distance});
      const auto registers = buckets_of_registers(buckets);
      all += buckets.distances();
      for (Index d = 0; d < buckets.distances(); ++d) {
        const Index trained = reference::t5_bucket(-d, {false, count, max_distance});
        ours += bucket_of(-d) != trained;
        of_registers += registers[static_cast<std::size_t>(d)] != trained;
        in_double += bucket_in<double>(d, buckets) != trained;
        in_long_double += bucket_in<Real>(d, buckets) != trained;
      }
    }
    print_row({std::to_string(max_distance), std::to_string(all), std::to_string(ours), std::to_string(of_registers),
               std::to_string(in_double), std::to_string(in_long_double)});
  }
}

/// How many of the values differ in any bit.
template <class Mask>
Index changed(const Mask& a, const Mask& b) {
  Index count = 0;
  for (Index i = 0; i < a.size(); ++i) count += std::memcmp(a.data() + i, b.data() + i, sizeof *a.data()) != 0;
  return count;
}

/// ALiBi as it is where positions are kept in float.
Tensor<float, 3> alibi_of_float_positions(Index shift) {
  const auto slopes = posbias::ALiBi<float>::get_slopes(NH);
  Tensor<float, 3> mask(NH, L1, L2);
  for (Index h = 0; h < NH; ++h)
    for (Index i = 0; i < L1; ++i)
      for (Index j = 0; j < L2; ++j)
        mask(h, i, j) = -static_cast<float>(slopes[static_cast<std::size_t>(h)]) *
                        std::abs(static_cast<float>(shift + i) - static_cast<float>(shift + j));
  return mask;
}

void print_shifts() {
  std::printf("\n## Biases after a shift of all positions\n\n");
  print_header({"shift", "ALiBi", "T5", "DPB", "TransformerXL", "ALiBi, positions in float"});
  const Modules<float> modules;
  const auto q = numbers<float, 3>({L1, NH, H}, 4), k = numbers<float, 3>({L2, NH, H}, 5);
  for (const int power : {20, 24, 30, 40, 60}) {
    const Index shift = Index{1} << power;
    const posbias::PairPositions there{.q = Positions::range(shift), .k = Positions::range(shift)};
    const auto count = [&](const auto& module) {
      return std::to_string(changed(module.make_mask(q, k, k), module.make_mask(q, k, k, there)));
    };
    print_row({"2^" + std::to_string(power), count(modules.alibi), count(modules.t5), count(modules.dpb),
               count(modules.xl),
               std::to_string(changed(alibi_of_float_positions(0), alibi_of_float_positions(shift)))});
  }
  std::printf("\nOf %td values each.\n", NH * L1 * L2);
}

}  // namespace

void print_biases() {
  std::puts("\n## Biases\n");
  print_header({"", "ALiBi", "T5", "DPB", "TransformerXL"});
  const auto row = [](std::string scalar, std::vector<std::string> cells) {
    cells.insert(cells.begin(), std::move(scalar));
    print_row(cells);
  };
  row("float", errors<float>());
  row("double", errors<double>());
  print_buckets();
  print_shifts();
}

}  // namespace posbias_accuracy
