package hypervisors

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"strings"
)

// Attacher hot-plugs disks into mover VMs of the same connection. A driver that can do it has TransportHotadd among its
// Capabilities.
type Attacher interface {
	// Attach plugs one disk of a freeze, or one of a restore, into a running mover VM and returns when the platform has
	// it; the guest sees it a little later. On an error nothing of it is left, except what was owed and could not be
	// removed. The disk stays open by its own Export, too, so that a mover that cannot use it here can go another way;
	// that Export may be another one afterwards, which Frozen.Info and Restoring.Disks then have.
	Attach(ctx context.Context, req AttachRequest) (Attached, error)
}

// AttachRequest asks for a disk to be attached.
type AttachRequest struct {
	// Mover is the stable id of the mover's VM, one of Deployer.Movers; any other VM is refused as Denied.
	Mover string
	Tag   string // of the freeze or the restore that the disk is of
	// Export is the disk as Freeze or BeginRestore described it. It is writable in the mover if it is writable here.
	Export Export
	// Serial is what the mover finds the disk by; see NewSerial. Letters, digits and "-", at most 20, for that is all
	// that a virtio block device shows. A platform that gives disks serial numbers of its own (oVirt) takes no notice
	// of it.
	Serial string
	// Owe is as in FreezeRequest.
	Owe func(ctx context.Context, owed Owed) error
}

// Attached is a disk in a mover VM.
type Attached interface {
	// Export is what the mover opens: TransportHotadd with the serial, and the size. Its Extents are the caller's to fill
	// in.
	Export() Export
	// Detach unplugs the disk and returns when the platform confirms that it is gone. It must be called before the freeze
	// is released or the restore ends, with a context of its own, and may be repeated.
	Detach(ctx context.Context) error
}

// serialLetters are lower-case, because some platforms change the case of others.
var serialLetters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// SerialPrefix begins the serial numbers of the disks that are plugged into movers. A mover looks for nothing of its own
// on such a disk.
const SerialPrefix = "cairn-"

// NewSerial returns a serial number that no other disk has: SerialPrefix and 70 random bits.
func NewSerial() string {
	b := make([]byte, 9)
	_, _ = rand.Read(b) // never fails
	return SerialPrefix + serialLetters.EncodeToString(b)[:14]
}

// GoodSerial says whether a serial can be given to a disk: 1 to 20 letters, digits and "-".
func GoodSerial(s string) bool {
	return s != "" && len(s) <= 20 && strings.IndexFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}
