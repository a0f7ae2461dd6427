// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <ostream>
#include <string_view>
#include <utility>

namespace posbias_benchmarks {
namespace {

using Run = benchmark::BenchmarkReporter::Run;

/// A number to three digits, and what stands behind it.
std::string digits(double value, std::string_view unit = "") {
  const int decimals = std::abs(value) >= 100 ? 0 : std::abs(value) >= 10 ? 1 : 2;
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  return text.data() + std::string(unit);
}

std::string time_text(double seconds) {
  constexpr std::array<std::pair<double, std::string_view>, 4> units{
      {{1, " s"}, {1e3, " ms"}, {1e6, " us"}, {1e9, " ns"}}};
  const auto unit = std::find_if(units.begin(), units.end() - 1,
                                 [&](const auto& candidate) { return seconds * candidate.first >= 1; });
  return digits(seconds * unit->first, unit->second);
}

double seconds_of(const Run& run) {
  return run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit);
}

/// A line of texts in columns, to the left where a width is negative.
template <std::size_t Size>
std::string line(const std::array<int, Size>& widths, const std::array<std::string, Size>& texts) {
  std::string result;
  for (std::size_t i = 0; i < Size; ++i) {
    const auto width = static_cast<std::size_t>(std::abs(widths[i]));
    const std::string padding(width > texts[i].size() ? width - texts[i].size() : 0, ' ');
    result += (i == 0 ? "" : "  ") + (widths[i] < 0 ? texts[i] + padding : padding + texts[i]);
  }
  return result.substr(0, result.find_last_not_of(' ') + 1) + '\n';
}

/// The name is kind/work/shape.
std::string part(const Run& run, int index) {
  std::string_view name = run.run_name.function_name;
  for (; index > 0; --index) name.remove_prefix(std::min(name.find('/'), name.size() - 1) + 1);
  return std::string(name.substr(0, name.find('/')));
}

bool has(const Run& run, const std::string& counter) {
  return run.counters.count(counter) != 0;
}
double counter(const Run& run, const std::string& name) {
  return run.counters.at(name).value;
}

std::string target(const Run& run) {
  for (const auto& [name, sign] : {std::pair("at_most", "<= "), std::pair("at_least", ">= ")})
    if (has(run, name)) return sign + digits(counter(run, name));
  return "-";
}

std::string figure(const Run& run) {
  for (const char* name : {"ratio", "speedup"})
    if (has(run, name)) return digits(counter(run, name));
  if (has(run, "seconds")) return digits(counter(run, "seconds"), " s");
  const double more = counter(run, "seconds_more");
  return (more < 0 ? "" : "+") + digits(more, " s");
}

std::string caches() {
  std::string result;
  for (const auto& cache : benchmark::CPUInfo::Get().caches)
    if (cache.type != "Instruction")
      result += ", L" + std::to_string(cache.level) + " " +
                (cache.size < 1 << 20 ? std::to_string(cache.size >> 10) + " KiB"
                                      : std::to_string(cache.size >> 20) + " MiB") +
                (cache.num_sharing > 1 ? " shared by " + std::to_string(cache.num_sharing) : "");
  return result;
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "processor unknown";
}

/// What it ran on, and what made it.
std::string machine() {
  std::array<char, 32> date;
  const std::time_t now = std::time(nullptr);
  std::strftime(date.data(), date.size(), "%Y-%m-%d", std::gmtime(&now));
  const auto number = [](int value) { return std::to_string(value); };
  return processor() + ", " + number(benchmark::CPUInfo::Get().num_cpus) + " cores" + caches() +
         "\n" POSBIAS_BENCHMARKS_COMPILER ", Eigen " + number(EIGEN_WORLD_VERSION) + "." + number(EIGEN_MAJOR_VERSION) +
         "." + number(EIGEN_MINOR_VERSION) + ", " + date.data() + "\n";
}

constexpr std::string_view growth = "growth";

/// Headings, in the order of the table; others follow.
constexpr std::array headings = {
    "bias",
    "make_mask",
    "mod_mask",
    "mod_mask, packed",
    "mod_mask, ColMajor",
    "mod_mask, real positions",
    "buckets",
    "mod_qkv",
    "mod_x",
    "attention",
    "RelativeAttention",
    "backward",
    "two threads",
    "two threads, backward",
};

}  // namespace

