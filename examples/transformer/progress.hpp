// SPDX-License-Identifier: MIT
/// \file
/// A progress bar on stderr, if someone is looking: on a terminal it draws itself, else it stays silent.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

#include "transformer/shape.hpp"

namespace demo {

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  /// `total` steps are coming, over all schemes.
  explicit Progress(Index total) : total_(total) {}

  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// One more step is done. Redraws ten times a second at most.
  void step(std::string_view scheme, Index step, Index steps, double bits) {
    ++done_;
    const auto now = Clock::now();
    if (!visible_ || now - drawn_ < std::chrono::milliseconds(100)) return;
    drawn_ = now;
    const double share = static_cast<double>(done_) / static_cast<double>(std::max<Index>(total_, 1));
    const double elapsed = std::chrono::duration<double>(now - started_).count();
    const auto left = static_cast<int>(elapsed * (1 - share) / share);
    const std::string bar(static_cast<std::size_t>(share * bar_width), '=');
    std::fprintf(stderr, "\r\033[K[%-*s] %.*s  step %td/%td  %.3f bits/char  %d:%02d left", bar_width, bar.c_str(),
                 static_cast<int>(scheme.size()), scheme.data(), step, steps, bits, left / 60, left % 60);
    std::fflush(stderr);
  }

  /// Wipes the bar, so that the line is free for output.
  void clear() const {
    if (visible_) std::fputs("\r\033[K", stderr);
  }

 private:
  static constexpr int bar_width = 30;

  static bool stderr_is_terminal() {
#ifdef _WIN32
    return _isatty(_fileno(stderr)) != 0;
#else
    return isatty(STDERR_FILENO) != 0;
#endif
  }

  const bool visible_ = stderr_is_terminal();
  const Index total_;
  Index done_ = 0;
  const Clock::time_point started_ = Clock::now();
  Clock::time_point drawn_{};
};

}  // namespace demo
