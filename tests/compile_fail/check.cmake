# cmake -DNAME=<name> -DSOURCE=<file> -DCASES=<k,k,...> -DTOGETHER=<bool> -P check.cmake -- <compiler and flags>
# The file must compile without a mistake. With each mistake alone it must not, and one of the error
# lines must match the file's expectation for it.
#
# Most mistakes show together: an error that the compiler traces back to the line of a mistake is
# that mistake's, whatever else is wrong in the file. TOGETHER: compile all of them at once first, and
# then by itself only what this has not shown (an error that two of them share is reported once).

cmake_minimum_required(VERSION 3.22)

set(compile "")
set(after_dashes FALSE)
foreach(i RANGE ${CMAKE_ARGC})
  if(after_dashes)
    list(APPEND compile "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(after_dashes TRUE)
  endif()
endforeach()
string(REPLACE "," ";" CASES "${CASES}")
file(READ "${SOURCE}" text)
foreach(case IN LISTS CASES)
  string(REGEX MATCH "// expect( ${case})?: ([^\n]+)" line "${text}")
  set(expected_${case} "${CMAKE_MATCH_2}")
endforeach()

# English, whatever the user's locale.
set(ENV{LC_ALL} C)
function(compile_with case should_fail)
  execute_process(
    COMMAND ${compile} "-DCASE=${case}" -DSHOULD_FAIL=${should_fail} "${SOURCE}"
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REPLACE ";" "," output "${output}")  # one element of a list
  # Only lines with "error:"; notes quote the source, which may quote the message.
  string(REGEX MATCHALL "[^\n]*error:[^\n]*" errors "${output}")
  list(JOIN errors "\n" errors)
  foreach(variable IN ITEMS result output errors)
    set(${variable} "${${variable}}" PARENT_SCOPE)
  endforeach()
endfunction()

# The lines of the file that belong to a case: case_of_<line>.
function(find_cases)
  string(REPLACE ";" "," lines "${text}")
  string(REGEX REPLACE "[][]" "|" lines "${lines}")
  string(REPLACE "\n" ";" lines "${lines}")
  set(number 0)
  set(case "")
  foreach(line IN LISTS lines)
    math(EXPR number "${number} + 1")
    if(line MATCHES "^#(if|elif) CASE == ([0-9]+)")
      set(case ${CMAKE_MATCH_2})
    elseif(line MATCHES "^#if SHOULD_FAIL")
      set(case 1)
    elseif(line MATCHES "^#(else|elif|endif)")
      set(case "")
    elseif(case)
      set(case_of_${number} ${case} PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

# g++ writes before an error in a template what has instantiated it, last the line of this file.
function(find_shown)
  string(REGEX REPLACE "([][.+*?()^$])" "\\\\\\1" file "${SOURCE}")
  string(REGEX MATCHALL
    "[^\n]*(: In |required from here|error:)[^\n]*" lines "${output}")
  set(case "")
  foreach(line IN LISTS lines)
    if(line MATCHES "^${file}:([0-9]+):[0-9]+: +(required from here|error:)")
      set(case "${case_of_${CMAKE_MATCH_1}}")
    elseif(line MATCHES ": In ")
      set(case "")
    endif()
    if(case AND line MATCHES "error:" AND line MATCHES "${expected_${case}}")
      set(shown_${case} TRUE PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

list(LENGTH CASES count)
math(EXPR count "${count} + 1")
message("[==========] Running ${count} tests, a file and its mistakes.")
set(failed 0)
macro(report case ok)
  if(${ok})
    message("[       OK ] compile_fail/${NAME}.${case}")
  else()
    message("[  FAILED  ] compile_fail/${NAME}.${case}: ${ARGN}\n${errors}")
    set(failed 1)
  endif()
endmacro()

compile_with(0 0)
set(compiles FALSE)
if(result EQUAL 0)
  set(compiles TRUE)
endif()
report(twins ${compiles} "must compile")

if(TOGETHER)
  find_cases()
  compile_with("1 || 1" 1)  # CASE == k holds for every k
  find_shown()
endif()
foreach(case IN LISTS CASES)
  if(shown_${case})
    report(${case} TRUE)
    continue()
  endif()
  compile_with(${case} 1)
  if(result EQUAL 0)
    report(${case} FALSE "compiles, but must not")
    continue()
  endif()
  set(says FALSE)
  if(errors MATCHES "${expected_${case}}")
    set(says TRUE)
  endif()
  report(${case} ${says} "fails as it must, but no error matches\n  ${expected_${case}}")
endforeach()
if(failed)
  message(FATAL_ERROR "${SOURCE}: not all is refused as it must be")
endif()
