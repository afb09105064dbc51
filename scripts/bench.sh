#!/bin/bash
# Measures Cairn beside restic, kopia and borg on the same images in one run; see lab/bench/README.md.
#   SMALL=1    small images: minutes instead of hours     SEED=1    of everything that is made up
#   ROUNDS=3   the tables have medians                    ENGINES=  a comma-separated choice
#   DAYS=      of all machines, fewer than there are      CAIRN_BENCH_CACHE=  what is kept: packages, images, programs
#   NO_LONG=1  without the 30 days of one machine         WORK=  where repositories go, such as a file system in memory
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${CAIRN_BENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn-bench}
set=default
[ -z "${SMALL:-}" ] || set=small
seed=${SEED:-1}
mkdir -p "$cache/bin"

# The peers at exactly the versions of lab/bench/peers/go.mod; the build cache makes the second time quick.
for tool in github.com/restic/restic/cmd/restic github.com/kopia/kopia; do
	(cd lab/bench/peers && CGO_ENABLED=0 go build -o "$cache/bin/${tool##*/}" "$tool")
done

# Making images is mostly writing: in memory, where there is enough of it.
if [ -z "${CAIRN_BENCH_SCRATCH:-}" ] && [ "$(df --output=avail -B1G /dev/shm 2>/dev/null | tail -1)" -gt 14 ] 2>/dev/null &&
	[ "$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)" -gt 14 ]; then
	export CAIRN_BENCH_SCRATCH=/dev/shm
fi

lab=(bin/cairn-lab bench --cache "$cache" --set "$set" --seed "$seed")
"${lab[@]}" images
more=()
[ -z "${ENGINES:-}" ] || more+=(--engines "$ENGINES")
[ -z "${DAYS:-}" ] || more+=(--days "$DAYS")
[ -z "${NO_LONG:-}" ] || more+=(--no-long)
[ -z "${WORK:-}" ] || more+=(--work "$WORK")
table=$cache/table-$set-$seed.md
{
	echo "Set $set, seed $seed, $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg) at the start, $(git describe --tags --always --dirty)."
	echo "restic v0.18.0, kopia v0.19.0, $(borg --version)."
	echo
	"${lab[@]}" run --rounds "${ROUNDS:-3}" "${more[@]}"
} | tee "$table"
echo "kept in $table" >&2
