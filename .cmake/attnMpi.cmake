# attn_add_mpi(): the target attn::mpi, which is attn::attn and libmpi, whose C API alone attn/mpi.h calls; sets in the
# caller attn_mpi_problem, what is missing, or nothing.

function(attn_add_mpi)
  set(attn_mpi_problem "" PARENT_SCOPE)
  if(TARGET attn::mpi)
    return()
  endif()
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI QUIET COMPONENTS CXX)
  if(NOT TARGET MPI::MPI_CXX)
    set(attn_mpi_problem "MPI was not found (Debian, Ubuntu: apt install libopenmpi-dev openmpi-bin)" PARENT_SCOPE)
    return()
  endif()
  add_library(attn::mpi INTERFACE IMPORTED GLOBAL)
  target_link_libraries(attn::mpi INTERFACE attn::attn MPI::MPI_CXX)
endfunction()
