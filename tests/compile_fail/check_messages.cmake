# SPDX-License-Identifier: MIT
# cmake -DSOURCE=mistakes.cpp "-DCOMMAND=compiler;options" -P check_messages.cmake
# Compiles the source without its mistakes, which must succeed, and with them: then there must be one error below each
# `expect:`, with what is expected in its text, and no others.
cmake_minimum_required(VERSION 3.25)

execute_process(COMMAND ${COMMAND} -DMISTAKEN=false ${SOURCE} ERROR_VARIABLE output RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "Without the mistakes it must compile:\n${output}")
endif()

execute_process(COMMAND ${COMMAND} -DMISTAKEN=true ${SOURCE} ERROR_VARIABLE output RESULT_VARIABLE result)
string(REGEX MATCHALL ":[0-9]+:[0-9]+: error: " errors "${output}")
list(LENGTH errors errors)
cmake_path(GET SOURCE FILENAME name)

file(READ ${SOURCE} text)
set(line 0)
set(expected 0)
while(text MATCHES "^([^\n]*)\n")
  math(EXPR line "${line} + 1")
  set(content "${CMAKE_MATCH_1}")
  string(FIND "${text}" "\n" end)
  math(EXPR end "${end} + 1")
  string(SUBSTRING "${text}" ${end} -1 text)
  if(content MATCHES "// expect: (.*)$")
    set(message "${CMAKE_MATCH_1}")
    math(EXPR expected "${expected} + 1")
    math(EXPR below "${line} + 1")
    # From the error at that line up to the next one.
    string(FIND "${output}" "${name}:${below}:" begin)
    if(begin EQUAL -1)
      message(SEND_ERROR "Line ${below} compiles; expected: ${message}")
      continue()
    endif()
    string(SUBSTRING "${output}" ${begin} -1 said)
    string(REGEX REPLACE "^([^\n]*: error: )" "" said "${said}")
    string(REGEX REPLACE "\n[^\n]*:[0-9]+:[0-9]+: error: .*" "" said "${said}")
    if(NOT said MATCHES "${message}")
      message(SEND_ERROR "Line ${below}: expected ${message}; the compiler says:\n${said}")
    endif()
  endif()
endwhile()

if(expected EQUAL 0 OR NOT errors EQUAL expected)
  message(FATAL_ERROR "${expected} errors are expected, there are ${errors}:\n${output}")
endif()
message("${expected} mistakes are refused with the messages expected")
