//go:build linux

package hotadd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Options of the transport. The zero value is good.
type Options struct {
	// Wait is how long a disk may take to appear after it was plugged in; 0 means a minute. A context that ends earlier
	// ends the waiting.
	Wait time.Duration
	// Depth is how many requests of at most 1 MiB a disk may have in flight; 0 means 16.
	Depth int
	// System is where the disks of the mover's machine are shown; empty fields are the real places.
	System blockdev.System
}

func (o Options) where() guest { return guest{o.System.WithDefaults()} }

// again is how often sysfs is looked at although the kernel has told of nothing: its messages get lost when there are
// many, and do not reach every network namespace.
const again = 500 * time.Millisecond

// open waits for the disk of an export and opens it.
func (o Options) open(ctx context.Context, e hypervisors.Export, writing bool) (*device, error) {
	if e.Transport != hypervisors.TransportHotadd {
		return nil, fault.New(fault.Invalid, "open disk", e.Serial, "its transport is %q, not hotadd", e.Transport)
	}
	if e.Serial == "" || e.SizeBytes <= 0 {
		return nil, fault.New(fault.Invalid, "open disk", e.Serial, "no serial, or a size of %d bytes", e.SizeBytes)
	}
	wait := o.Wait
	if wait <= 0 {
		wait = time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("it did not appear within %s", wait))
	defer cancel()
	events, stop := listen()
	defer stop()
	return await(ctx, e, events, func() (*device, error) { return o.tryOpen(e, writing) })
}

// await tries until there is a device or an error that does not pass. That this process may not open it does pass: where udev makes
// device nodes they are root's alone at first, and on a busy machine it takes its time.
func await(ctx context.Context, e hypervisors.Export, events <-chan struct{}, try func() (*device, error)) (*device, error) {
	for {
		d, err := try()
		var denied error
		if errors.Is(err, unix.EACCES) {
			denied, err = err, nil
		}
		if d != nil || err != nil {
			return d, err
		}
		select {
		case <-events:
		case <-time.After(again):
		case <-ctx.Done():
			if denied != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, denied
			}
			return nil, notThere(ctx, e)
		}
	}
}

func notThere(ctx context.Context, e hypervisors.Export) error {
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		return fault.Wrap(fault.Canceled, "wait for disk", e.Serial, cause)
	}
	return fault.Wrap(fault.Transient, "wait for disk", e.Serial, context.Cause(ctx)).Explain(
		"The platform has plugged a disk into the mover, and the mover's kernel does not see one with that serial number.",
		"Start the task again. If it fails again, restart the mover, or back up over the network.")
}

// tryOpen opens the disk if it is there. It returns neither a device nor an error when it is not there yet.
func (o Options) tryOpen(e hypervisors.Export, writing bool) (*device, error) {
	g := o.where()
	names, err := g.named(e.Serial)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	if len(names) > 1 {
		return nil, fault.New(fault.Conflict, "open disk", e.Serial, "%d disks have this serial: %s", len(names), strings.Join(names, ", ")).Explain(
			"It cannot be told which of the mover's disks is the one to work on, so none was touched.",
			"Look on the platform which disks the mover has, unplug those that do not belong to it, and start the task again.")
	}
	found, err := g.look(names[0])
	if err != nil {
		return nil, nil //nolint:nilerr // it comes or goes; the next look tells
	}
	if err := g.check(found, e, writing); err != nil {
		return nil, err
	}
	d, err := openDevice(g, found, e, writing, o.depth())
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, nil // its node is not made yet, or it has just gone
	case errors.Is(err, unix.EBUSY):
		return nil, fault.Wrap(fault.Conflict, "open disk", e.Serial, err).Explain(
			"Something in the mover uses the disk.", "Look whether another task of this mover works on the disk, and start this one again afterwards.")
	case err != nil:
		return nil, fault.Context("open disk", e.Serial, err)
	}
	return d, nil
}

func (o Options) depth() int {
	if o.Depth > 0 {
		return o.Depth
	}
	return 16
}

// listen tells when the kernel has added, changed or removed a device. The channel is never closed; where the kernel's
// messages cannot be had it stays silent.
func listen() (events <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return ch, func() {}
	}
	const kernelMessages = 1
	f := os.NewFile(uintptr(fd), "uevents")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelMessages}); err != nil {
		_ = f.Close()
		return ch, func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 8<<10)
		for {
			// What a message says does not matter, nor that some were lost.
			if _, err := f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch, func() {
		_ = f.Close()
		<-done
	}
}
