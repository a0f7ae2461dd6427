# SPDX-License-Identifier: MIT
# cmake "-DCOMMAND=compiler;options" -DINCLUDE=include -DSOURCE=file.cpp -P macros.cmake
# posbias.hpp defines no macros but its version's: compares those after it with those after what else it includes.
cmake_minimum_required(VERSION 3.25)

file(GLOB_RECURSE headers ${INCLUDE}/posbias/*.hpp)
list(FILTER headers EXCLUDE REGEX "/posbias/(io|parallel)/")
set(before "")
foreach(header IN LISTS headers)
  file(STRINGS ${header} includes REGEX "^#include <")
  string(APPEND before "${includes};")
endforeach()
string(REPLACE ";" "\n" before "${before}")

# macros_after(TEXT RESULT): the names of macros after preprocessing TEXT.
function(macros_after text result)
  file(WRITE ${SOURCE} "${text}")
  execute_process(COMMAND ${COMMAND} -dM -E ${SOURCE} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "#define [A-Za-z_0-9]+" names "${output}")
  set(${result} "${names}" PARENT_SCOPE)
endfunction()

macros_after("${before}" known)
macros_after("${before}\n#include <posbias/posbias.hpp>\n" all)
list(LENGTH known count)
list(REMOVE_ITEM all ${known})
list(SORT all)
string(REPLACE "#define " "" all "${all}")
message("${count} macros before, these are new: ${all}")
if(NOT all STREQUAL "POSBIAS_VERSION_MAJOR;POSBIAS_VERSION_MINOR;POSBIAS_VERSION_PATCH")
  message(FATAL_ERROR "posbias.hpp may define its version alone")
endif()
