#!/bin/sh
# refused.sh SOURCE COMPILE...: the source compiles with SHOULD_FAIL=0; with 1 it must not, and each of its `// expect: ` lines,
# a regular expression, is found among the errors: one that is there twice, in two of them.
source=$1
shift
"$@" -DSHOULD_FAIL=0 "$source" || { echo "the twin does not compile"; exit 1; }
errors=$("$@" -DSHOULD_FAIL=1 "$source" 2>&1) && { echo "the mistakes compile"; exit 1; }
sed -n 's|^// expect: ||p' "$source" | sort | uniq -c >expected
missing=0
while read -r times line; do
  said=$(printf '%s\n' "$errors" | grep -E 'error:' | grep -Ec -- "$line")
  [ "$said" -ge "$times" ] || { echo "said $said times, not $times: $line"; missing=1; }
done <expected
exit $missing
