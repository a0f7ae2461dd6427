// SPDX-License-Identifier: MIT
/// \file
/// Threads for the hooks: an executor's runner over Eigen's thread pool. Opt-in: posbias.hpp does not include it.
///
///     posbias::ThreadPool pool(8);
///     module.mod_mask(mask, {.executor = pool});
///
/// Tasks are handed out one at a time, as some take far longer than others (causal attention). What hooks compute is
/// bitwise the same for any number of threads.
///
/// This is the only header that defines EIGEN_USE_THREADS, which Eigen wants before its tensors. Threads for the
/// hooks work in any order of includes; to run Eigen's own expressions on `device()` as well, include this header, or
/// define EIGEN_USE_THREADS, before the first header that includes Eigen's tensors.
///
/// Cost: for `threads` threads, threads - 1 entries in the pool's queue and one block of memory a call, one atomic
/// increment a task. Link the threads of your platform (CMake: posbias::parallel).
#pragma once

#ifndef EIGEN_USE_THREADS
#define EIGEN_USE_THREADS
#endif

#include <algorithm>
#include <atomic>
#include <concepts>
#include <exception>
#include <unsupported/Eigen/CXX11/Tensor>
#include <utility>

#include "posbias/core/error.hpp"
#include "posbias/core/index.hpp"
#include "posbias/core/standard.hpp"

namespace posbias {
namespace detail {

// Eigen 3.4 and 5.0 complete the device when their tensors are included once more. Should another version not: say so.
template <class T>
concept Complete = requires {
  sizeof(T);
};
static_assert(Complete<Eigen::ThreadPoolDevice>,
              "Eigen's tensors were included without threads: include posbias/parallel/thread_pool.hpp before them, or "
              "define EIGEN_USE_THREADS");

/// Tasks 0 .. count - 1 that several threads share: each takes the next one until none is left. A helper may start
/// when all is done and the call has returned; then `task` no longer exists, but there is no index to call it with.
template <class Task>
class SharedTasks {
 public:
  SharedTasks(Index count, const Task& task) : count_(count), task_(&task) {}

  /// Takes tasks until none is left; others may still be running when this returns.
  void work() noexcept {
    Index taken = 0;
    for (Index i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_; ++taken) run(i);
    if (taken > 0 && done_.fetch_add(taken, std::memory_order_acq_rel) + taken == count_) all_done_.Notify();
  }

  /// Returns when no task is left or running; throws what the first one to fail threw.
  void wait() {
    all_done_.Wait();
    // Taken out, so that a late helper has no part in the exception's life.
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  /// After a failure tasks are taken, so that all get done, but not run.
  void run(Index i) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      (*task_)(i);
    } catch (...) {
      if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
  }

  const Index count_;
  const Task* const task_;
  std::atomic<Index> next_{0};
  std::atomic<bool> failed_{false};
  std::atomic<Index> done_{0};  // tasks, failed and skipped ones included
  std::exception_ptr error_;    // written by whoever set failed_, read when all is done
  Eigen::Notification all_done_;
};

}  // namespace detail

/// Runs the loops of hooks on several threads, the calling one among them; a `TaskRunner`. Any number of threads may
/// use a pool at once, tasks included. Must outlive the calls it is passed to.
class ThreadPool {
 public:
  /// Starts `threads` threads of its own and joins them when destroyed. Throws OptionError unless threads >= 1.
  explicit ThreadPool(int threads)
      : owned_(std::make_unique<Owned>(checked("threads", threads))), device_(&owned_->device) {}

  /// Shares the threads of a device, which must outlive the pool. Throws OptionError unless it has numThreads() >= 1.
  explicit ThreadPool(Eigen::ThreadPoolDevice& device) : device_(&device) {
    checked("device.numThreads()", device.numThreads());
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// The most threads that work for one call, the calling thread included.
  [[nodiscard]] int threads() const { return device_->numThreads(); }

  /// To run Eigen's expressions on the same threads: `tensor.device(pool.device()) = ...`.
  [[nodiscard]] const Eigen::ThreadPoolDevice& device() const { return *device_; }

  /// Calls `task(i)` for every i in [0, count) and returns when all are done. If tasks throw, those not yet begun are
  /// skipped, and the first exception is thrown here when none is running any more.
  template <std::invocable<Index> Task>
  void parallel_for(Index count, const Task& task) const {
    const Index helpers = std::min<Index>(count, threads()) - 1;
    if (helpers < 1) {
      for (Index i = 0; i < count; ++i) task(i);
      return;
    }
    // Helpers share the tasks and nobody waits for a helper to start: this thread would do all alone. So a call from
    // within a task cannot wait for itself, however busy the pool is.
    const auto tasks = std::make_shared<detail::SharedTasks<Task>>(count, task);
    try {
      for (Index h = 0; h < helpers; ++h) device_->getPool()->Schedule([tasks] { tasks->work(); });
    } catch (...) {
      // No memory for a further helper. Those that are scheduled use `task`, so this call has to go on.
    }
    tasks->work();
    tasks->wait();
  }

 private:
  struct Owned {
    explicit Owned(int threads) : pool(threads), device(&pool, threads) {}
    Eigen::ThreadPool pool;
    Eigen::ThreadPoolDevice device;
  };

  static int checked(const char* what, int threads) {
    if (threads < 1) detail::fail<OptionError>("ThreadPool: ", what, " = ", threads, "; it must be at least 1");
    return threads;
  }

  std::unique_ptr<Owned> owned_;  // none if the device is the user's
  const Eigen::ThreadPoolDevice* device_;
};

}  // namespace posbias
