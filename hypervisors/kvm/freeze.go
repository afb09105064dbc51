package kvm

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// Names of the documents kept with a restore point.
const (
	docDomain = "domain.xml"
	docNVRAM  = "nvram.fd"
)

// The kinds of owed clean-up.
const (
	kindFreeze     hypervisors.OwedKind = "fsfreeze"
	kindBackupJob  hypervisors.OwedKind = "backup-job"
	kindScratch    hypervisors.OwedKind = "scratch"
	kindSocket     hypervisors.OwedKind = "socket"
	kindCheckpoint hypervisors.OwedKind = "checkpoint"
	kindHelper     hypervisors.OwedKind = "helper-domain"
	kindVolume     hypervisors.OwedKind = "volume"
	kindNVRAM      hypervisors.OwedKind = "nvram"
	kindDomain     hypervisors.OwedKind = "domain"
	kindReplaced   hypervisors.OwedKind = "replaced-disk"
)

// releaseLimit bounds a clean-up that follows an error or a cancellation.
const releaseLimit = 2 * time.Minute

// frozen is a frozen VM.
type frozen struct {
	d    *Driver
	tag  string
	info hypervisors.FrozenInfo

	mu       sync.Mutex
	released bool
	owed     []hypervisors.Owed // what Release removes, in order of creation
	fwd      *forward
}

// Info describes the frozen VM.
func (f *frozen) Info() hypervisors.FrozenInfo { return f.info }

// owe tells the caller what is about to be made and remembers it for Release.
func (f *frozen) owe(ctx context.Context, req hypervisors.FreezeRequest, o hypervisors.Owed) error {
	first := len(f.owed) == 0
	if err := req.Owe(ctx, o); err != nil {
		return fault.Context("record owed clean-up", o.Name, err)
	}
	if first {
		fault.Point("backup.owed")
	}
	f.owed = append(f.owed, o)
	return nil
}

// Release ends the exports and removes what Freeze made, except the checkpoint.
func (f *frozen) Release(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return nil
	}
	if err := f.undo(ctx, func(o hypervisors.Owed) bool { return o.Kind != kindCheckpoint }); err != nil {
		return err
	}
	f.released = true
	return nil
}

// undo ends the forward and cleans up what was owed, the newest first.
func (f *frozen) undo(ctx context.Context, which func(hypervisors.Owed) bool) error {
	if f.fwd != nil {
		f.fwd.end()
		f.fwd = nil
	}
	var errs []error
	for _, o := range slices.Backward(f.owed) {
		if which(o) {
			errs = append(errs, f.d.CleanUp(ctx, o))
		}
	}
	return errors.Join(errs...)
}

