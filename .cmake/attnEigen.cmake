# Looks for Eigen 3.4 or later: the target Eigen3::Eigen where it exists already, else an installed
# package. Used by the build and, installed beside attnConfig.cmake, by find_package(attn).
# Afterwards attn_eigen_problem is empty, or says why there is no Eigen to use.

set(attn_eigen_problem "")
if(NOT TARGET Eigen3::Eigen)
  # Without a version, then compared here: Eigen 5 refuses a request for 3.4, and Eigen 3.4 refuses
  # a range.
  find_package(Eigen3 CONFIG QUIET)
  if(NOT Eigen3_FOUND)
    set(attn_eigen_problem "Eigen 3.4 or later was not found (set Eigen3_DIR or CMAKE_PREFIX_PATH)")
  elseif(Eigen3_VERSION VERSION_LESS 3.4)
    set(attn_eigen_problem "Eigen 3.4 or later is needed; ${Eigen3_DIR} has ${Eigen3_VERSION}")
  endif()
endif()
