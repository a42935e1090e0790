// SPDX-License-Identifier: MIT
#include <attn/types.h>

int own() { return 1; }
