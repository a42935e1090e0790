# What `cmake --install` copies, so that find_package(attn) works.

# A part of another project, which installs only its own files. Its install(EXPORT) of a target that links attn::attn wants
# attn in an export set all the same; users of what it installs call find_package(attn) for theirs.
if(NOT ATTN_INSTALL)
  install(TARGETS attn EXPORT attn)  # no files: an interface
  install(EXPORT attn NAMESPACE attn:: FILE attnTargets.cmake DESTINATION share/cmake/attn
    COMPONENT attn EXCLUDE_FROM_ALL)
  return()
endif()

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(attn_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/attn")

install(DIRECTORY include/attn DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(TARGETS attn EXPORT attn INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT attn NAMESPACE attn:: FILE attnTargets.cmake DESTINATION "${attn_package_dir}")

# Before 1.0 a minor version may break users.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/attnConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES .cmake/attnConfig.cmake .cmake/attnEigen.cmake .cmake/attnDispatch.cmake .cmake/attnMpi.cmake
  .cmake/dispatch_link.cmake .cmake/dispatch_choice.cpp.in
  "${PROJECT_BINARY_DIR}/attnConfigVersion.cmake" DESTINATION "${attn_package_dir}")

# pkg-config attn: a file that may be moved with what it describes.
file(RELATIVE_PATH ATTN_PC_PREFIX "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" ATTN_PC_PREFIX "${ATTN_PC_PREFIX}")
file(RELATIVE_PATH ATTN_PC_INCLUDE "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file(.cmake/attn.pc.in "${PROJECT_BINARY_DIR}/attn.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/attn.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")

install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/attn")
