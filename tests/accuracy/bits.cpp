// SPDX-License-Identifier: MIT
/// \file
/// Values that change when the same is computed with more threads, query by query, or in the other layout: none.
#include <cstring>
#include <posbias/parallel/thread_pool.hpp>

#include "accuracy/accuracy.hpp"

namespace posbias_accuracy {
namespace {

using posbias::Positions;
constexpr Index L = 600, NH = 4, H = 32;
using Heads = Tensor<float, 3>;

struct Result {
  Heads out{L, NH, H};
  Tensor<float, 3> mask{NH, L, L};
};

/// Attention and `mod_qkv`, `make_mask`, whole.
template <class Module>
Result whole(const Heads& q, const Heads& k, const Heads& v, const Module& module, const posbias::Executor& executor) {
  Result result;
  Heads q_ = q, k_ = k;
  posbias::attention(result.out, q, k, v, module, {.executor = executor});
  module.mod_qkv(q_, k_, k_, {.executor = executor});
  result.mask = module.make_mask(q_, k_, k_, {.executor = executor});
  return result;
}

/// The same, one query at a time.
template <class Module>
Result by_query(const Heads& q, const Heads& k, const Heads& v, const Module& module) {
  Result result;
  for (Index i = 0; i < L; ++i) {
    Heads one(1, NH, H), out(1, NH, H), k_ = k;
    std::copy_n(&q(i, 0, 0), NH * H, one.data());
    const posbias::PairPositions at{.q = Positions::range(i)};
    posbias::attention(out, one, k, v, module, {.at = at});
    std::copy_n(out.data(), NH * H, &result.out(i, 0, 0));
    module.mod_qkv(one, k_, v, at);
    const Tensor<float, 3> row = module.make_mask(one, k_, v, at);
    for (Index h = 0; h < NH; ++h) std::copy_n(&row(h, 0, 0), L, &result.mask(h, i, 0));
  }
  return result;
}

/// The same, column-major.
template <class Module>
Result column_major(const Heads& q, const Heads& k, const Heads& v, const Module& module) {
  using Columns = Eigen::Tensor<float, 3, Eigen::ColMajor>;
  const Eigen::array<int, 3> reversed{2, 1, 0};
  const auto swapped = [&](const Heads& t) -> Columns { return Columns(t.swap_layout().shuffle(reversed)); };
  Columns q_ = swapped(q), k_ = swapped(k), v_ = swapped(v), out(L, NH, H);
  posbias::attention(out, q_, k_, v_, module);
  module.mod_qkv(q_, k_, v_);
  const Columns mask = module.make_mask(q_, k_, v_);
  Result result;
  result.out = out.swap_layout().shuffle(reversed);
  result.mask = mask.swap_layout().shuffle(reversed);
  return result;
}

std::string changed(const Result& a, const Result& b) {
  Index count = 0;
  const auto compare = [&](const Heads& x, const Heads& y) {
    for (Index i = 0; i < x.size(); ++i) count += std::memcmp(x.data() + i, y.data() + i, sizeof(float)) != 0;
  };
  compare(a.out, b.out);
  compare(a.mask, b.mask);
  return std::to_string(count);
}

template <class Module>
void print_row_of(const char* name, const Module& module) {
  const auto q = numbers<float, 3>({L, NH, H}, 1), k = numbers<float, 3>({L, NH, H}, 2),
             v = numbers<float, 3>({L, NH, H}, 3);
  posbias::ThreadPool pool(4);
  const Result result = whole(q, k, v, module, {});
  print_row({name, changed(result, whole(q, k, v, module, pool)), changed(result, by_query(q, k, v, module)),
             changed(result, column_major(q, k, v, module))});
}

}  // namespace

void print_bits() {
  using namespace posbias;
  std::puts("\n## Bits that change\n");
  print_header({"attention and mask with", "4 threads", "one query at a time", "column-major"});
  print_row_of("nothing", Identity());
  print_row_of("Rotary", Rotary<float>({.head_dim = H}));
  print_row_of("ALiBi", ALiBi<float>({.n_heads = NH}));
  print_row_of("RelativePositionBias", RelativePositionBias<float>({.n_heads = NH}, 1));
  print_row_of("DynamicPositionBias", DynamicPositionBias<float>({.dim = 16, .n_heads = NH, .depth = 2}, 2));
  print_row_of("TransformerXL", TransformerXL<float>({.dim = NH * H, .n_heads = NH}, 3));
  std::printf("\nOf %td floats each.\n", L * NH * H + NH * L * L);
}

}  // namespace posbias_accuracy
