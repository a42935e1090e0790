// attn/mpi.h: attention over the ranks of an MPI job, with the bits of one process. Included by
// itself: attn.h asks for Eigen alone, this for libmpi as well (CMake: attn::mpi).
// SPDX-License-Identifier: MIT
#pragma once

#include "mpi/deal.h"
#include "mpi/key_value_cache.h"
#include "mpi/ranks.h"
#include "mpi/session.h"
