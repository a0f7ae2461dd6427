// SPDX-License-Identifier: MIT
/// \file
/// Pieces of work that run in turn, so that what disturbs one disturbs the others, and the rows of the table they make.
///
/// The figure of a row is the median over the rounds of what one round gives: the time of the work over that of what it
/// stands beside. That is what counts; times on shared machines are noise, and the spread of the rounds shows how much.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <posbias/core/executor.hpp>
#include <string>
#include <utility>
#include <vector>

namespace posbias_benchmarks {

using benchmark::State;
using Run = std::function<void()>;

/// What a figure should be; nothing is asked of it if there is no name.
struct Target {
  std::string name{};  ///< "at_most" or "at_least"
  double value = 0;
};
inline Target at_most(double value) {
  return {"at_most", value};
}
inline Target at_least(double value) {
  return {"at_least", value};
}

/// A row of the table. None of its texts may have a slash: kind/work/shape is the name to filter by.
struct Row {
  std::string kind, work, shape, beside;
  Target target{};
};

/// Seconds a call of each piece of work took in each round.
using Rounds = std::vector<std::vector<double>>;

/// Tells seconds from some start on.
using Clock = double (*)();
double wall_time();
/// The calling thread's time on a processor, which others on the machine cannot lengthen by taking it away.
double thread_time();

/// Runs the pieces in turn for a while, but three times at least.
Rounds in_turn(const std::vector<Run>& pieces, Clock clock = thread_time);

/// Runs the pieces in turn, once each in a round, without warming up: for those that take seconds.
Rounds in_turn(const std::vector<Run>& pieces, Clock clock, int rounds);

/// The median of an odd number of values; of an even number the upper of the two in the middle.
double median(std::vector<double> values);

/// The time of a benchmark, for one call.
double median_of(const Rounds& rounds, std::size_t piece);

/// Shows `figure` ("ratio", "speedup", "seconds" or "seconds_more"), which each round gives by itself, beside its target.
void show(State& state, const std::string& figure, const Rounds& rounds, std::size_t work,
          const std::function<double(const std::vector<double>&)>& of_round, const Target& target);

/// Registers a benchmark that measures its own time. One iteration is all its rounds.
inline auto* add_benchmark(const std::string& name, std::function<void(State&)> run) {
  return benchmark::RegisterBenchmark(name.c_str(), std::move(run))
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

/// Registers a row; its tensors exist only while it runs.
void add(const Row& row, std::function<void(State&, const Row&)> measure);

/// Some work on tensors of its own, on the calling thread or on those of an executor.
using Task = std::function<void(const posbias::Executor&)>;

/// What a module does: its work and its adjoint, and the least that could be done in its place.
struct Subject {
  Task forward, bound, backward{};
};
using MakeSubject = std::function<Subject()>;

/// What keeps two threads from taking half the time of one.
enum class Limit { arithmetic, memory };

/// The work beside its bound.
void add_forward(const Row& row, const MakeSubject& make);

/// The adjoint beside the work, which it should take at most three times as long as; on two threads as well.
void add_backward(const std::string& work, const std::string& shape, const MakeSubject& make, Limit limit);

/// The work (or its adjoint) on one thread beside two: at least 1.8 times as fast, or, if memory is the limit, as many
/// times as its bound is on the same threads.
void add_two_threads(const std::string& work, const std::string& shape, const MakeSubject& make, Limit limit,
                     Task Subject::*part = &Subject::forward);

}  // namespace posbias_benchmarks
