#!/usr/bin/env bash
# The demo: a small real VM is backed up while its guest writes, twice, and restored from both restore points; every
# comparison is made with QEMU's own tools. DEMO=once tears all of it down again and exits 0 only if all held.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD
once=${DEMO:-}
dir=${DEMO_DIR:-/var/tmp/cairn-demo}
listen=${DEMO_LISTEN:-127.0.0.1:8440}
export PATH=$top/bin:$PATH CAIRN_CONFIG=$dir/cli/config.yaml
V=(virsh -q -c qemu:///system)

bold=$'\e[1m' plain=$'\e[0m'
[ -t 1 ] || bold='' plain=''
begin=$(date +%s.%N)
step() { printf '%s[%6.1f s] %s%s\n' "$bold" "$(echo "$(date +%s.%N) - $begin" | bc)" "$*" "$plain"; }
say() { printf '           %s\n' "$*"; }
ok() { "$@" || [ $? = 3 ]; } # 3: done, with warnings
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

cairnd_pid=
cleanup() {
	code=$?
	trap - EXIT INT TERM
	if [ -n "$cairnd_pid" ] && kill -0 "$cairnd_pid" 2>/dev/null; then
		kill "$cairnd_pid"
		wait "$cairnd_pid" || true
	fi
	cairn-lab kvm down --dir "$dir/lab" >/dev/null || code=1
	[ "$code" = 0 ] || { [ -f "$dir/cairnd.log" ] && tail -n 30 "$dir/cairnd.log" >&2; }
	rm -rf "$dir"
	exit "$code"
}

# frozen_backup NAME FILE: starts a backup of a VM that stands still, so that its disks can be hashed as they are
# frozen, and lets the guest write on as soon as the freeze is done. Prints the restore point.
frozen_backup() {
	local run phase
	"${V[@]}" suspend "$1" >/dev/null
	hashes "$1" >"$2"
	run=$(cairn backup start "$1" --repository main -o name)
	while :; do
		phase=$(cairn run show "$run" -o json | jq -r '.tasks[0] | if .state == "queued" or .state == "running" then .phase // "" else "ended" end')
		case $phase in transfer* | reading* | publish* | clean* | ended) break ;; esac
		sleep 0.05
	done
	"${V[@]}" resume "$1" >/dev/null
	ok cairn run watch "$run" >&2 || fail "the backup did not succeed: cairn run show $run"
	cairn run show "$run" -o json | jq -r '.tasks[0].restore_point_id'
}

# hashes NAME: "target sha256" of every disk of a VM, content as the guest sees it.
hashes() {
	"${V[@]}" domblklist "$1" --details | awk '$2 == "disk" {print $3, $4}' | while read -r target image; do
		qemu-img convert -U -O raw "$image" "$dir/hash.raw"
		echo "$target $(sha256sum <"$dir/hash.raw" | cut -d' ' -f1)"
		rm -f "$dir/hash.raw"
	done
}

describe() { # POINT: what it took
	cairn point show "$1" -o json | jq -r '.disks[] | "\(.id): \(.mode)\(if .full_reason then " (" + .full_reason + ")" else "" end), read \(.read_bytes) of \(.size_bytes) bytes"' |
		while read -r line; do say "$line"; done
	say "$(cairn point show "$1" -o json | jq -r '"consistency: \(.consistency); new to the repository: \(.new_bytes) bytes, stored as \(.stored_bytes)"')"
}

compare() { # WHAT FILE NAME
	hashes "$3" >"$dir/restored.txt"
	diff "$2" "$dir/restored.txt" >/dev/null || { diff "$2" "$dir/restored.txt" >&2 || true; fail "$1: the disks of $3 are not what was frozen"; }
	while read -r target hash; do say "$target sha256 $hash: as frozen"; done <"$2"
}

[ ! -e "$dir" ] || fail "$dir is there already: another demo runs, or one was cut off. Remove it: cairn-lab kvm down --dir $dir/lab; rm -r $dir"
mkdir -p -m 0711 "$dir"
mkdir -m 0700 "$dir/cli"
trap cleanup EXIT
trap 'exit 130' INT TERM

