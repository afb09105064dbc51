#!/usr/bin/env bash
# Runs every fuzz target of the tree for the given time each: scripts/fuzz.sh 30s
# What is only interesting, and no failure, is made smaller for a second at most: the default is a minute each, in which nothing is tried.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
targets=0
for package in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do
	for target in $(grep -h '^func Fuzz' "$package"/*_test.go | sed -E 's/^func (Fuzz[A-Za-z0-9_]+).*/\1/'); do
		echo "== $package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1s "$package"
		targets=$((targets + 1))
	done
done
echo "$targets fuzz targets, $time each"
