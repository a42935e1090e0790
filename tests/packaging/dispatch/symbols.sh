#!/bin/sh
# symbols.sh VARIANT UNTREATED: what objects define for others to use, or to be merged with. VARIANT and UNTREATED are
# paths with ISA in them: an instruction set's part of the program, and what the compiler wrote, which must be seen to
# share what the former may not.
# SPDX-License-Identifier: MIT

definitions() { # definitions OBJECT: of its global, weak and unique symbols, but the names of types
  nm --defined-only --extern-only --format=posix "$1" | sed 's/ .*//' | grep -v '^_ZT[IS]' | sort -u
}
object() { # object PATH ISA
  echo "$1" | sed "s/ISA/$2/"
}
shared() { # shared PATH: what more than one of the objects defines
  for isa in baseline avx2 avx512; do definitions "$(object "$1" $isa)"; done | sort | uniq -d
}
registers() { # registers NAME PATH ISA: how often it uses them
  objdump -d --no-show-raw-insn "$(object "$2" "$3")" | grep -c "%$1"
}
failed=0
expect() { # expect TEXT NUMBER RELATION NUMBER
  test "$2" "$3" "$4" || { echo "not so: $1 ($2 $3 $4)"; failed=1; }
}

expect "untreated objects share Eigen's inline functions" "$(shared "$2" | grep -c '^_ZNK*5Eigen')" -gt 5
expect "and the standard library's templates" "$(shared "$2" | grep -c '^_ZNSt6vectorIf')" -gt 5
expect "the variants share nothing" "$(shared "$1" | wc -l)" -eq 0
for isa in baseline avx2 avx512; do
  expect "$isa has its own names alone" "$(definitions "$(object "$1" $isa)" | grep -vc "[.]$isa\$")" -eq 0
  expect "$isa has its function" "$(definitions "$(object "$1" $isa)" | grep -c "^_Z7softmax.*[.]$isa\$")" -eq 1
done
expect "the baseline has no AVX" "$(registers '[yz]mm' "$1" baseline)" -eq 0
expect "AVX2 is used" "$(registers ymm "$1" avx2)" -gt 0
expect "AVX2 has no AVX-512" "$(registers zmm "$1" avx2)" -eq 0
expect "AVX-512 is used" "$(registers zmm "$1" avx512)" -gt 0
exit $failed
