# What is made of the headers where somebody asks for it: attn_single_header and attn_docs.

file(GLOB_RECURSE headers CONFIGURE_DEPENDS include/attn/*.h)

# The whole library in one file, included as <attn/attn.h> with -I single_header.
set(single_header "${PROJECT_BINARY_DIR}/single_header/attn/attn.h")
add_custom_command(OUTPUT "${single_header}"
  COMMAND ${CMAKE_COMMAND} "-DINCLUDE=${PROJECT_SOURCE_DIR}/include" "-DLICENSE=${PROJECT_SOURCE_DIR}/LICENSE"
    "-DOUTPUT=${single_header}" -P "${PROJECT_SOURCE_DIR}/.cmake/single_header.cmake"
  DEPENDS ${headers} LICENSE .cmake/single_header.cmake
  COMMENT "Writing ${single_header}" VERBATIM)
add_custom_target(attn_single_header DEPENDS "${single_header}")

# The reference, of the public headers, with the README in front: docs/index.html. A warning is an error.
find_program(ATTN_DOXYGEN doxygen DOC "Doxygen, for the target attn_docs")
if(ATTN_DOXYGEN)
  file(RELATIVE_PATH attn_source_from_docs "${PROJECT_BINARY_DIR}/docs" "${PROJECT_SOURCE_DIR}")
  configure_file(.cmake/docs/Doxyfile.in "${PROJECT_BINARY_DIR}/Doxyfile" @ONLY)
  add_custom_target(attn_docs COMMAND ${ATTN_DOXYGEN} "${PROJECT_BINARY_DIR}/Doxyfile"
    COMMENT "Writing ${PROJECT_BINARY_DIR}/docs/index.html" VERBATIM)
else()
  add_custom_target(attn_docs COMMAND ${CMAKE_COMMAND} -E echo
    "attn_docs needs doxygen (Debian, Ubuntu: apt install doxygen); then configure again" COMMAND ${CMAKE_COMMAND} -E false
    VERBATIM)
endif()
