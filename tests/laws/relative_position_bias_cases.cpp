// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "posbias/bias/relative_position_bias.hpp"
#include "reference/reference.hpp"

namespace posbias_test {
namespace {

using posbias::RelativePositionBias;

Truth truth(const reference::BucketShape& buckets) {
  const auto bias = [=](const Truth::Logit& at, const Truth::Parameters& parameters) {
    const auto relative = static_cast<std::int64_t>(at.k - at.q);
    const std::int64_t bucket = reference::t5_bucket(relative, buckets);
    const std::vector<Real>& weight = parameters.at("relative_attention_bias.weight");
    const auto heads = static_cast<std::int64_t>(weight.size()) / buckets.num_buckets;
    return weight[static_cast<std::size_t>(bucket * heads + at.h)];
  };
  return {.bias = bias, .integers_only = true};
}

const bool added[] = {
    add_case(
        "RelativePositionBias", []<class S>() { return RelativePositionBias<S>({.n_heads = 3}, 1); },
        truth({true, 32, 128})),
    add_case(
        "RelativePositionBias, one direction",
        []<class S>() {
          return RelativePositionBias<S>({.bidirectional = false, .num_buckets = 13, .max_distance = 50, .n_heads = 5},
                                         2);
        },
        truth({false, 13, 50}), 5),
};

}  // namespace
}  // namespace posbias_test
