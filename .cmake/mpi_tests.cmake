# attn_add_mpi_test(<name> <target> RANKS <n>... [ARGUMENTS <argument>...]): a test <name>/<n> for each number of ranks.

function(attn_add_mpi_test name target)
  cmake_parse_arguments(PARSE_ARGV 2 asked "" "" "RANKS;ARGUMENTS")
  file(STRINGS "${PROJECT_SOURCE_DIR}/.ci/mpi_environment" environment REGEX "^[A-Z]")
  list(APPEND environment ASAN_OPTIONS=detect_leaks=0 GTEST_COLOR=no)  # leaks: Open MPI's own; tests/run counts the lines
  foreach(ranks IN LISTS asked_RANKS)
    add_test(NAME ${name}/${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks}
      $<TARGET_FILE:${target}> ${asked_ARGUMENTS})
    set_tests_properties(${name}/${ranks} PROPERTIES ENVIRONMENT "${environment}" PROCESSORS 2 TIMEOUT 300)
  endforeach()
endfunction()
