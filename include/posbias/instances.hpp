// SPDX-License-Identifier: MIT
/// \file
/// All that `posbias::compiled` holds, for one scalar: a line for each module, and for what it is made of.
///
/// posbias.hpp includes it with `extern template` for POSBIAS_TEMPLATE, where that target is linked, and src/ with
/// `template`. Only members that are defined outside of their class stay away from those who include posbias.hpp.
#if defined POSBIAS_TEMPLATE
namespace posbias {

POSBIAS_TEMPLATE class detail::AttentionCall<POSBIAS_SCALAR>;
POSBIAS_TEMPLATE void detail::fill_zero(const detail::TensorView<POSBIAS_SCALAR, 3>&);

POSBIAS_TEMPLATE class Rotary<POSBIAS_SCALAR>;

POSBIAS_TEMPLATE class RelativeBias<ALiBi<POSBIAS_SCALAR>, POSBIAS_SCALAR, Divide<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE class PreparedRelativeBias<ALiBi<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE void PreparedRelativeBias<ALiBi<POSBIAS_SCALAR>>::add<Onto::logits>(
    const LogitTile<POSBIAS_SCALAR>&) const;
POSBIAS_TEMPLATE class RelativePositionBias<POSBIAS_SCALAR>;
POSBIAS_TEMPLATE class RelativeBias<RelativePositionBias<POSBIAS_SCALAR>, POSBIAS_SCALAR,
                                    BucketWeights<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE class PreparedRelativeBias<RelativePositionBias<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE void PreparedRelativeBias<RelativePositionBias<POSBIAS_SCALAR>>::add<Onto::logits>(
    const LogitTile<POSBIAS_SCALAR>&) const;
POSBIAS_TEMPLATE class DynamicPositionBias<POSBIAS_SCALAR>;
POSBIAS_TEMPLATE class RelativeBias<DynamicPositionBias<POSBIAS_SCALAR>, POSBIAS_SCALAR, PositionMlp<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE class PreparedRelativeBias<DynamicPositionBias<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE void PreparedRelativeBias<DynamicPositionBias<POSBIAS_SCALAR>>::add<Onto::logits>(
    const LogitTile<POSBIAS_SCALAR>&) const;

POSBIAS_TEMPLATE class LearnedVocab<POSBIAS_SCALAR>;
POSBIAS_TEMPLATE class AdditiveEmbedding<Sinusoidal<POSBIAS_SCALAR>, POSBIAS_SCALAR, Divide<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE class AdditiveEmbedding<LearnedContinuous<POSBIAS_SCALAR>, POSBIAS_SCALAR,
                                         PositionMlp<POSBIAS_SCALAR>>;
POSBIAS_TEMPLATE class AdditiveEmbedding<LearnedVocab<POSBIAS_SCALAR>, POSBIAS_SCALAR, PositionTable<POSBIAS_SCALAR>>;

}  // namespace posbias
#endif
