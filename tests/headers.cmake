# SPDX-License-Identifier: MIT
# cmake -DCOMPILER=compiler -DINCLUDE=include -DEIGEN=folder -P headers.cmake
# Every header compiles after Eigen's tensors, which are compiled once, and after nothing else.
cmake_minimum_required(VERSION 3.25)

set(command ${COMPILER} -std=c++20 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -I${INCLUDE} -isystem ${EIGEN})
file(WRITE headers/eigen.hpp "#include <unsupported/Eigen/CXX11/Tensor>\n")
set(precompiled headers/eigen.hpp.gch)  # clang++ looks for this name, too
execute_process(COMMAND ${command} -x c++-header headers/eigen.hpp -o ${precompiled} COMMAND_ERROR_IS_FATAL ANY)

file(GLOB_RECURSE headers RELATIVE ${INCLUDE} ${INCLUDE}/posbias/*.hpp)
foreach(header IN LISTS headers)
  file(WRITE headers/header.cpp "#include \"${header}\"\n")
  execute_process(COMMAND ${command} -fsyntax-only -include headers/eigen.hpp headers/header.cpp RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(SEND_ERROR "${header} does not compile by itself")
  endif()
endforeach()
file(REMOVE ${precompiled})
