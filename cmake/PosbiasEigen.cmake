# SPDX-License-Identifier: MIT
# Finds Eigen 3.4 or later, 5 included.
#
# The version is compared here and not by find_package: Eigen 3.4.0 rejects version ranges, and Eigen 5 does not
# count itself compatible with a plain 3.4.

# posbias_find_eigen([FETCH]): defines Eigen3::Eigen, downloading it with FETCH if none is installed, or sets
# POSBIAS_EIGEN_PROBLEM.
macro(posbias_find_eigen)
  set(POSBIAS_EIGEN_PROBLEM "")
  if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 QUIET NO_MODULE)
  endif()
  if(NOT TARGET Eigen3::Eigen AND "${ARGN}" STREQUAL "FETCH")
    message(STATUS "posbias: no Eigen installed, fetching Eigen 3.4.0")
    include(FetchContent)
    FetchContent_Declare(Eigen3
      URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
      URL_HASH SHA256=8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72
      # Only the headers: Eigen's own build would add its tests and options to ours.
      SOURCE_SUBDIR no-build
    )
    FetchContent_MakeAvailable(Eigen3)
    # Imported, so that an installed posbias asks for the Eigen of its user and not for this download.
    add_library(Eigen3::Eigen INTERFACE IMPORTED GLOBAL)
    target_include_directories(Eigen3::Eigen INTERFACE ${eigen3_SOURCE_DIR})
    set(Eigen3_VERSION 3.4.0)
  endif()
  if(NOT TARGET Eigen3::Eigen)
    set(POSBIAS_EIGEN_PROBLEM "posbias needs Eigen 3.4 or later (Debian, Ubuntu: libeigen3-dev)")
  elseif(DEFINED Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS 3.4)
    set(POSBIAS_EIGEN_PROBLEM "posbias needs Eigen 3.4 or later; found ${Eigen3_VERSION}")
  endif()
endmacro()
