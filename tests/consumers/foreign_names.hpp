// SPDX-License-Identifier: MIT
/// \file
/// Names that other code may have brought along before it includes posbias: the macros of windows.h, and using-directives.
/// The standard library does not compile under these macros, so its headers come first, those that Eigen includes for threads
/// among them.
#pragma once
#pragma GCC system_header

#include <atomic>
#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <ranges>
#include <set>
#include <span>
#include <unsupported/Eigen/CXX11/Tensor>

#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define near
#define far

namespace posbias {}
using namespace std;
using namespace Eigen;
using namespace posbias;
