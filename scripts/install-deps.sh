#!/bin/sh
# Installs what building, testing and the demo need on Debian 12 (root; Go and Node are expected to be there).
# Does nothing, quickly, when all of it is installed. `install-deps.sh --bench` adds what only the benchmark needs, `--images` what
# only the Debian images need.
set -u

packages="
  bc ca-certificates curl git jq make perl-base procps util-linux
  gcc libc6-dev pkg-config libvirt-dev
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
  qemu-system-x86 qemu-utils qemu-block-extra ovmf
  libnbd-bin nbdkit gnutls-bin lvm2 tgt open-iscsi protobuf-compiler
  busybox-static kmod cpio dpkg e2fsprogs dosfstools mtools xorriso fdisk zstd systemd
  qemu-guest-agent openssh-client openssh-server
  python3 python3-cryptography python3-zstandard mount postgresql-15 groff-base
  mmdebstrap debian-archive-keyring umoci crun docker-compose prometheus
"
optional=""
[ "${1:-}" = "--bench" ] && optional="virtnbdbackup borgbackup"
[ "${1:-}" = "--images" ] && optional="nfs-ganesha nfs-ganesha-vfs"

say() { echo "install-deps: $*" >&2; }

missing() {
  for p in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
  done
}

# apt runs a command under apt-get's lock timeout, a second time when the first attempt fails.
apt() {
  for attempt in 1 2; do
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -qq "$@" </dev/null >"$log" 2>&1 && return 0
    [ $attempt = 1 ] && sleep 3
  done
  tail -n 15 "$log" >&2
  return 1
}

command -v dpkg-query >/dev/null 2>&1 || {
  say "this is not a Debian system; install by hand what these packages are called there:" $packages
  exit 1
}
want=$(missing $packages)
extra=$(missing $optional)
[ -z "$want$extra" ] && exit 0
[ "$(id -u)" = 0 ] || {
  say "these packages are missing, and only root can install them:" $want $extra
  exit 1
}

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
# Daemons must not be started by their packages: the lab starts what it needs, and a container has no init for it.
if [ ! -e /usr/sbin/policy-rc.d ] && [ ! -d /run/systemd/system ]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
  trap 'rm -f "$log" /usr/sbin/policy-rc.d' EXIT
fi

say "installing" $want $extra
if ! apt install -y --no-install-recommends $want $extra; then
  say "apt-get install did not work with the package lists at hand; fetching new ones"
  apt update || { say "apt-get update failed: no package mirror can be reached (see above). Check the network and /etc/apt/sources.list."; exit 1; }
  if [ -n "$want" ] && ! apt install -y --no-install-recommends $want; then
    say "apt-get install failed (see above). Missing are:" $want
    exit 1
  fi
  [ -z "$extra" ] || apt install -y --no-install-recommends $extra || say "these packages cannot be installed (see above):" $extra
fi
# The benchmark goes on without the engines that it cannot have.
[ "${1:-}" = "--images" ] || optional=""
left=$(missing $packages $optional)
[ -z "$left" ] || { say "still missing after the installation:" $left; exit 1; }
