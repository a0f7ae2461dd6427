// SPDX-License-Identifier: MIT
/// \file
/// An executor's runner with real threads that takes the tasks in a shuffled order, a different one each time.
#pragma once

#include <atomic>
#include <cstddef>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "posbias/core/executor.hpp"
#include "support/numbers.hpp"

namespace posbias_test {

class ThreadRunner {
 public:
  explicit ThreadRunner(int threads = 4) : threads_(threads) {}

  template <class Task>
  void parallel_for(posbias::Index count, const Task& task) {
    std::vector<posbias::Index> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), posbias::Index{0});
    for (std::size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[numbers_.below(static_cast<std::uint64_t>(i))]);

    std::atomic<std::size_t> next{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < threads_; ++t)
      threads.emplace_back([&] {
        for (std::size_t i = next++; i < order.size(); i = next++) task(order[i]);
      });
    for (std::thread& thread : threads) thread.join();
    calls_ += 1;
    tasks_ += count;
  }

  [[nodiscard]] int calls() const { return calls_; }
  [[nodiscard]] posbias::Index tasks() const { return tasks_; }

 private:
  int threads_;
  int calls_ = 0;
  posbias::Index tasks_ = 0;
  Numbers numbers_{2024};
};

}  // namespace posbias_test
