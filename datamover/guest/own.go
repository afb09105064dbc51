//go:build linux

package guest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cairn-backup/cairn/datamover/control"
	"github.com/cairn-backup/cairn/datamover/transport/hotadd"
	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
)

// owner says whose a disk can be. A disk's content and, on oVirt, its serial number are its owner's; where in the machine it
// sits is not.
type owner int

const (
	foreign owner = iota // plugged in for a transfer, or on a storage network
	unknown              // on the bus that platforms plug disks into: the machine's own, or anybody's
	own                  // where no platform plugs a disk in: virtio-blk, AHCI, IDE, NVMe, CD drives
)

var (
	// pluggedBus is a virtio-scsi controller: what drivers plug disks into.
	pluggedBus = regexp.MustCompile(`/virtio\d+/host\d+/`)
	// networkBus is iSCSI, Fibre Channel, and all that the kernel makes up itself: NVMe over a network, device-mapper, loop.
	networkBus = regexp.MustCompile(`/session\d+/|/rport-|/sys/devices/virtual/`)
)

// ownerOf looks at where a disk, or the disk of a partition, is attached.
func (r root) ownerOf(name string) owner {
	dir := r.dirOf(name)
	switch {
	case dir == "", networkBus.MatchString(dir), hotadd.Plugged(dir):
		return foreign
	case pluggedBus.MatchString(dir) && !strings.HasPrefix(filepath.Base(dir), "sr"): // a disk is never plugged in as a CD
		return unknown
	}
	return own
}

// keptSeed is the file in which a seed is kept that lay where disks of others can be.
const keptSeed = "seed.yaml"

// readUnknown reads a NoCloud seed that may be somebody else's, for machines all of whose disks are on the bus that platforms
// plug disks into. Such a seed is looked for once in a machine's life, before it has ever had a manager and so before any
// platform had a reason to plug a disk in, and then kept in a directory. No directory, no seed.
func (r root) readUnknown(ctx context.Context, keep string, seed seedReader) (Config, error) {
	if keep == "" {
		return Config{}, errNotOurs
	}
	path := filepath.Join(keep, keptSeed)
	cfg, err := readDocument("seed of the first start", path)
	if !errors.Is(err, errNotOurs) {
		return cfg, err
	}
	if enrolled := control.HasIdentity(r.path(StateDir)); enrolled || control.HasIdentity(keep) {
		return Config{}, errNotOurs
	}
	cfg, document, err := r.findSeed(ctx, unknown, seed)
	if err != nil || cfg.Manager == "" {
		return cfg, err
	}
	if err := os.MkdirAll(keep, 0o700); err != nil {
		return Config{}, fault.Context("keep seed", keep, err)
	}
	if err := durable.Create(path, document, 0o600); err != nil {
		return Config{}, fault.Context("keep seed", path, err)
	}
	return cfg, nil
}
