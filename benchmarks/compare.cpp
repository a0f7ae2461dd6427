// SPDX-License-Identifier: MIT
#include "compare.hpp"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <posbias/parallel/thread_pool.hpp>
#include <utility>

namespace posbias_benchmarks {
namespace {

double seconds(const Run& run, int calls, Clock clock) {
  const double start = clock();
  for (int i = 0; i < calls; ++i) {
    run();
    benchmark::ClobberMemory();
  }
  return (clock() - start) / calls;
}

/// How often to call it for a time that a clock can tell. The first call is not asked: it warms up.
int calls_to_measure(const Run& run, Clock clock) {
  constexpr double shortest = 50e-6;
  int calls = 1;
  if (seconds(run, 1, clock) > 100 * shortest) return calls;
  while (seconds(run, calls, clock) * calls < shortest) calls *= 2;
  return calls;
}

/// What a call of each piece takes.
std::vector<double> round(const std::vector<Run>& pieces, const std::vector<int>& calls, Clock clock) {
  std::vector<double> result;
  for (std::size_t i = 0; i < pieces.size(); ++i) result.push_back(seconds(pieces[i], calls[i], clock));
  return result;
}

Run on(const Task& task, const posbias::Executor& executor) {
  return [&task, executor] { task(executor); };
}

}  // namespace

double wall_time() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double thread_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Rounds in_turn(const std::vector<Run>& pieces, Clock clock) {
  constexpr double budget = 0.4;
  constexpr std::size_t fewest = 3;
  std::vector<int> calls;
  for (const Run& piece : pieces) calls.push_back(calls_to_measure(piece, clock));
  Rounds rounds;
  for (const double start = wall_time(); rounds.size() < fewest || wall_time() - start < budget;)
    rounds.push_back(round(pieces, calls, clock));
  return rounds;
}

Rounds in_turn(const std::vector<Run>& pieces, Clock clock, int rounds) {
  Rounds result;
  for (int i = 0; i < rounds; ++i) result.push_back(round(pieces, std::vector<int>(pieces.size(), 1), clock));
  return result;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double median_of(const Rounds& rounds, std::size_t piece) {
  std::vector<double> values;
  for (const auto& round : rounds) values.push_back(round[piece]);
  return median(std::move(values));
}

void show(State& state, const std::string& figure, const Rounds& rounds, std::size_t work,
          const std::function<double(const std::vector<double>&)>& of_round, const Target& target) {
  std::vector<double> values;
  for (const auto& round : rounds) values.push_back(of_round(round));
  const double middle = median(values);
  std::sort(values.begin(), values.end());
  auto& counters = state.counters;
  counters[figure] = middle;
  counters["min"] = values.front();
  counters["low"] = values[values.size() / 4];
  counters["high"] = values[values.size() - 1 - values.size() / 4];
  counters["max"] = values.back();
  counters["rounds"] = static_cast<double>(values.size());
  if (!target.name.empty()) {
    counters[target.name] = target.value;
    counters["met"] = (target.name == "at_most" ? middle <= target.value : middle >= target.value) ? 1 : 0;
  }
  for (auto _ : state) state.SetIterationTime(median_of(rounds, work));
}

void add(const Row& row, std::function<void(State&, const Row&)> measure) {
  add_benchmark(row.kind + "/" + row.work + "/" + row.shape, [row, measure = std::move(measure)](State& state) {
    state.SetLabel(row.beside);
    measure(state, row);
  });
}

void add_forward(const Row& row, const MakeSubject& make) {
  add(row, [make](State& state, const Row& at) {
    const Subject subject = make();
    const Rounds rounds = in_turn({on(subject.bound, {}), on(subject.forward, {})});
    show(
        state, "ratio", rounds, 1, [](const auto& t) { return t[1] / t[0]; }, at.target);
  });
}

void add_backward(const std::string& work, const std::string& shape, const MakeSubject& make, Limit limit) {
  add_forward({"backward", work, shape, "its forward", at_most(3)}, [make] {
    Subject subject = make();
    subject.bound = std::exchange(subject.forward, subject.backward);
    return subject;
  });
  add_two_threads(work, shape, make, limit, &Subject::backward);
}

void add_two_threads(const std::string& work, const std::string& shape, const MakeSubject& make, Limit limit,
                     Task Subject::*part) {
  const bool memory = limit == Limit::memory;
  const std::string beside = memory ? "one (target: its bound's)" : "one";
  const std::string kind = part == &Subject::forward ? "two threads" : "two threads, backward";
  add({kind, work, shape, beside, at_least(1.8)}, [=](State& state, const Row& row) {
    const Subject subject = make();
    const posbias::ThreadPool pool(2);
    std::vector<Run> pieces{on(subject.*part, {}), on(subject.*part, pool)};
    if (memory) pieces.insert(pieces.end(), {on(subject.bound, {}), on(subject.bound, pool)});
    const Rounds rounds = in_turn(pieces, wall_time);
    // No more is asked of memory than of arithmetic.
    const double least =
        memory ? std::min(row.target.value, median_of(rounds, 2) / median_of(rounds, 3)) : row.target.value;
    show(
        state, "speedup", rounds, 1, [](const auto& t) { return t[0] / t[1]; }, at_least(least));
  });
}

}  // namespace posbias_benchmarks
