package hypervisors

import (
	"context"
	"io"
	"iter"
)

// ExtentState says what is known about a byte range of a frozen disk.
type ExtentState uint8

// The states. Unchanged appears only where changes are tracked since the restore point that is the parent.
const (
	Data      ExtentState = iota // must be read
	Zero                         // reads as zeros, need not be read
	Unchanged                    // same as in the parent, need not be read
)

// Extent is a byte range in one state.
type Extent struct {
	Offset, Length int64
	State          ExtentState
}

// FrozenDisk is a disk at one instant, open for reading. Its methods may be called from several goroutines.
// Whoever opened it closes it.
type FrozenDisk interface {
	io.ReaderAt
	// Size is the disk's virtual size in bytes.
	Size() int64
	// Extents yields ranges in ascending order that cover the disk from 0 to Size without gap or overlap. After an
	// error it stops: what came before is true, the rest unknown.
	Extents(ctx context.Context) iter.Seq2[Extent, error]
	// Confirm says after the last read whether what was read was the disk at its instant: a transport that reads behind
	// the platform's back can tell only then. Nothing read counts before it. May be repeated.
	Confirm(ctx context.Context) error
	io.Closer
}

// Settled is embedded by frozen disks that the platform itself keeps from changing while they are open.
type Settled struct{}

// Confirm implements FrozenDisk.
func (Settled) Confirm(context.Context) error { return nil }

// TargetDisk is a new disk, open for writing; it reads as zeros at first. Its methods may be called from several
// goroutines for ranges that do not overlap.
type TargetDisk interface {
	io.WriterAt
	// Zero makes a range read as zeros, without allocating it where the platform can.
	Zero(ctx context.Context, offset, length int64) error
	// Flush returns after everything written so far is durable.
	Flush(ctx context.Context) error
	Size() int64
	// Close closes without flushing.
	io.Closer
}

// Transport is a way from a platform's disk to a mover.
type Transport string

// The transports there are code for.
const (
	TransportNBD     Transport = "nbd"     // over the network
	TransportImageio Transport = "imageio" // over the network, by oVirt's image transfers
	TransportHotadd  Transport = "hotadd"  // a disk hot-plugged into the mover's VM
	TransportSAN     Transport = "san"     // the platform's LUNs, attached to the mover
)

// Export tells a mover where to open one disk, for reading or for writing. It can be sent over the wire.
type Export struct {
	Transport Transport `json:"transport"`
	Network   string    `json:"network"` // "unix" or "tcp"
	Address   string    `json:"address"` // socket path, or host:port
	Name      string    `json:"name"`    // the NBD export's name; of other transports, what errors call the disk
	TLS       *TLS      `json:"tls,omitempty"`
	// DirtyContext is the NBD metadata context that marks changed ranges ("qemu:dirty-bitmap:…"); empty means every
	// range may have changed.
	DirtyContext string `json:"dirty_context,omitempty"`
	SizeBytes    int64  `json:"size_bytes"`
	Writable     bool   `json:"writable,omitempty"`
	// Serial is the serial number of a hot-plugged disk, by which alone the mover finds it.
	Serial string `json:"serial,omitempty"`
	// Unpluggable says why the disk cannot be plugged into a mover, though others of the connection can; "" if it can.
	Unpluggable string `json:"unpluggable,omitempty"`
	// Extents are known to the manager where the transport itself cannot tell them; empty means all is data.
	Extents ExtentMap `json:"extents,omitempty"`
	// Imageio says where the disk's image transfer is served.
	Imageio *Imageio `json:"imageio,omitempty"`
	// SAN says where the disk lies, for a mover that reads it from the platform's LUNs.
	SAN *SAN `json:"san,omitempty"`
}

// TLS holds what a client needs to speak TLS with an export: PEM files' paths on the mover's host.
type TLS struct {
	CAFile     string `json:"ca_file"`
	CertFile   string `json:"cert_file,omitempty"`
	KeyFile    string `json:"key_file,omitempty"`
	ServerName string `json:"server_name"`
}
