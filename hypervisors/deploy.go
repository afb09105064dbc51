package hypervisors

import (
	"context"
	"io"
)

// Deployer makes mover VMs. They are no VMs of the user's: the inventory leaves them out.
type Deployer interface {
	// CheckMover says whether the request could be carried out now, and changes nothing. It does not read the image.
	CheckMover(ctx context.Context, req MoverRequest) error
	// DeployMover uploads an image, makes a VM of it and starts it; it does not wait for the mover in it. On an error
	// nothing of it is left, except what was owed and could not be removed. On success what was owed is still good for
	// removing the VM, until the caller strikes it off.
	DeployMover(ctx context.Context, req MoverRequest) (VM, error)
	// Movers returns the VMs that are marked as movers on the platform, as those are that DeployMover has made, by whomever,
	// sorted by name. Attach takes these only.
	Movers(ctx context.Context) ([]VM, error)
	// RemoveMover switches a VM off that DeployMover has made and removes it with its disks. One that is gone is fine, one
	// to which disks are attached is a Conflict.
	RemoveMover(ctx context.Context, id string) error
}

// MoverRequest asks for a mover VM.
type MoverRequest struct {
	Tag  string // as in FreezeRequest
	Name string // of the mover, as host names are; the VM's carries our marker besides
	// Image is the mover image in the platform's own format (KVM: qcow2) and ImageBytes its length. It is read once, not
	// after DeployMover returned.
	Image      io.Reader
	ImageBytes int64
	// Seed is a NoCloud seed (an ISO 9660 file system) that becomes a CD-ROM of the VM, or a disk on another bus than Attach
	// plugs disks into; it holds a join token.
	Seed        []byte
	Datastore   string
	Network     string // as Network.Name
	CPUs        int    // 0 means 2
	MemoryBytes int64  // 0 means 1 GiB
	// Owe is as in FreezeRequest.
	Owe func(ctx context.Context, owed Owed) error
}
