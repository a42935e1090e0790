// tests/support/engine_tiles.cpp: the register tiles that every test is linked to.
// SPDX-License-Identifier: MIT
#define ATTN_TESTS_TILES
#include "engine_tiles.h"