Report::Report() {
  for (const char* heading : headings) kinds_.emplace_back(heading, Runs{});
}

void Report::ReportRuns(const Runs& runs) {
  for (const Run& run : runs) {
    const std::string kind = part(run, 0);
    if (kind != growth && run.run_type == Run::RT_Aggregate) continue;
    auto found = std::find_if(kinds_.begin(), kinds_.end(), [&](const auto& known) { return known.first == kind; });
    if (found == kinds_.end()) found = kinds_.insert(found, {kind, {}});
    found->second.push_back(run);
    if (run.run_type == Run::RT_Iteration)
      GetErrorStream() << '[' << ++done_ << "] " << run.run_name.function_name << "  "
                       << (kind == growth ? time_text(seconds_of(run)) : figure(run)) << std::endl;
  }
}

void Report::Finalize() {
  GetOutputStream() << '\n';
  print_rows();
  print_growth();
  GetOutputStream() << machine() << std::flush;
}

void Report::print_rows() const {
  constexpr std::array<int, 8> widths = {-35, -13, 7, -25, 7, 9, 7, -3};
  std::ostream& out = GetOutputStream();
  int asked = 0, met = 0;
  if (std::all_of(kinds_.begin(), kinds_.end(),
                  [](const auto& kind) { return kind.first == growth || kind.second.empty(); }))
    return;
  out << line<8>(widths, {"work", "shape", "time", "beside", "ratio", "half of", "target", "met"})
      << line<8>(widths, {"", "", "", "", "", "rounds", "", ""});
  for (const auto& [kind, runs] : kinds_) {
    if (kind == growth || runs.empty()) continue;
    out << '\n' << kind << '\n';
    for (const Run& run : runs) {
      const bool has_target = has(run, "met"), is_met = has_target && counter(run, "met") != 0;
      asked += has_target;
      met += is_met;
      out << line<8>(widths,
                     {"  " + part(run, 1), part(run, 2), time_text(seconds_of(run)), run.report_label, figure(run),
                      digits(counter(run, "low")) + "-" + digits(counter(run, "high")), target(run),
                      !has_target ? ""
                      : is_met    ? "yes"
                                  : "no"});
    }
  }
  out << '\n' << met << " of " << asked << " targets met\n\n";
}

void Report::print_growth() const {
  constexpr std::array<int, 6> widths = {-35, 17, 19, 14, 9, 9};
  std::ostream& out = GetOutputStream();
  const auto found = std::find_if(kinds_.begin(), kinds_.end(), [](const auto& kind) { return kind.first == growth; });
  if (found == kinds_.end()) return;
  out << line<6>(widths, {"growth with N", "N", "time", "fit", "RMS", "from ends"});
  const auto ends = [](const auto& first, const auto& last) { return first + " .. " + last; };
  const Run *first = nullptr, *last = nullptr, *fit = nullptr;
  for (const Run& run : found->second) {
    if (run.report_big_o) {
      fit = &run;
    } else if (!run.report_rms) {
      first = first == nullptr ? &run : first;
      last = &run;
    } else {
      const double n0 = static_cast<double>(first->complexity_n), n1 = static_cast<double>(last->complexity_n);
      const double t0 = seconds_of(*first), t1 = seconds_of(*last);
      const std::string power = fit->complexity == benchmark::o1   ? ""
                                : fit->complexity == benchmark::oN ? " N"
                                                                   : " N^2";
      out << line<6>(
          widths,
          {"  " + part(run, 1), ends(std::to_string(first->complexity_n), std::to_string(last->complexity_n)),
           ends(time_text(t0), time_text(t1)), time_text(seconds_of(*fit)) + power,
           digits(100 * run.GetAdjustedRealTime(), " %"), "N^" + digits(std::log(t1 / t0) / std::log(n1 / n0))});
      first = nullptr;
    }
  }
  out << '\n';
}

}  // namespace posbias_benchmarks
