// SPDX-License-Identifier: MIT
/// \file
/// Threads before everything else: only then can Eigen's own expressions run on the device of a pool. So this file is
/// built without the precompiled header, which has Eigen's tensors in it.
#ifdef EIGEN_WORLD_VERSION
#define POSBIAS_TEST_EIGEN_CAME_FIRST
#endif

#include "posbias/parallel/thread_pool.hpp"

#include "posbias/posbias.hpp"

#include "support/catch.hpp"

using posbias::Index;

TEST_CASE("a pool of a header that came first runs hooks", "[thread_pool]") {
  const posbias::ThreadPool pool(2);
  const posbias::ALiBi<double> module({.n_heads = 2});
  Eigen::Tensor<double, 4> serial(1, 2, 131, 7), threaded(1, 2, 131, 7);
  serial.setZero();
  threaded.setZero();
  module.mod_mask(serial);
  module.mod_mask(threaded, {.executor = pool});
  CHECK(serial(0, 0, 130, 2) == -128. / 16);
  for (Index i = 0; i < serial.size(); ++i) REQUIRE(threaded.data()[i] == serial.data()[i]);
}

TEST_CASE("Eigen's expressions run on the device of a pool", "[thread_pool]") {
#ifdef POSBIAS_TEST_EIGEN_CAME_FIRST
  FAIL("Eigen came first: tests/CMakeLists.txt must set SKIP_PRECOMPILE_HEADERS for this file");
#else
  const posbias::ThreadPool pool(2);
  Eigen::Tensor<double, 1> values(100000), twice(100000);
  for (Index i = 0; i < values.size(); ++i) values(i) = static_cast<double>(i);
  twice.device(pool.device()) = values * 2.;
  for (Index i = 0; i < twice.size(); ++i) REQUIRE(twice(i) == 2 * static_cast<double>(i));
#endif
}
