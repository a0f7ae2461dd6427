// SPDX-License-Identifier: MIT
/// \file
/// Names that other code may have brought along before it includes posbias: the macros of windows.h, and using-directives.
/// The standard library does not compile under these macros; posbias::io and posbias::parallel leave it to the user to
/// include it first, the core takes care of that itself.
#pragma once
#pragma GCC system_header

#include <algorithm>
#include <limits>
#include <unsupported/Eigen/CXX11/Tensor>

#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define near
#define far

namespace posbias {}
using namespace std;
using namespace Eigen;
using namespace posbias;

#include <posbias/posbias.hpp>

#undef min
#undef max
#include <atomic>
#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <span>
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
