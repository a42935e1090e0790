// attn/mpi/c_api.h: MPI's interface for C, without that for C++, which MPI itself gave up: libmpi
// is all that a program links.
// SPDX-License-Identifier: MIT
#pragma once

#define MPICH_SKIP_MPICXX 1
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
