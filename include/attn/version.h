// attn/version.h: the library's version, written once; CMake reads it from here.
// SPDX-License-Identifier: MIT
#pragma once

#define ATTN_VERSION_MAJOR 0
#define ATTN_VERSION_MINOR 1
#define ATTN_VERSION_PATCH 0
