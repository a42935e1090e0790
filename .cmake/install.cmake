# What `cmake --install` copies, so that find_package(attn) works.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(attn_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/attn")

install(DIRECTORY include/attn DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(TARGETS attn EXPORT attn INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT attn NAMESPACE attn:: FILE attnTargets.cmake DESTINATION "${attn_package_dir}")

# Before 1.0 a minor version may break users.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/attnConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES .cmake/attnConfig.cmake .cmake/attnEigen.cmake
  "${PROJECT_BINARY_DIR}/attnConfigVersion.cmake" DESTINATION "${attn_package_dir}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/attn")
