// SPDX-License-Identifier: MIT
/// \file
/// Who runs the loops: the calling thread, unless the caller brings threads.
///
/// Hooks split their work into tasks that write to separate places or to separate partial sums, so their results
/// are bitwise the same whoever runs the tasks and in whatever order.
#pragma once

#include <concepts>
#include <type_traits>

#include "posbias/core/index.hpp"

namespace posbias {

/// Something that runs `task(0) ... task(count - 1)`, in any order and on any threads, and returns when all are
/// done.
template <class T>
concept TaskRunner = requires(T& runner, Index count, void (*task)(Index)) {
  runner.parallel_for(count, task);
};

/// A reference to a task runner, or nothing: then tasks run one after another on the calling thread. The runner
/// must outlive the calls it is passed to.
class Executor {
 public:
  /// Serial.
  Executor() = default;

  /// Runs tasks with `runner.parallel_for(count, task)`.
  template <TaskRunner Runner>
  requires(!std::same_as<std::remove_cv_t<Runner>, Executor>) Executor(Runner& runner)
      : runner_(const_cast<void*>(static_cast<const void*>(&runner))),
        run_([](void* self, Index count, Invoke invoke, const void* task) {
          static_cast<Runner*>(self)->parallel_for(count, [=](Index i) { invoke(task, i); });
        }) {}

  /// Whether it is the calling thread that runs the tasks.
  [[nodiscard]] bool serial() const { return run_ == nullptr; }

  /// Calls `task(i)` for every i in [0, count).
  template <std::invocable<Index> Task>
  void parallel_for(Index count, const Task& task) const {
    if (run_ == nullptr || count < 2) {
      for (Index i = 0; i < count; ++i) task(i);
    } else {
      run_(
          runner_, count, [](const void* self, Index i) { (*static_cast<const Task*>(self))(i); }, &task);
    }
  }

 private:
  using Invoke = void (*)(const void* task, Index i);
  void* runner_ = nullptr;
  void (*run_)(void* runner, Index count, Invoke invoke, const void* task) = nullptr;
};

}  // namespace posbias
