package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// How a transfer's disk gets to the mover that was chosen, and back.

// unplugTime bounds the unplugging of a disk after its transfer; the task tries again at its end.
const unplugTime = 90 * time.Second

// errStillPlugged is in the chain of the error of a transfer that cannot be tried again: a mover may still work on the disk.
var errStillPlugged = errors.New("the disk is still plugged into the mover")

// open gives a disk to the mover that was chosen: as the platform offers it, or plugged into the mover's VM. unplug takes
// it back and returns the transfer's own error, or more.
func (o order) open(ctx context.Context, c fleet.Choice) (e hypervisors.Export, unplug func(error) error, err error) {
	if o.now != nil {
		o.wish.Export = o.now()
	}
	if c.Transport != hypervisors.TransportHotadd {
		e = o.wish.Export
		e.Transport = c.Transport // of those that the platform offers
		return e, func(err error) error { return err }, nil
	}
	var extents hypervisors.ExtentMap
	if !o.wish.Export.Writable {
		if extents, err = extentsOf(ctx, o.wish.Export); err != nil {
			return e, nil, fault.Context("read extents of disk", o.disk, err)
		}
	}
	a, err := o.plugs.Plug(ctx, c.Mover.Machine, o.wish.Export)
	if err != nil {
		return e, nil, fault.Context("plug disk into mover", c.Mover.Name, err)
	}
	e = a.Export()
	e.Extents = extents
	return e, func(err error) error { return o.unplug(ctx, a, c.Mover.Name, err) }, nil
}

// unplug takes a disk from a mover after its transfer. When the transfer has succeeded that it could not be done at once
// is not its failure: nothing ends before the journal has confirmed it.
func (o order) unplug(ctx context.Context, a hypervisors.Attached, mover string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unplugTime)
	defer cancel()
	unplugErr := a.Detach(ctx)
	if unplugErr == nil {
		return err
	}
	o.tell(ctx, fmt.Sprintf("Disk %s could not be unplugged from mover %s yet; it will be tried again: %v", o.disk, mover, unplugErr), "disk", o.disk, "mover", mover)
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errStillPlugged, err)
}

// extentsOf asks a disk's export what of it has to be read, which a plugged disk cannot say. A disk that the platform does not offer
// over the network as well is read as a whole.
func extentsOf(ctx context.Context, e hypervisors.Export) (_ hypervisors.ExtentMap, err error) {
	opener := agent.Network()[e.Transport]
	if opener == nil {
		return nil, nil
	}
	d, err := opener.OpenSource(ctx, e)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return hypervisors.NewExtentMap(d.Size(), d.Extents(ctx))
}

// fallBack says whether another transport may take the place of one that has failed, and prepares for it. Whether there
// is one turns out then.
func (o *order) fallBack(ctx context.Context, by hypervisors.Transport, err error) bool {
	if !o.fallback || fault.KindOf(err) == fault.Corrupt {
		return false
	}
	asked := o.wish.Transport
	switch {
	case by == "" && asked == "":
		return false // every transport has failed
	case by == "":
		o.warn(ctx, fmt.Sprintf("Disk %s cannot go by %s, which was asked for, and goes another way: %v", o.disk, asked, err), "disk", o.disk)
	default:
		o.wish.Failed[by] = err.Error()
		o.warn(ctx, fmt.Sprintf("Disk %s could not go by %s, and goes another way: %v", o.disk, by, err), "disk", o.disk, "transport", string(by))
	}
	o.wish.Transport = ""
	return true
}
