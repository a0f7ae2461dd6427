// SPDX-License-Identifier: MIT
#include "posbias/core/executor.hpp"

#include <stdexcept>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/thread_runner.hpp"

using posbias::Executor;
using posbias::Index;
using posbias_test::ThreadRunner;

namespace {

/// Runs tasks last to first and remembers how often it was asked.
struct Backwards {
  template <class Task>
  void parallel_for(Index count, const Task& task) {
    ++calls;
    for (Index i = count; i-- > 0;) task(i);
  }
  int calls = 0;
};

/// Runs tasks first to last, even when const.
struct Forwards {
  template <class Task>
  void parallel_for(Index count, const Task& task) const {
    for (Index i = 0; i < count; ++i) task(i);
  }
};

struct NotARunner {
  void parallel_for() {}
};

std::vector<Index> order_of(const Executor& executor, Index count) {
  std::vector<Index> order;
  executor.parallel_for(count, [&](Index i) { order.push_back(i); });
  return order;
}

}  // namespace

TEST_CASE("the default executor runs tasks in order on the calling thread", "[executor]") {
  CHECK(order_of({}, 5) == std::vector<Index>{0, 1, 2, 3, 4});
  CHECK(order_of({}, 1) == std::vector<Index>{0});
  CHECK(order_of({}, 0).empty());

  const auto caller = std::this_thread::get_id();
  Executor().parallel_for(3, [&](Index) { CHECK(std::this_thread::get_id() == caller); });
}

TEST_CASE("an executor hands its tasks to the runner", "[executor]") {
  Backwards runner;
  const Executor executor(runner);
  CHECK(order_of(executor, 4) == std::vector<Index>{3, 2, 1, 0});
  CHECK(runner.calls == 1);

  SECTION("a copy refers to the same runner") {
    const Executor copy = executor;
    CHECK(order_of(copy, 3) == std::vector<Index>{2, 1, 0});
    CHECK(runner.calls == 2);
  }
  SECTION("one task or none needs no runner") {
    CHECK(order_of(executor, 1) == std::vector<Index>{0});
    CHECK(order_of(executor, 0).empty());
    CHECK(runner.calls == 1);
  }
}

TEST_CASE("a const runner will do if it runs tasks when const", "[executor]") {
  const Forwards runner;
  CHECK(order_of(Executor(runner), 3) == std::vector<Index>{0, 1, 2});
  static_assert(!posbias::TaskRunner<const Backwards>);
}

TEST_CASE("every task runs once on a runner with threads", "[executor]") {
  ThreadRunner runner;
  std::vector<int> runs(1000);
  Executor(runner).parallel_for(1000, [&](Index i) { ++runs[static_cast<std::size_t>(i)]; });
  CHECK(runs == std::vector<int>(1000, 1));
  CHECK(runner.calls() == 1);
  CHECK(runner.tasks() == 1000);
}

TEST_CASE("an exception of a task reaches the caller", "[executor]") {
  const auto third = [](Index i) {
    if (i == 3) throw std::runtime_error("third");
  };
  CHECK_THROWS_AS(Executor().parallel_for(5, third), std::runtime_error);
  Backwards runner;
  CHECK_THROWS_AS(Executor(runner).parallel_for(5, third), std::runtime_error);
}

TEST_CASE("what can run tasks is checked by a concept", "[executor]") {
  static_assert(posbias::TaskRunner<Backwards>);
  static_assert(posbias::TaskRunner<ThreadRunner>);
  static_assert(!posbias::TaskRunner<NotARunner>);
  static_assert(!posbias::TaskRunner<int>);
  static_assert(!std::is_constructible_v<Executor, NotARunner&>);
  static_assert(std::is_copy_constructible_v<Executor> && std::is_copy_assignable_v<Executor>);
  SUCCEED();
}
