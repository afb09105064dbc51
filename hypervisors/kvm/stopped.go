package kvm

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// stoppedState is what reading a stopped VM needs besides its description.
type stoppedState struct {
	arch        string
	sources     map[string]*libvirtxml.DomainDiskSource
	checkpoints []checkpointXML
	clean       bool // the guest shut down by itself
	saved       bool // the VM's memory is saved and will be resumed
}

// freezeStopped opens the disks of a VM that is off through a helper. While it runs, QEMU's image locks keep the VM
// from being started.
func (f *frozen) freezeStopped(ctx context.Context, req hypervisors.FreezeRequest, st *state) error {
	ss, err := f.d.lookAtStopped(ctx, req.VM)
	if err != nil {
		return err
	}
	disks := make([]helperDisk, len(st.disks))
	for i, disk := range st.disks {
		disks[i] = helperDisk{id: disk.ID, source: ss.sources[disk.ID], format: disk.Format}
	}
	at, err := f.d.listenAt(req.Tag)
	if err != nil {
		return err
	}
	if at.network == "unix" {
		if err := f.owe(ctx, req, hypervisors.Owed{Kind: kindSocket, VM: req.VM, Name: at.path}); err != nil {
			return err
		}
	}
	if err := f.owe(ctx, req, hypervisors.Owed{Kind: kindHelper, VM: req.VM, Name: helperName(req.Tag)}); err != nil {
		return err
	}
	if err := f.d.startHelper(ctx, req.Tag, ss.arch, disks); err != nil {
		return err
	}
	f.info.Time = time.Now().UTC()
	f.describeStopped(ss)
	reasons, bitmaps, err := f.openBitmaps(ctx, req, st, ss)
	if err != nil {
		return err
	}
	if at, err = f.d.serve(ctx, req.Tag, disks, at, bitmaps); err != nil {
		return err
	}
	base, fwd, err := f.d.exportBase(ctx, req.Tag, at)
	if err != nil {
		return err
	}
	f.fwd = fwd
	for _, disk := range st.disks {
		e := base
		e.Name, e.SizeBytes = disk.ID, disk.SizeBytes
		if b := bitmaps[disk.ID]; b != "" {
			e.DirtyContext = "qemu:dirty-bitmap:" + b
			// Nothing writes while the VM is off, so the next backup can start from the same mark: it will read
			// some blocks again, and miss none.
			f.info.Checkpoint = req.Since
		}
		f.info.Disks = append(f.info.Disks, hypervisors.FrozenDiskInfo{Disk: disk, Export: e, FullReason: reasons[disk.ID]})
	}
	return nil
}

func (d *Driver) lookAtStopped(ctx context.Context, vm string) (*stoppedState, error) {
	return onDomain(ctx, d.conn, "look at", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (*stoppedState, error) {
		x, err := domainXML(dom, libvirt.DOMAIN_XML_INACTIVE|libvirt.DOMAIN_XML_SECURE)
		if err != nil {
			return nil, err
		}
		ss := &stoppedState{sources: map[string]*libvirtxml.DomainDiskSource{}}
		if x.OS.Type != nil {
			ss.arch = x.OS.Type.Arch
		}
		for i := range x.Devices.Disks {
			if disk := &x.Devices.Disks[i]; disk.Target != nil {
				ss.sources[disk.Target.Dev] = disk.Source
			}
		}
		if ss.checkpoints, err = listCheckpoints(dom); err != nil {
			return nil, err
		}
		state, reason, err := dom.GetState()
		if err != nil {
			return nil, err
		}
		ss.clean = state == libvirt.DOMAIN_SHUTOFF && libvirt.DomainShutoffReason(reason) == libvirt.DOMAIN_SHUTOFF_SHUTDOWN
		ss.saved, err = dom.HasManagedSaveImage(0)
		return ss, err
	})
}

func (f *frozen) describeStopped(ss *stoppedState) {
	switch {
	case ss.saved:
		f.info.ConsistencyNote = "the VM's memory is saved, and what its guest had not written yet is in there"
		f.info.Warnings = append(f.info.Warnings, "The VM has a saved memory image; it is not part of the restore point.")
	case ss.clean:
		f.info.Consistency = hypervisors.FilesystemConsistent
	default:
		f.info.ConsistencyNote = "the VM is off, and it is not known whether its guest shut down cleanly"
	}
}

// openBitmaps prepares, for each disk whose record of changes since the last backup is whole, one bitmap that
// holds them all. It returns these bitmaps' names and, for the other disks, the reasons.
func (f *frozen) openBitmaps(ctx context.Context, req hypervisors.FreezeRequest, st *state, ss *stoppedState) (reasons, bitmaps map[string]string, err error) {
	reasons, bitmaps = map[string]string{}, map[string]string{}
	if req.Since == "" {
		return reasons, bitmaps, nil
	}
	names := sinceOnwards(ss.checkpoints, req.Since)
	_, err = onHelper(ctx, f.d, req.Tag, "look at bitmaps of", func(m monitor) (none, error) {
		nodes, err := blockNodes(m)
		if err != nil {
			return none{}, err
		}
		for _, disk := range st.disks {
			reason := whyFull(disk, req.Since, st.since)
			if reason == "" {
				reason = mergeBitmaps(m, nodes, disk, names)
			}
			if reason != "" {
				reasons[disk.ID] = reason
			} else {
				bitmaps[disk.ID] = bitmapName(disk.ID)
			}
		}
		return none{}, nil
	})
	return reasons, bitmaps, err
}

