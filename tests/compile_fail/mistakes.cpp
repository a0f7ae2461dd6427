// SPDX-License-Identifier: MIT
/// \file
/// What must not compile. What stands below an `expect:` is right if MISTAKEN is false. If it is true, only types are
/// others, and compilers must refuse the line and say what is expected, a regular expression that fits both g++ and
/// clang++; or say it of a header, where a static assertion is.
#include <cstdint>
#include <posbias/posbias.hpp>
#include <string_view>
#include <type_traits>
#include <vector>

/// A value that is never made.
template <class T>
T any();

namespace {

template <class Mistake, class Right>
using Either = std::conditional_t<MISTAKEN, Mistake, Right>;

template <class Scalar, int Rank>
using Tensor = Eigen::Tensor<Scalar, Rank, Eigen::RowMajor>;

/// q, k, v or a mask.
using Four = Tensor<float, 4>;

/// An expression that is still to be evaluated.
using Exponential = decltype(Four().exp());

/// No positional module: it has none of the hooks.
struct Nothing {
  struct Gradients {};
};

using namespace posbias;

/// A bias and an embedding that supply nothing but a size.
struct NoValues : RelativeBias<NoValues, float, NoParameters> {
  static constexpr std::string_view name = "NoValues";
  [[nodiscard]] static Index n_heads() { return 4; }
};
struct NoRows : AdditiveEmbedding<NoRows, float, NoParameters> {
  static constexpr std::string_view name = "NoRows";
  [[nodiscard]] static Index dim() { return 4; }
};

[[maybe_unused]] void mistakes(const ALiBi<float>& alibi, const Rotary<float>& rotary,
                               const Sinusoidal<float>& sinusoidal, const TransformerXL<float>& xl,
                               const RelativeAttention<float>& layer, Four& q, Four& out, Four& mask) {
  Either<Tensor<float, 1>, Tensor<float, 2>> x;
  Either<Tensor<float, 2>, Tensor<float, 3>> flat;
  Either<Tensor<int, 4>, Four> integers;
  Either<Tensor<double, 4>, Four> doubles;
  Either<const Four, Four> constant;
  const Either<Nothing, Identity> module{};
  const Either<Tensor<bool, 1>, Tensor<std::int64_t, 1>> ids;
  Either<Tensor<Eigen::half, 4>, Tensor<double, 4>> halves;
  const Either<std::int64_t, std::vector<std::int64_t>> five{};

  // expect: rank\)? >= (MinRank|2)
  sinusoidal.mod_x(x);
  // expect: rank\)? >= (MinRank|2)
  [[maybe_unused]] const auto result = layer(x, x, x);
  // expect: rank\)? >= (MinRank|3)
  alibi.mod_mask(flat);
  // expect: rank\)? >= (MinRank|3)
  rotary.mod_qkv(flat, flat, q);
  // expect: float_takes_float_bfloat16_half_and_double_takes_double
  alibi.mod_mask(integers);
  // expect: float_takes_float_bfloat16_half_and_double_takes_double
  rotary.mod_qkv(doubles, q, q);
  // expect: float_takes_float_bfloat16_half_and_double_takes_double
  xl.mod_mask(mask, doubles, q, q);
  // expect: float_takes_float_bfloat16_half_and_double_takes_double
  attention(out, q, doubles, q, alibi);
  // expect: float_takes_float_bfloat16_half_and_double_takes_double
  ALiBi<double>({.n_heads = 4}).mod_mask(halves);
  // expect: tensors_are_of_float_double_bfloat16_or_half
  Identity().mod_qkv(integers, q, q);
  // expect: can_be_written_to<T> .with T = const|can_be_written_to<const
  alibi.mod_mask(constant);
  // expect: can_be_written_to<T> .with T = const|can_be_written_to<const
  attention(constant, q, q, q, alibi);
  // expect: can_be_written_to<T> .with T = Eigen|can_be_written_to<Eigen
  alibi.mod_mask(Either<Four, Four&>(mask));
  // expect: m.mod_x\(x, token\)
  attention(out, q, q, q, module);
  // expect: deleted(.|\n)*evaluate_this_to_a_tensor_first
  [[maybe_unused]] const AttentionOptions options{.mask = any<Either<Exponential, Four>>()};
  // expect: PositionTensor
  [[maybe_unused]] const Positions positions{ids};
  // expect: Positions::range
  [[maybe_unused]] const PairPositions pair{.q = five};
  // expect in a header: posbias: modules and tensors are of float or double
  [[maybe_unused]] const ALiBi<Either<Eigen::half, float>> of_halves({.n_heads = 4});
  // expect in a header: posbias: a module of RelativeBias needs evaluate
  attention(out, q, q, q, Either<NoValues, Identity>());
  // expect in a header: posbias: a module of AdditiveEmbedding needs .* rows
  Either<NoRows, Identity>().mod_x(out);
}

}  // namespace
