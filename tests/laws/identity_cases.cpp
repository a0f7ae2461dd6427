// SPDX-License-Identifier: MIT
#include "laws/module_subject.hpp"
#include "posbias/core/module.hpp"

namespace posbias_test {
namespace {

const bool added_identity = add_case("Identity", []<class S>() { return posbias::Identity(); }, {});

}  // namespace
}  // namespace posbias_test
