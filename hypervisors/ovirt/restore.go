package ovirt

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The kinds of owed clean-up of a restore.
const (
	kindDisk hypervisors.OwedKind = "disk"
	kindVM   hypervisors.OwedKind = "vm"
)

// More arguments of owed clean-ups.
const (
	argAlias  = "alias"
	argName   = "name" // that a disk gets in its VM
	argUpload = "upload"
)

// restoreComment begins the comment of a VM that a restore has not completed; the tag follows.
const restoreComment = "cairn-restore "

// restoring is a restore under way.
type restoring struct {
	d    *Driver
	req  hypervisors.RestoreRequest
	plan *restorePlan
	keep *keeper

	mu       sync.Mutex
	ids      []string // of the new disks, in the order of the plan
	targets  []hypervisors.TargetInfo
	owed     []hypervisors.Owed
	finished bool
}

// CheckRestore says whether the request could be carried out now.
func (d *Driver) CheckRestore(ctx context.Context, req hypervisors.RestoreRequest) error {
	_, err := d.planRestore(ctx, req)
	return err
}

// BeginRestore makes the disks and opens them for writing.
func (d *Driver) BeginRestore(ctx context.Context, req hypervisors.RestoreRequest) (_ hypervisors.Restoring, err error) {
	p, err := d.planRestore(ctx, req)
	if err != nil {
		return nil, err
	}
	r := &restoring{d: d, req: req, plan: p, keep: newKeeper(d)}
	defer func() {
		if err == nil {
			return
		}
		limit := releaseLimit
		if ctx.Err() != nil {
			limit = canceledLimit
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		if e := r.Abandon(ctx); e != nil {
			d.log.WarnContext(ctx, "clean-up after a failed restore is left owed", "vm", req.VM.Name, "err", e)
		}
	}()
	ca, err := d.conn.ImageioAuthority(ctx)
	if err != nil {
		return nil, err
	}
	for i := range p.disks {
		if err := r.make(ctx, &p.disks[i], ca); err != nil {
			return nil, err
		}
	}
	fault.Point("restore.exports-open")
	d.mu.Lock()
	d.restores[req.Tag] = r
	d.mu.Unlock()
	r.keep.start()
	return r, nil
}

func (r *restoring) owe(ctx context.Context, o hypervisors.Owed) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.KindOf(err), "restore VM", r.req.VM.Name, err)
	}
	if err := r.req.Owe(ctx, o); err != nil {
		return fault.Context("record owed clean-up", o.Name, err)
	}
	r.owed = append(r.owed, o)
	return nil
}

// make makes one disk and opens it.
func (r *restoring) make(ctx context.Context, disk *plannedDisk, ca string) error {
	args := map[string]string{argTag: r.req.Tag, argAlias: disk.alias}
	if r.req.Mode == hypervisors.RestoreNew {
		args[argName] = disk.name
	}
	if err := r.owe(ctx, hypervisors.Owed{Kind: kindDisk, Name: marker + r.req.Tag + "/" + disk.src.ID, Args: args}); err != nil {
		return err
	}
	id, size, err := r.d.makeDisk(ctx, r.req.Tag, *disk)
	if err != nil {
		return err
	}
	fault.Point("restore.volume-created")
	disk.attach.disk = id
	e := hypervisors.Export{Name: id, SizeBytes: disk.size, Writable: true}
	if size < disk.size {
		return fault.New(fault.Conflict, "make disk", disk.alias, "it has %d bytes, want %d", size, disk.size)
	}
	r.ids = append(r.ids, id)
	r.targets = append(r.targets, hypervisors.TargetInfo{DiskID: disk.src.ID, Export: e})
	return r.open(ctx, len(r.targets)-1, ca)
}

// open opens the upload to a disk.
func (r *restoring) open(ctx context.Context, i int, ca string) error {
	id := r.ids[i]
	o := hypervisors.Owed{Kind: kindTransfer, Name: marker + r.req.Tag + "/" + id, Args: map[string]string{argTag: r.req.Tag, argDisk: id, argUpload: "true"}}
	if !slices.ContainsFunc(r.owed, func(have hypervisors.Owed) bool { return have.Kind == o.Kind && have.Name == o.Name }) {
		if err := r.owe(ctx, o); err != nil {
			return err
		}
	}
	t, err := r.d.openTransfer(ctx, r.req.Tag, transferSpec{disk: id, upload: true})
	if err != nil {
		return err
	}
	r.keep.add(val(t.Id()))
	e, err := r.d.offer(t, ca, r.targets[i].Export, idleOf(r.req.Tag))
	if err == nil {
		r.targets[i].Export = e
	}
	return err
}

// makeDisk makes a disk that is owed already, and waits until it can be used. It returns its id and size.
func (d *Driver) makeDisk(ctx context.Context, tag string, disk plannedDisk) (id string, size int64, err error) {
	const op = "make disk"
	doc, err := diskDocument(disk)
	if err != nil {
		return "", 0, err
	}
	id, err = makeFor(ctx, d, tag, op, disk.alias, func(ctx context.Context) (string, error) {
		out, err := d.conn.Post(ctx, op, disk.alias, "/disks", doc, correlation(tag, disk.alias))
		if err != nil {
			if fault.KindOf(err) == fault.Transient {
				if found, e := d.disksNamed(ctx, disk.alias); e == nil && len(found) == 1 {
					return val(found[0].Id()), nil // only the reply was lost
				}
			}
			return "", err
		}
		x, err := apixml.DecodeOne(out, "disk", sdk.XMLDiskReadOne)
		if err != nil {
			return "", fault.Context(op, disk.alias, err)
		}
		return val(x.Id()), checkID("disk", val(x.Id()))
	})
	if err != nil {
		return "", 0, err
	}
	err = d.pace.poll(ctx, d.pace.create, "disk "+disk.alias+" is made", func() (bool, error) {
		x, err := d.disk(ctx, id)
		if err != nil && !engine.Gone(err) {
			return false, err
		}
		if err != nil || val(x.Status()) == sdk.DISKSTATUS_ILLEGAL {
			return false, fault.New(fault.Transient, op, disk.alias, "the engine took it back, or calls it illegal").
				Explain("The engine could not make the disk.", "Look at the engine's events: storage that is full shows there.")
		}
		size = sized(x.ProvisionedSize())
		return val(x.Status()) == sdk.DISKSTATUS_OK, nil
	})
	return id, size, err
}

