// SPDX-License-Identifier: MIT
// Programs that attn_dispatch refuses.
#if defined(A_VARIABLE)
int counter = 0;  // each variant would have its own, and other sources would see none of them
int main() { return counter; }
#elif defined(OTHER_FUNCTIONS)
#if defined(__AVX2__)
void more() {}
#endif
int main() {}
#else
static const int nothing_to_call = 0;
#endif
