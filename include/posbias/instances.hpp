// SPDX-License-Identifier: MIT
/// \file
/// All that `posbias::compiled` holds, for one scalar: a line for each module.
///
/// posbias.hpp includes it with `extern template` for POSBIAS_TEMPLATE, where that target is linked, and src/ with
/// `template`. Only members that are defined outside of their class stay away from those who include posbias.hpp; those that
/// are templates themselves are listed one by one.
#if defined POSBIAS_TEMPLATE
#define POSBIAS_RELATIVE_BIAS(Bias, Parameters)                                                          \
  POSBIAS_TEMPLATE class Bias<POSBIAS_SCALAR>;                                                           \
  POSBIAS_TEMPLATE class RelativeBias<Bias<POSBIAS_SCALAR>, POSBIAS_SCALAR, Parameters<POSBIAS_SCALAR>>; \
  POSBIAS_TEMPLATE void                                                                                  \
  RelativeBias<Bias<POSBIAS_SCALAR>, POSBIAS_SCALAR, Parameters<POSBIAS_SCALAR>>::modify<Write::add>(    \
      const View&, const CheckedPairPositions&, const Executor&) const;                                  \
  POSBIAS_TEMPLATE void                                                                                  \
  RelativeBias<Bias<POSBIAS_SCALAR>, POSBIAS_SCALAR, Parameters<POSBIAS_SCALAR>>::modify<Write::assign>( \
      const View&, const CheckedPairPositions&, const Executor&) const;                                  \
  POSBIAS_TEMPLATE class TabulatedBias<Bias<POSBIAS_SCALAR>>;                                            \
  POSBIAS_TEMPLATE void TabulatedBias<Bias<POSBIAS_SCALAR>>::add<Write::add>(const LogitTile<POSBIAS_SCALAR>&) const;
#define POSBIAS_CONTENT_BIAS(Bias, Parameters, Prepared)                                                \
  POSBIAS_TEMPLATE class Bias<POSBIAS_SCALAR>;                                                          \
  POSBIAS_TEMPLATE class ContentBias<Bias<POSBIAS_SCALAR>, POSBIAS_SCALAR, Parameters<POSBIAS_SCALAR>>; \
  POSBIAS_TEMPLATE class Prepared;
#define POSBIAS_EMBEDDING(Embedding, Parameters)    \
  POSBIAS_TEMPLATE class Embedding<POSBIAS_SCALAR>; \
  POSBIAS_TEMPLATE class AdditiveEmbedding<Embedding<POSBIAS_SCALAR>, POSBIAS_SCALAR, Parameters<POSBIAS_SCALAR>>;

namespace posbias {

POSBIAS_EMBEDDING(Sinusoidal, Divide)
POSBIAS_EMBEDDING(LearnedVocab, PositionTable)
POSBIAS_EMBEDDING(LearnedContinuous, PositionMlp)
POSBIAS_TEMPLATE class Rotary<POSBIAS_SCALAR>;
POSBIAS_RELATIVE_BIAS(ALiBi, Divide)
POSBIAS_RELATIVE_BIAS(RelativePositionBias, BucketWeights)
POSBIAS_RELATIVE_BIAS(DynamicPositionBias, PositionMlp)
POSBIAS_CONTENT_BIAS(TransformerXL, TransformerXLParameters, ProjectedBias<TransformerXL<POSBIAS_SCALAR>>)
POSBIAS_CONTENT_BIAS(DisentangledBias, RelativePositionTable, DisentangledTerm<POSBIAS_SCALAR>)
POSBIAS_TEMPLATE class RelativeAttention<POSBIAS_SCALAR>;
POSBIAS_TEMPLATE class detail::AttentionCall<POSBIAS_SCALAR>;
POSBIAS_TEMPLATE void detail::fill_zero(const detail::TensorView<POSBIAS_SCALAR, 3>&);

}  // namespace posbias

#undef POSBIAS_RELATIVE_BIAS
#undef POSBIAS_CONTENT_BIAS
#undef POSBIAS_EMBEDDING
#endif