// sinceOnwards returns the name of a checkpoint and of all later ones.
func sinceOnwards(all []checkpointXML, since string) []string {
	var names []string
	for _, c := range all {
		if c.Name == since || len(names) > 0 {
			names = append(names, c.Name)
		}
	}
	return names
}

// mergeBitmaps adds up what a disk's images recorded since names[0] into a new bitmap that is never stored. It
// answers with the reason why that cannot be done.
//
// libvirt keeps a checkpoint's bitmap in the active image and, under the same name, in the images below that were
// active before a snapshot; later checkpoints' bitmaps are added because old versions of libvirt kept only the
// newest one recording. Adding too much costs reading; adding too little would lose data.
func mergeBitmaps(m monitor, nodes []blockNode, disk hypervisors.Disk, names []string) string {
	type source struct {
		Node string `json:"node"`
		Name string `json:"name"`
	}
	var sources []source
	var top string
	ended := false // an image below which the record does not go
	for i, path := range append([]string{disk.Path}, disk.Chain...) {
		n := slices.IndexFunc(nodes, func(n blockNode) bool { return n.File == path && n.Driver == string(hypervisors.QCOW2) })
		if n < 0 {
			ended = true
			continue
		}
		if i == 0 {
			top = nodes[n].Name
		}
		_, has := nodes[n].bitmap(names[0])
		switch {
		case i == 0 && !has:
			return brokenReason(false)
		case has && ended:
			return "the record of changes has a gap: a snapshot was made outside of libvirt"
		case !has:
			ended = true
			continue
		}
		for _, name := range names {
			b, ok := nodes[n].bitmap(name)
			if ok && b.Inconsistent {
				return brokenReason(true)
			}
			if ok {
				sources = append(sources, source{nodes[n].Name, name})
			}
		}
	}
	if top == "" {
		return brokenReason(false)
	}
	target := bitmapName(disk.ID)
	err := qmpRun(m, "block-dirty-bitmap-add", map[string]any{"node": top, "name": target, "persistent": false, "disabled": true}, nil)
	if err == nil {
		err = qmpRun(m, "block-dirty-bitmap-merge", map[string]any{"node": top, "target": target, "bitmaps": sources}, nil)
	}
	if err != nil {
		return "the VM is stopped and QEMU cannot read the record of changes: " + err.Error()
	}
	return ""
}

// dropBitmaps removes the bitmaps of checkpoints from the images of a stopped VM, which libvirt itself cannot do.
// Each bitmap records by itself, so that none of the others loses anything.
func (d *Driver) dropBitmaps(ctx context.Context, vm string, names []string) (err error) {
	ss, err := d.lookAtStopped(ctx, vm)
	if err != nil {
		return err
	}
	desc, err := d.VM(ctx, vm)
	if err != nil {
		return err
	}
	var disks []helperDisk
	for _, disk := range desc.Disks {
		tracked := slices.ContainsFunc(ss.checkpoints, func(c checkpointXML) bool { return slices.Contains(names, c.Name) && c.has(disk.ID) })
		if tracked && disk.Unprotectable == "" && disk.Format == hypervisors.QCOW2 {
			disks = append(disks, helperDisk{id: disk.ID, source: ss.sources[disk.ID], format: disk.Format, writable: true})
		}
	}
	if len(disks) == 0 {
		return nil
	}
	// This helper serves nothing and is gone before the call returns. After a crash in between Leftovers finds it by
	// its name, which carries our mark and the checkpoint's tag.
	tag := fmt.Sprintf("%s-drop", names[0][len(marker):])
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
		defer cancel()
		if e := d.stopHelper(ctx, tag); err == nil {
			err = e
		}
	}()
	if err := d.startHelper(ctx, tag, ss.arch, disks); err != nil {
		return err
	}
	_, err = onHelper(ctx, d, tag, "remove bitmaps with", func(m monitor) (none, error) {
		nodes, err := blockNodes(m)
		if err != nil {
			return none{}, err
		}
		for _, name := range names {
			if err := dropFromNodes(m, nodes, name); err != nil {
				return none{}, err
			}
		}
		return none{}, nil
	})
	return err
}

// dropFromNodes removes the bitmaps of one name from the images that a helper has open for writing. Images below
// the active one are open for reading only and keep theirs; without the one above it, nothing uses it.
func dropFromNodes(m monitor, nodes []blockNode, name string) error {
	active, err := formatNodes(m)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		isActive := false
		for _, node := range active {
			isActive = isActive || node == n.Name
		}
		if _, ok := n.bitmap(name); !ok || !isActive {
			continue
		}
		if err := qmpRun(m, "block-dirty-bitmap-remove", map[string]any{"node": n.Name, "name": name}, nil); err != nil {
			return fault.Context("remove bitmap", name, err)
		}
	}
	return nil
}
