#!/bin/sh
# refused.sh SOURCE COMPILE...: the source compiles with SHOULD_FAIL=0; with 1 it must not, and each of its `// expect: ` lines,
# a regular expression, is found among the errors.
source=$1
shift
"$@" -DSHOULD_FAIL=0 "$source" || { echo "the twin does not compile"; exit 1; }
errors=$("$@" -DSHOULD_FAIL=1 "$source" 2>&1) && { echo "the mistakes compile"; exit 1; }
sed -n 's|^// expect: ||p' "$source" >expected
missing=0
while IFS= read -r line; do
  printf '%s\n' "$errors" | grep -E 'error:' | grep -Eq -- "$line" || { echo "not said: $line"; missing=1; }
done <expected
exit $missing