step "boot a small VM whose guest keeps writing"
vm=$(cairn-lab kvm up --dir "$dir/lab")
say "$vm: $("${V[@]}" dominfo "$vm" | awk -F': *' '/Max memory/ {print $2}') of memory, disks $("${V[@]}" domblklist "$vm" | awk '{printf "%s ", $1}')"

step "start the appliance"
cairnd --data "$dir/cairnd" --listen "$listen" --movers "${DEMO_MOVERS:-127.0.0.1:0}" >"$dir/cairnd.out" 2>"$dir/cairnd.log" &
cairnd_pid=$!
for _ in $(seq 600); do
	grep -q '^set-up token' "$dir/cairnd.out" 2>/dev/null && break
	kill -0 "$cairnd_pid" 2>/dev/null || fail "cairnd ended"
	sleep 0.1
done
while read -r line; do say "$line"; done <"$dir/cairnd.out"
address=$(grep -o 'https://[^ ]*' "$dir/cairnd.out" | head -1)
fingerprint=$(sed -n 's/^CA fingerprint:* *//p' "$dir/cairnd.out")
token=$(sed -n 's/^set-up token:* *//p' "$dir/cairnd.out")
for _ in $(seq 600); do curl -sk --max-time 5 "$address/api/v1/readyz" >/dev/null && break; sleep 0.1; done

step "set it up: administrator, connection to qemu:///system, repository"
password=$(head -c 18 /dev/urandom | base64)
printf '%s' "$password" >"$dir/cli/password"
cairn setup "$address" --ca-fingerprint "$fingerprint" --token "$token" --user admin --password-file "$dir/cli/password"
cairn connection add demo qemu:///system
cairn repository create main "$dir/repository"
cairn vm list

step "back the running VM up (full)"
first=$(frozen_backup "$vm" "$dir/frozen-1.txt")
describe "$first"

step "let the guest write, and back it up again (incremental)"
cairn-lab kvm write --dir "$dir/lab" --rounds 40
second=$(frozen_backup "$vm" "$dir/frozen-2.txt")
describe "$second"
[ "$(cairn point show "$second" -o json | jq -r '[.disks[].mode] | unique | join(",")')" = incremental ] || fail "the second backup was not incremental"
cairn point list

step "verify: read the newest restore point back from the repository"
cairn point verify "$second" --wait

step "restore the incremental under a new name and start it"
ok cairn restore start "$second" --name "$vm-restored" --wait
compare "incremental" "$dir/frozen-2.txt" "$vm-restored"
"${V[@]}" start "$vm-restored" >/dev/null
say "guest of the restored VM: $(cairn-lab kvm check --dir "$dir/lab" --vm "$vm-restored")"

step "restore the full too"
ok cairn restore start "$first" --name "$vm-restored-1" --wait
compare "full" "$dir/frozen-1.txt" "$vm-restored-1"

step "read the repository with no manager: cairn rescue"
key=$(ls "$dir"/cairnd/keys/repo_*)
cairn rescue ls --repo "$dir/repository" --key "$key"
while read -r target hash; do
	cairn rescue export --repo "$dir/repository" --key "$key" --point "$second" --disk "$target" --to raw --out "$dir/$target.raw" >/dev/null
	[ "$(sha256sum <"$dir/$target.raw" | cut -d' ' -f1)" = "$hash" ] || fail "rescue export of $target is not what was frozen"
	say "$target exported by cairn rescue: as frozen"
	rm -f "$dir/$target.raw"
done <"$dir/frozen-2.txt"

[ -z "$("${V[@]}" list --all --name | grep '^cairn-' || true)" ] || fail "a helper VM is left"
[ "$("${V[@]}" checkpoint-list "$vm" --name | grep -c '^cairn-')" = 1 ] || fail "not exactly one checkpoint is kept"
step "every comparison held"

if [ "$once" = once ]; then
	say "DEMO=once: tearing everything down"
	exit 0
fi
cairn connection refresh demo >/dev/null
cat <<END

The appliance goes on running:
  API          $address/api/v1   (admin, password in $dir/cli/password)
  CLI          export PATH=$top/bin:\$PATH CAIRN_CONFIG=$CAIRN_CONFIG; cairn vm list
  VM           $vm, restored as $vm-restored
  set-up token $token (used)
Ctrl-C stops it and removes all of it.
END
wait "$cairnd_pid"