func (d *Driver) disk(ctx context.Context, id string) (*sdk.Disk, error) {
	return engine.One(ctx, d.conn, engine.Request{Op: "look at disk", Subject: id, Path: "/disks/" + id}, "disk", sdk.XMLDiskReadOne)
}

// disksNamed returns the disks with an alias, which is one of ours.
func (d *Driver) disksNamed(ctx context.Context, alias string) ([]*sdk.Disk, error) {
	all, err := engine.All[*sdk.Disk](ctx, d.conn, engine.Request{Op: "look up disk", Subject: alias, Path: "/disks", Query: engine.Query("search", "alias="+alias)}, "disks", sdk.XMLDiskReadMany)
	return slices.DeleteFunc(all, func(disk *sdk.Disk) bool { return val(disk.Alias()) != alias }), err
}

// Disks returns the targets. After one was plugged into a mover it may be offered at another place.
func (r *restoring) Disks() []hypervisors.TargetInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.targets)
}

// index is the place of a new disk, -1 if it is none of this restore.
func (r *restoring) index(disk string) int { return slices.Index(r.ids, disk) }

// close ends the upload to one disk.
func (r *restoring) close(ctx context.Context, disk string) error {
	ours, err := r.d.ourTransfers(ctx, r.req.Tag, disk)
	if err != nil {
		return err
	}
	for _, t := range ours {
		r.keep.drop(val(t.Id()))
		last, err := r.d.endTransfer(ctx, val(t.Id()), disk, verbFinalize)
		if err != nil {
			return err
		}
		if last != "" && last != sdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS {
			return fault.New(fault.Transient, "finish writing of disk", disk, "the engine ends its transfer as %q", last).
				Explain("The engine or the host found the written disk bad.", "Look at the engine's events, and start the restore again.")
		}
	}
	return r.d.pace.poll(ctx, r.d.pace.transfer, "disk "+disk+" is free", func() (bool, error) {
		x, err := r.d.disk(ctx, disk)
		if err != nil {
			return false, err
		}
		if val(x.Status()) == sdk.DISKSTATUS_ILLEGAL {
			return false, fault.New(fault.Transient, "finish writing of disk", disk, "the engine calls it illegal")
		}
		return val(x.Status()) == sdk.DISKSTATUS_OK, nil
	})
}

// reopen opens the upload to one disk again; Disks says from then on where.
func (r *restoring) reopen(ctx context.Context, disk string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.index(disk)
	if i < 0 || r.finished {
		return fault.New(fault.Conflict, "open image transfer of disk", disk, "the restore does not have it")
	}
	ca, err := r.d.conn.ImageioAuthority(ctx)
	if err != nil {
		return err
	}
	return r.open(ctx, i, ca)
}

// forget stops keeping the uploads alive.
func (r *restoring) forget() {
	r.keep.stop()
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if r.d.restores[r.req.Tag] == r {
		delete(r.d.restores, r.req.Tag)
	}
}

// Abandon removes all that was made.
func (r *restoring) Abandon(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.finished {
		return nil
	}
	r.forget()
	var errs []error
	for _, o := range slices.Backward(r.owed) {
		switch o.Kind {
		case hypervisors.OwedReplaced:
			errs = append(errs, r.d.switchBack(ctx, o))
		case kindHanded:
			errs = append(errs, r.d.abandonHandover(ctx, o))
		default:
			errs = append(errs, r.d.CleanUp(ctx, o))
		}
	}
	return errors.Join(errs...)
}

// Finish ends the uploads and makes the VM.
func (r *restoring) Finish(ctx context.Context) (hypervisors.VM, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range r.ids {
		if err := r.close(ctx, id); err != nil {
			return hypervisors.VM{}, err
		}
	}
	make := r.makeVM
	switch r.req.Mode {
	case hypervisors.RestoreInPlace:
		make = r.switchOriginal
	case hypervisors.RestoreInto:
		make = r.give
	case hypervisors.RestoreDisks:
		return r.leave(ctx)
	}
	id, notes, err := make(ctx)
	if err != nil {
		return hypervisors.VM{}, err
	}
	vm, err := r.d.VM(ctx, id)
	if err != nil {
		return vm, err
	}
	r.finished = true
	r.forget()
	vm.Notes = append(append(vm.Notes, r.plan.notes...), notes...)
	return vm, nil
}

func note(what string, err error) string { return fmt.Sprintf("%s: %v.", what, err) }

// ourAlias is how disks of unfinished restores are called.
var ourAlias = regexp.MustCompile(`^` + marker + `([A-Za-z0-9_-]{1,64})-[0-9]+$`)

// aliasTag is the tag in the alias of such a disk, "" if it is none.
func aliasTag(alias string) string {
	if m := ourAlias.FindStringSubmatch(alias); m != nil {
		return m[1]
	}
	return ""
}
