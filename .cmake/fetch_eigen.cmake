# No Eigen at hand: download the headers of 3.4.0 as the imported target attn_fetched_eigen.

# Said first: where there is no network, a long log of attempts follows.
if(FETCHCONTENT_SOURCE_DIR_EIGEN)
  message(STATUS "attn: ${attn_eigen_problem}; using the headers in ${FETCHCONTENT_SOURCE_DIR_EIGEN}")
else()
  message(NOTICE "attn: ${attn_eigen_problem}; downloading Eigen 3.4.0. Without a network: install Eigen "
    "(Debian, Ubuntu: apt install libeigen3-dev), or unpack it and set FETCHCONTENT_SOURCE_DIR_EIGEN")
endif()

include(FetchContent)
FetchContent_Declare(eigen
  URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
  URL_HASH SHA256=8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72
  # A folder that does not exist: Eigen's own CMakeLists.txt must not run. That of 3.4.0 writes into
  # the including project's build and into ~/.cmake, that of 5.0.1 breaks install(EXPORT).
  SOURCE_SUBDIR headers-only)
FetchContent_MakeAvailable(eigen)

# Our own name: an Eigen3::Eigen that is too old may exist. Imported: its headers count as system
# headers, and it takes no part in any install.
add_library(attn_fetched_eigen INTERFACE IMPORTED)
target_include_directories(attn_fetched_eigen INTERFACE "${eigen_SOURCE_DIR}")
