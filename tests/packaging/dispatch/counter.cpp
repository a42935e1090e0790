// SPDX-License-Identifier: MIT
// Refused: each variant would have its own count, and who else uses it none of these.
int counter = 0;
int main() { return counter; }
