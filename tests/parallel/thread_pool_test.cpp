// SPDX-License-Identifier: MIT
/// \file
/// Threads after everything else: here Eigen's tensors come first, and without threads.
#include "posbias/posbias.hpp"

#ifdef EIGEN_USE_THREADS
#error "posbias.hpp must leave Eigen's threads to posbias/parallel/thread_pool.hpp"
#endif

#include "posbias/parallel/thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using posbias::Executor;
using posbias::Index;
using posbias::ThreadPool;
using posbias_test::message_of;

namespace {

using Counts = std::vector<std::atomic<int>>;

std::vector<int> values_of(const Counts& counts) {
  return {counts.begin(), counts.end()};
}

/// How often each task runs.
template <class Runner>
std::vector<int> runs(const Runner& runner, Index count) {
  Counts counts(static_cast<std::size_t>(count));
  runner.parallel_for(count, [&](Index i) { ++counts[static_cast<std::size_t>(i)]; });
  return values_of(counts);
}

std::vector<int> once(Index count) {
  return std::vector<int>(static_cast<std::size_t>(count), 1);
}

/// Where tasks wait for each other, so that as many threads must be at work.
class Meeting {
 public:
  explicit Meeting(int expected) : expected_(expected) {}

  /// Whether all came. Gives up after a time that no machine needs.
  bool attend() {
    std::unique_lock lock(mutex_);
    if (--expected_ == 0) all_here_.notify_all();
    return all_here_.wait_for(lock, std::chrono::seconds(60), [&] { return expected_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int expected_;
};

/// The most threads that were at work at once, and which.
class Crew {
 public:
  void work() {
    const int here = ++here_;
    {
      const std::lock_guard lock(mutex_);
      most_ = std::max(most_, here);
      ids_.insert(std::this_thread::get_id());
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    --here_;
  }

  [[nodiscard]] int most() const { return most_; }
  [[nodiscard]] std::size_t size() const { return ids_.size(); }

 private:
  std::atomic<int> here_{0};
  std::mutex mutex_;
  int most_ = 0;
  std::set<std::thread::id> ids_;
};

/// A pool without threads: keeps what it is to run.
class LatePool : public Eigen::ThreadPoolInterface {
 public:
  void Schedule(std::function<void()> work) override { kept.push_back(std::move(work)); }
  [[nodiscard]] int NumThreads() const override { return 1; }
  [[nodiscard]] int CurrentThreadId() const override { return -1; }
  std::vector<std::function<void()>> kept;
};

/// A pool without threads: runs everything at once, as Eigen's does when its queue is full.
class EagerPool : public LatePool {
 public:
  void Schedule(std::function<void()> work) override { work(); }
};

/// A pool with room for one entry.
class FullPool : public LatePool {
 public:
  void Schedule(std::function<void()> work) override {
    if (!kept.empty()) throw std::bad_alloc();
    kept.push_back(std::move(work));
  }
};

}  // namespace

TEST_CASE("every task runs exactly once", "[thread_pool]") {
  for (const int threads : {1, 2, 4}) {
    const ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    CHECK(pool.device().numThreads() == threads);
    for (const Index count : {0, 1, 2, 7, 1000}) {
      INFO(threads << " threads, " << count << " tasks");
      for (int repeat = 0; repeat < 20; ++repeat) REQUIRE(runs(pool, count) == once(count));
      CHECK(runs(Executor(pool), count) == once(count));
    }
    CHECK(runs(pool, 0).empty());
    pool.parallel_for(-1, [](Index) { FAIL("there is no task"); });
  }
}

TEST_CASE("what tasks wrote is there when the call returns", "[thread_pool]") {
  const ThreadPool pool(4);
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<Index> values(64);
    pool.parallel_for(64, [&](Index i) { values[static_cast<std::size_t>(i)] = i + repeat; });
    for (Index i = 0; i < 64; ++i) REQUIRE(values[static_cast<std::size_t>(i)] == i + repeat);
  }
}

TEST_CASE("as many threads as asked for work at once, and no more", "[thread_pool]") {
  for (const int threads : {1, 2, 3, 4}) {
    INFO(threads << " threads");
    const ThreadPool pool(threads);

    Meeting meeting(threads);
    std::atomic<int> met{0};
    pool.parallel_for(threads, [&](Index) { met += meeting.attend() ? 1 : 0; });
    CHECK(met == threads);

    Crew crew;
    pool.parallel_for(200, [&](Index) { crew.work(); });
    CHECK(crew.most() <= threads);
    CHECK(crew.size() <= static_cast<std::size_t>(threads));
  }
}

TEST_CASE("the calling thread works too, alone on a pool of one", "[thread_pool]") {
  const auto caller = std::this_thread::get_id();
  std::vector<Index> order;
  ThreadPool(1).parallel_for(5, [&](Index i) {
    CHECK(std::this_thread::get_id() == caller);
    order.push_back(i);
  });
  CHECK(order == std::vector<Index>{0, 1, 2, 3, 4});

  // Two tasks that meet are on two threads; of a pool of two, one is the caller.
  Meeting meeting(2);
  std::atomic<bool> caller_came{false};
  ThreadPool(2).parallel_for(2, [&](Index) {
    if (std::this_thread::get_id() == caller) caller_came = true;
    (void)meeting.attend();
  });
  CHECK(caller_came);
}

TEST_CASE("long tasks do not hold up short ones", "[thread_pool]") {
  // Task 0 ends only after all others have, which would never be if some were put aside for its thread.
  const ThreadPool pool(2);
  Meeting others_done(2);
  std::atomic<int> left{99};
  std::atomic<bool> met{false};
  pool.parallel_for(100, [&](Index i) {
    if (i == 0)
      met = others_done.attend();
    else if (--left == 0)
      (void)others_done.attend();
  });
  CHECK(met);
}

TEST_CASE("a task may call the pool it runs on", "[thread_pool]") {
  for (const int threads : {1, 2, 4}) {
    INFO(threads << " threads");
    const ThreadPool pool(threads);
    for (int repeat = 0; repeat < 20; ++repeat) {
      Counts counts(8 * 7 * 6);
      pool.parallel_for(8, [&](Index i) {
        pool.parallel_for(7, [&](Index j) {
          pool.parallel_for(6, [&](Index k) { ++counts[static_cast<std::size_t>((i * 7 + j) * 6 + k)]; });
        });
      });
      REQUIRE(values_of(counts) == once(8 * 7 * 6));
    }
  }
}

TEST_CASE("several threads may call a pool at once", "[thread_pool]") {
  const ThreadPool pool(2);
  Meeting start(4);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&, t] {
      (void)start.attend();
      for (Index repeat = 0; repeat < 100; ++repeat) {
        const Index count = 1 + (repeat * 7 + t) % 50;
        if (runs(pool, count) != once(count)) ++wrong;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST_CASE("an exception of a task is thrown to the caller", "[thread_pool]") {
  for (const int threads : {1, 2, 4}) {
    INFO(threads << " threads");
    const ThreadPool pool(threads);
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::atomic<int> running{0};
      const auto call = [&] {
        pool.parallel_for(1000, [&](Index i) {
          ++running;
          if (i == 3) {
            --running;
            throw std::runtime_error("task 3");
          }
          --running;
        });
      };
      CHECK(message_of<std::runtime_error>(call) == "task 3");
      CHECK(running == 0);
      REQUIRE(runs(pool, 7) == once(7));
    }
    CHECK_THROWS_AS(pool.parallel_for(2, [](Index) { throw 7; }), int);
  }

  SECTION("out of a call within a task") {
    const ThreadPool pool(2);
    const auto call = [&] {
      pool.parallel_for(4, [&](Index) {
        pool.parallel_for(4, [](Index i) {
          if (i == 2) throw std::runtime_error("inner");
        });
      });
    };
    CHECK(message_of<std::runtime_error>(call) == "inner");
  }
}

TEST_CASE("an exception comes when no task is running any more", "[thread_pool]") {
  const ThreadPool pool(2);
  Meeting meeting(2);
  std::atomic<bool> finished{false};
  const auto call = [&] {
    pool.parallel_for(2, [&](Index i) {
      (void)meeting.attend();
      if (i == 0) throw std::runtime_error("task 0");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      finished = true;
    });
  };
  CHECK(message_of<std::runtime_error>(call) == "task 0");
  CHECK(finished);
}

TEST_CASE("the first exception counts, and later tasks are skipped", "[thread_pool]") {
  // Helpers that never come leave all tasks, in order, to the caller.
  LatePool late;
  Eigen::ThreadPoolDevice device(&late, 4);
  const ThreadPool pool(device);
  int ran = 0;
  const auto call = [&] {
    pool.parallel_for(10, [&](Index i) {
      ++ran;
      if (i >= 3) throw std::runtime_error("task " + std::to_string(i));
    });
  };
  CHECK(message_of<std::runtime_error>(call) == "task 3");
  CHECK(ran == 4);

  // Task 0 lets a helper run and fail at task 1 before it fails itself.
  late.kept.clear();
  ran = 0;
  const auto second = [&] {
    pool.parallel_for(10, [&](Index i) {
      ++ran;
      if (i == 0) late.kept.front()();
      throw std::runtime_error("task " + std::to_string(i));
    });
  };
  CHECK(message_of<std::runtime_error>(second) == "task 1");
  CHECK(ran == 2);
}

TEST_CASE("a pool may share the threads of the user's device", "[thread_pool]") {
  Eigen::ThreadPool eigen_pool(4);
  Eigen::ThreadPoolDevice device(&eigen_pool, 2);
  {
    const ThreadPool pool(device);
    CHECK(pool.threads() == 2);
    CHECK(&pool.device() == &device);
    CHECK(runs(pool, 1000) == once(1000));

    Meeting meeting(2);
    std::atomic<int> met{0};
    pool.parallel_for(2, [&](Index) { met += meeting.attend() ? 1 : 0; });
    CHECK(met == 2);

    Crew crew;
    pool.parallel_for(200, [&](Index) { crew.work(); });
    CHECK(crew.most() <= 2);
    CHECK(crew.size() <= 2);
  }
  // The device is still the user's.
  CHECK(runs(ThreadPool(device), 7) == once(7));
}

TEST_CASE("helpers are never waited for", "[thread_pool]") {
  LatePool late;
  Eigen::ThreadPoolDevice device(&late, 4);
  const ThreadPool pool(device);

  SECTION("one fewer than threads or tasks is called") {
    CHECK(runs(pool, 1000) == once(1000));
    CHECK(late.kept.size() == 3);
    CHECK(runs(pool, 2) == once(2));
    CHECK(late.kept.size() == 4);
    CHECK(runs(pool, 1) == once(1));
    CHECK(runs(pool, 0).empty());
    CHECK(late.kept.size() == 4);
  }
  SECTION("one that starts too late does not touch the task") {
    auto alive = std::make_unique<int>(0);  // a sanitizer would see it used
    {
      const auto task = [counter = alive.get()](Index) { ++*counter; };
      pool.parallel_for(5, task);
    }
    CHECK(*alive == 5);
    alive.reset();
    REQUIRE(late.kept.size() == 3);
    for (const auto& helper : late.kept) helper();
  }
  SECTION("one that starts within Schedule does it all") {
    EagerPool eager;
    Eigen::ThreadPoolDevice eager_device(&eager, 4);
    CHECK(runs(ThreadPool(eager_device), 1000) == once(1000));
    CHECK_THROWS_AS(ThreadPool(eager_device).parallel_for(5, [](Index) { throw 7; }), int);
  }
  SECTION("one that cannot be called is done without") {
    FullPool full;
    Eigen::ThreadPoolDevice full_device(&full, 4);
    CHECK(runs(ThreadPool(full_device), 1000) == once(1000));
    CHECK(full.kept.size() == 1);
  }
}

TEST_CASE("a pool may end while helpers are still queued", "[thread_pool]") {
  for (int repeat = 0; repeat < 50; ++repeat) {
    const ThreadPool pool(4);
    for (int call = 0; call < 10; ++call) REQUIRE(runs(pool, 3) == once(3));
  }
}

TEST_CASE("a pool has a thread", "[thread_pool]") {
  CHECK(message_of<posbias::OptionError>([] { ThreadPool(0); }) == "ThreadPool: threads = 0; it must be at least 1");
  CHECK(message_of<posbias::OptionError>([] { ThreadPool(-3); }) == "ThreadPool: threads = -3; it must be at least 1");
  LatePool late;
  Eigen::ThreadPoolDevice device(&late, 0);
  CHECK(message_of<posbias::OptionError>([&] { ThreadPool pool(device); }) ==
        "ThreadPool: device.numThreads() = 0; it must be at least 1");
}

TEST_CASE("a pool is a task runner that stays where it is", "[thread_pool]") {
  static_assert(posbias::TaskRunner<ThreadPool> && posbias::TaskRunner<const ThreadPool>);
  static_assert(!std::is_copy_constructible_v<ThreadPool> && !std::is_copy_assignable_v<ThreadPool>);
  static_assert(!std::is_move_constructible_v<ThreadPool> && !std::is_move_assignable_v<ThreadPool>);
  static_assert(!std::is_convertible_v<int, ThreadPool>);
  static_assert(!std::is_constructible_v<ThreadPool, Eigen::ThreadPoolDevice>, "a temporary device");
  SUCCEED();
}

namespace {

template <int Rank>
using Tensor = Eigen::Tensor<float, Rank, Eigen::RowMajor>;

template <class... Size>
auto numbers(std::uint64_t seed, Size... sizes) {
  Tensor<sizeof...(Size)> tensor(sizes...);
  posbias_test::Numbers values(seed);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<float>(values.value());
  return tensor;
}

template <class T>
bool same_bits(const T& a, const T& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof *a.data()) == 0;
}

}  // namespace

TEST_CASE("hooks give the same bits with a pool and without", "[thread_pool]") {
  const ThreadPool pool(4);
  const Executor executors[] = {{}, pool};

  SECTION("mod_mask") {
    const posbias::RelativePositionBias<float> module({.n_heads = 3}, 5);
    const auto grad_mask = numbers(2, 2, 3, 331, 157);
    Tensor<4> masks[2];
    Tensor<2> gradients[2];
    for (std::size_t e = 0; e < 2; ++e) {
      const posbias::PairPositions at{.q = posbias::Positions::range(100), .executor = executors[e]};
      masks[e] = numbers(1, 2, 3, 331, 157);
      module.mod_mask(masks[e], at);
      auto grads = module.zero_gradients();
      module.mod_mask_backward(grad_mask, at, grads);
      gradients[e] = grads.weight;
    }
    CHECK_FALSE(same_bits(masks[0], numbers(1, 2, 3, 331, 157)));
    CHECK(same_bits(masks[0], masks[1]));
    CHECK(same_bits(gradients[0], gradients[1]));
  }
  SECTION("mod_qkv") {
    const posbias::Rotary<float> module({.head_dim = 8, .learned_div = true});
    const auto v = numbers(3, 2, 331, 3, 8);
    Tensor<4> q[2], k[2], grad_q[2], grad_k[2];
    Tensor<0> gradients[2];
    for (std::size_t e = 0; e < 2; ++e) {
      const posbias::PairPositions at{.q_k = posbias::Positions::range(100), .executor = executors[e]};
      q[e] = numbers(1, 2, 331, 3, 8);
      k[e] = numbers(2, 2, 331, 3, 8);
      module.mod_qkv(q[e], k[e], v, at);
      grad_q[e] = numbers(4, 2, 331, 3, 8);
      grad_k[e] = numbers(5, 2, 331, 3, 8);
      auto grad_v = numbers(6, 2, 331, 3, 8);
      auto grads = module.zero_gradients();
      module.mod_qkv_backward(grad_q[e], grad_k[e], grad_v, q[e], k[e], v, at, grads);
      posbias::for_each_parameter(grads, [&](std::string_view, const auto& tensor) { gradients[e] = tensor; });
    }
    CHECK_FALSE(same_bits(q[0], numbers(1, 2, 331, 3, 8)));
    CHECK(gradients[0]() != 0);
    CHECK(same_bits(q[0], q[1]));
    CHECK(same_bits(k[0], k[1]));
    CHECK(same_bits(grad_q[0], grad_q[1]));
    CHECK(same_bits(grad_k[0], grad_k[1]));
    CHECK(same_bits(gradients[0], gradients[1]));
  }
}
