#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# report.sh BUILD [TARGET]: runs the tests of the fuzz targets, or of one, side by side, and prints what each did: inputs,
# inputs a second, edges of the program that were covered, features that libFuzzer tells apart.
#
# To take what was found into the corpus: fuzz_TARGET -merge=1 tests/fuzz/corpus/TARGET BUILD/tests/fuzz/work/TARGET
set -euo pipefail
log=$1/tests/fuzz/log
failed=0
ctest --test-dir "$1" --tests-regex "^fuzz_${2:-.*}\$" --no-tests=error --verbose >"$log" 2>&1 || failed=$?
awk '
  $2 == "Test:" || $1 == "test" { next }
  match($0, /Start +[0-9]+: fuzz_/) { name[$2 + 0] = $NF }
  match($0, /^[0-9]+: /) { test = $1 + 0 }
  /: #[0-9]+\tDONE / { for (i = 1; i < NF; ++i) { if ($i == "cov:") cov[test] = $(i + 1); if ($i == "ft:") ft[test] = $(i + 1) } }
  /stat::number_of_executed_units/ { inputs[test] = $NF }
  /stat::average_exec_per_sec/ { rate[test] = $NF }
  END {
    printf "%-26s %10s %10s %8s %9s\n", "target", "inputs", "inputs/s", "edges", "features"
    for (test in name) printf "%-26s %10s %10s %8s %9s\n", name[test], inputs[test], rate[test], cov[test], ft[test]
  }' "$log"
if ((failed)); then
  grep -E "Fuzzing found|ERROR|runtime error|Test unit written|No tests" "$log" || tail -n 20 "$log"
  echo "All of it: $log" >&2
fi
exit "$failed"
