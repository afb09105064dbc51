#!/usr/bin/env bash
# Runs every fuzz target of the tree for the given seconds each: scripts/fuzz.sh 30 [PACKAGE...]
# What is only interesting, and no failure, is made smaller for a second at most: the default is a minute each, in which nothing is tried.
# A target whose seeds alone take that long is run again for three times as long, until something is tried.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-30}
shift || true
log=$(mktemp)
trap 'rm -f "$log"' EXIT
targets=0
fuzz() { # PACKAGE TARGET SECONDS
	go test -run '^$' -fuzz "^$2\$" -fuzztime "$3s" -fuzzminimizetime 1s "$1" | tee "$log"
	if ! grep -q 'execs: [1-9]' "$log"; then
		fuzz "$1" "$2" $(($3 * 3))
	fi
}
for package in ${*:-$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u)}; do
	for target in $(grep -h '^func Fuzz' "$package"/*_test.go | sed -E 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/'); do
		echo "== $package $target"
		fuzz "$package" "$target" "$seconds"
		targets=$((targets + 1))
	done
done
echo "$targets fuzz targets, at least $seconds seconds each"
