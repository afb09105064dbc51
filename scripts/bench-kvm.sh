#!/usr/bin/env bash
# Full, re-read and incremental backup of a running lab VM, beside nbdcopy of the same disks and Debian's
# virtnbdbackup: wall time, bytes, MB/s and CPU seconds; medians of ROUNDS rounds (3). All in one run, because machines
# are noisy: only ratios mean something.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD
rounds=${ROUNDS:-3}
dir=$(mktemp -d /var/tmp/cairn-bench-XXXXXX)
chmod 0711 "$dir"
export PATH=$top/bin:$PATH CAIRN_CONFIG=$dir/cli.yaml LC_ALL=C
V=(virsh -q -c qemu:///system)

cairnd_pid=
cleanup() {
	code=$?
	trap - EXIT INT TERM
	[ -z "$cairnd_pid" ] || { kill "$cairnd_pid" && wait "$cairnd_pid" || true; }
	cairn-lab kvm down --dir "$dir/lab" >/dev/null || true
	rm -rf "$dir"
	exit "$code"
}
trap cleanup EXIT INT TERM


cpu() { awk -v hz="$(getconf CLK_TCK)" '{print ($14 + $15) / hz}' "/proc/$1/stat"; } # of a process, in seconds
now() { date +%s.%N; }
row() { echo "$@" >>"$dir/rows"; } # STEP WALL CPU SCANNED READ STORED

vm=$(cairn-lab kvm up --dir "$dir/lab")
cairn-lab kvm rate --dir "$dir/lab" --rate 0 >/dev/null
cairnd --data "$dir/cairnd" --listen 127.0.0.1:0 --movers 127.0.0.1:0 >"$dir/out" 2>"$dir/log" &
cairnd_pid=$!
until grep -q '^set-up token' "$dir/out"; do kill -0 "$cairnd_pid"; sleep 0.1; done
address=$(grep -o 'https://[^ ]*' "$dir/out" | head -1)
until curl -sk --max-time 5 "$address/api/v1/readyz" >/dev/null; do sleep 0.1; done
export CAIRN_PASSWORD=bench-bench-bench
cairn setup "$address" --ca-fingerprint "$(sed -n 's/^CA fingerprint:* *//p' "$dir/out")" \
	--token "$(sed -n 's/^set-up token:* *//p' "$dir/out")" --user admin 2>/dev/null
cairn connection add bench qemu:///system >/dev/null 2>&1

backup() { # STEP REPOSITORY FLAGS...
	local step=$1 repository=$2 c0 t0 run
	shift 2
	c0=$(cpu "$cairnd_pid") t0=$(now)
	run=$({ cairn backup start "$vm" --repository "$repository" --wait -o json "$@" 2>/dev/null || [ $? = 3 ]; } | jq -r 'if type == "array" then .[0].id else .id end')
	local t1 c1
	t1=$(now) c1=$(cpu "$cairnd_pid")
	row "$step" "$(echo "$t1 - $t0" | bc)" "$(echo "$c1 - $c0" | bc)" \
		"$(cairn run show "$run" -o json | jq -r '.tasks[0].progress | "\(.bytes_scanned) \(.bytes_read) \(.bytes_stored // 0)"')"
}

timed() { # STEP COMMAND...: wall and CPU of a command and its children
	local step=$1 t
	shift
	TIMEFORMAT='%R %U %S'
	t=$({ time "$@" >"$dir/timed.log" 2>&1; } 2>&1) || { cat "$dir/timed.log" >&2; return 1; }
	read -r wall user sys <<<"$t"
	row "$step" "$wall" "$(echo "$user + $sys" | bc)" "$size" "${bytes:-0}" "${stored:-0}"
}

disks=$("${V[@]}" domblklist "$vm" --details | awk '$2 == "disk" {print $3}')
size=$(for d in $disks; do "${V[@]}" domblkinfo "$vm" "$d" | awk '/Capacity/ {print $2}'; done | paste -sd+ | bc)

nbdcopy_all() {
	local xml="$dir/job.xml" d
	{
		echo "<domainbackup mode='pull'><server transport='unix' socket='$dir/lab/bench.sock'/><disks>"
		for d in $disks; do echo "<disk name='$d' backup='yes' type='file' exportname='$d'><scratch file='$dir/lab/bench-$d.scratch'/></disk>"; done
		echo "</disks></domainbackup>"
	} >"$xml"
	"${V[@]}" backup-begin "$vm" "$xml" >/dev/null
	for d in $disks; do nbdcopy "nbd+unix:///$d?socket=$dir/lab/bench.sock" "$dir/copy-$d.raw"; done
	"${V[@]}" domjobabort "$vm"
	rm -f "$dir"/copy-*.raw
}

chmod 0777 "$dir/lab"
for round in $(seq "$rounds"); do
	cairn repository create "r$round" "$dir/repo-$round" >/dev/null 2>&1
	backup full "r$round" --full
	backup re-read "r$round" --full
	cairn-lab kvm write --dir "$dir/lab" --rounds 12 >/dev/null
	backup incremental "r$round"
	bytes=0 stored=0 timed nbdcopy nbdcopy_all
	if command -v virtnbdbackup >/dev/null; then
		# It refuses VMs that have checkpoints of others; ours begins anew in the next round.
		for c in $("${V[@]}" checkpoint-list "$vm" --name); do "${V[@]}" checkpoint-delete "$vm" "$c" >/dev/null; done
		timed virtnbdbackup-full virtnbdbackup -d "$vm" -l full -o "$dir/vnb" --noprogress
		cairn-lab kvm write --dir "$dir/lab" --rounds 12 >/dev/null
		timed virtnbdbackup-inc virtnbdbackup -d "$vm" -l inc -o "$dir/vnb" --noprogress
		for c in $("${V[@]}" checkpoint-list "$vm" --name | grep '^virtnbdbackup' | tac); do "${V[@]}" checkpoint-delete "$vm" "$c" >/dev/null; done
		rm -rf "$dir/vnb"
	fi
done

echo "VM of $((size >> 20)) MiB in $(echo "$disks" | wc -w) disks, 48 MiB of it random data; $rounds rounds, medians; $(nproc) cores"
printf '%-20s %9s %9s %12s %12s %12s %9s\n' step 'wall s' 'CPU s' 'scanned B' 'read B' 'stored B' 'MB/s'
for step in full re-read incremental nbdcopy virtnbdbackup-full virtnbdbackup-inc; do
	grep "^$step " "$dir/rows" >"$dir/step" || continue
	median() { cut -d' ' -f"$1" "$dir/step" | sort -n | sed -n "$(((rounds + 1) / 2))p"; }
	wall=$(median 2) scanned=$(median 4)
	printf '%-20s %9.2f %9.2f %12s %12s %12s %9.1f\n' "$step" "$wall" "$(median 3)" "$scanned" "$(median 5)" "$(median 6)" \
		"$(echo "$scanned / $wall / 1000000" | bc -l)"
done
echo "CPU of cairnd is the whole process; nbdcopy's is its own and virsh's. MB/s: virtual size by wall time."
