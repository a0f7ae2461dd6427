// SPDX-License-Identifier: MIT
#include "laws/module_under_test_of.hpp"
#include "posbias/core/module.hpp"

namespace posbias_test {
namespace {

const bool added_identity = add_case("Identity", []<class S>() { return posbias::Identity(); }, {});

}  // namespace
}  // namespace posbias_test