// Freeze makes the disks of a VM readable as they are at one instant.
func (d *Driver) Freeze(ctx context.Context, req hypervisors.FreezeRequest) (_ hypervisors.Frozen, err error) {
	if err := checkTag(req.Tag); err != nil {
		return nil, err
	}
	if err := checkUUID(req.VM); err != nil {
		return nil, err
	}
	if req.Quiesce == "" {
		req.Quiesce = hypervisors.QuiesceTry
	}
	f := &frozen{d: d, tag: req.Tag}
	defer func() {
		if err != nil {
			// The caller's context may be the reason; what is left when this fails stays owed.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
			if errors.Is(err, context.Canceled) {
				cancel()
				ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 4*time.Second)
			}
			defer cancel()
			if e := f.undo(ctx, func(hypervisors.Owed) bool { return true }); e != nil {
				d.log.Warn("clean-up after a failed freeze is left owed", "vm", req.VM, "err", e)
			}
		}
	}()
	st, err := d.lookAt(ctx, req)
	if err != nil {
		return nil, err
	}
	f.info = hypervisors.FrozenInfo{VM: st.vm, Documents: st.docs, Skipped: st.skipped, Warnings: st.warnings, Consistency: hypervisors.CrashConsistent}
	if len(st.disks) == 0 {
		f.info.Time = time.Now().UTC()
		f.info.Warnings = append(f.info.Warnings, "No disk of this VM is backed up; the restore point holds its configuration only.")
		return f, nil
	}
	if st.active {
		err = f.freezeRunning(ctx, req, st)
	} else {
		err = f.freezeStopped(ctx, req, st)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// state is what Freeze finds before it makes anything.
type state struct {
	vm       hypervisors.VM
	active   bool
	disks    []hypervisors.Disk // to be frozen
	skipped  []hypervisors.SkippedDisk
	docs     []hypervisors.Document
	warnings []string
	since    *checkpointXML // the checkpoint of the request, if it exists
}

// lookAt reads the VM, decides which disks take part, and refuses when something else is under way.
func (d *Driver) lookAt(ctx context.Context, req hypervisors.FreezeRequest) (*state, error) {
	st, err := onDomain(ctx, d.conn, "look at", req.VM, func(lv *libvirt.Connect, dom *libvirt.Domain) (*state, error) {
		pools, err := listPools(lv)
		if err != nil {
			return nil, err
		}
		st := &state{}
		var helper bool
		if st.vm, helper, err = describe(lv, dom, pools); err != nil {
			return nil, err
		}
		if helper {
			return nil, fault.New(fault.NotFound, "", "", "it is a helper or a mover of this product")
		}
		if st.active, err = dom.IsActive(); err != nil {
			return nil, err
		}
		doc, err := dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE)
		if err != nil {
			return nil, err
		}
		st.docs = []hypervisors.Document{{Name: docDomain, MediaType: "application/xml", Data: []byte(doc)}}
		if err := busy(dom, st); err != nil {
			return nil, err
		}
		st.since, err = findCheckpoint(dom, req.Since)
		return st, err
	})
	if err != nil {
		return nil, err
	}
	var warnings []string
	st.disks, st.skipped, warnings = req.Divide(st.vm)
	st.warnings = slices.Concat(st.warnings, warnings, st.vm.Notes)
	d.readNVRAM(ctx, st)
	return st, ctx.Err()
}

// readNVRAM adds the UEFI variables to the documents, or a warning.
func (d *Driver) readNVRAM(ctx context.Context, st *state) {
	if st.vm.Firmware != hypervisors.UEFI {
		return
	}
	path := st.vm.NVRAM
	if path == "" {
		// libvirt names the file when the VM starts, and does not keep its name.
		path = filepath.Join(d.nvramDir(), st.vm.Name+"_VARS.fd")
	}
	data, err := d.readFile(ctx, path)
	if err != nil {
		if !st.active && fault.KindOf(err) == fault.NotFound {
			return // it is made when the VM is started for the first time
		}
		st.warnings = append(st.warnings, "The UEFI variables are not part of this restore point: "+err.Error()+". A restored VM gets fresh ones.")
		return
	}
	st.docs = append(st.docs, hypervisors.Document{Name: docNVRAM, MediaType: "application/octet-stream", Data: data})
}

// busy refuses a VM on which something else is under way: libvirt would wait half a minute and then fail.
func busy(dom *libvirt.Domain, st *state) error {
	if !st.active {
		return nil
	}
	refuse := func(what, meaning, advice string) error {
		return fault.New(fault.Conflict, "freeze VM", st.vm.Name, "%s", what).Explain(meaning, advice)
	}
	open, err := openJob(dom)
	if err != nil {
		return err
	}
	if open != nil {
		if tag, ok := open.ours(); ok {
			return refuse("a backup job of this product ("+marker+tag+") is open on it",
				"An earlier backup of this VM has not been cleaned up, or another appliance backs it up right now.",
				"Let the clean-up of the earlier run end, or end its job with: virsh domjobabort "+st.vm.Name)
		}
		return refuse("a backup job of another tool is open on it",
			"libvirt allows one backup of a VM at a time.", "Wait until the other tool has finished, or end its job with: virsh domjobabort "+st.vm.Name)
	}
	job, err := dom.GetJobInfo()
	if err != nil {
		return err
	}
	if job.Type != libvirt.DOMAIN_JOB_NONE && job.Type != libvirt.DOMAIN_JOB_COMPLETED {
		return refuse("another job is under way on it",
			"The VM is being migrated, saved or dumped.", "Wait until that has finished, then try again.")
	}
	for _, disk := range st.vm.Disks {
		if disk.Path == "" {
			continue
		}
		b, err := dom.GetBlockJobInfo(disk.ID, 0)
		if err == nil && b != nil && b.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN {
			return refuse("a block job is under way on its disk "+disk.ID,
				"The disk is being copied or a snapshot is being merged.", "Wait until that has finished, then try again.")
		}
	}
	return nil
}
