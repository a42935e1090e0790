# cmake -DREADME=<file> -DPROLOGUE=<file> -P readme.cmake: makes programs of the README's C++ blocks.
#
#   first.cpp     the first block, a program, and expected.txt, the output that its last comment promises
#   snippets.cpp  the prologue (what the snippets take for granted), then all other blocks in the order in which they
#                 stand, in one function: each is compiled and run behind the others, and named before it runs
#   attend.h …    blocks that begin with a comment "// attend.h: …", as the files that they name; snippets.cpp includes the
#                 headers among them
cmake_minimum_required(VERSION 3.22)
file(READ "${README}" text)

set(fence "```cpp\n")
set(line 1)
set(blocks 0)
set(snippets "")
set(includes "")
while(TRUE)
  string(FIND "${text}" "${fence}" begin)
  if(begin EQUAL -1)
    break()
  endif()
  string(SUBSTRING "${text}" 0 ${begin} before)
  string(LENGTH "${fence}" length)
  math(EXPR begin "${begin} + ${length}")
  string(SUBSTRING "${text}" ${begin} -1 text)
  string(FIND "${text}" "```" end)
  string(SUBSTRING "${text}" 0 ${end} block)
  string(SUBSTRING "${text}" ${end} -1 text)

  string(REGEX REPLACE "[^\n]" "" breaks "${before}\n")
  string(LENGTH "${breaks}" breaks)
  math(EXPR line "${line} + ${breaks}")
  math(EXPR blocks "${blocks} + 1")
  if(blocks EQUAL 1)
    set(program "${block}")
  elseif(block MATCHES "^// ([a-z_]+[.](h|cpp)): ")
    file(WRITE ${CMAKE_MATCH_1} "#line ${line} \"${README}\"\n${block}")
    if(CMAKE_MATCH_2 STREQUAL "h")
      string(APPEND includes "#include \"${CMAKE_MATCH_1}\"\n")
    endif()
  else()
    string(APPEND snippets "std::puts(\"README.md:${line}\");\n#line ${line} \"${README}\"\n${block}")
  endif()
  string(REGEX REPLACE "[^\n]" "" breaks "${block}")
  string(LENGTH "${breaks}" breaks)
  math(EXPR line "${line} + ${breaks}")
endwhile()

if(NOT program MATCHES "int main" OR blocks LESS 2)
  message(FATAL_ERROR "the first C++ block of ${README} is no program, or the only one")
endif()
file(WRITE first.cpp "${program}")
string(REGEX MATCH "// ([-0-9. ]+)\n}" last "${program}")
if(NOT last)
  message(FATAL_ERROR "the program does not say in its last comment what it prints")
endif()
file(WRITE expected.txt "${CMAKE_MATCH_1}\n")

file(READ "${PROLOGUE}" prologue)
file(WRITE snippets.cpp "${includes}${prologue}${snippets}}\n\n"
  "int main() {\n"
  "  try {\n    snippets();\n"
  "  } catch (const std::exception& error) {\n    std::puts(error.what());\n    return 1;\n  }\n}\n")
