package ovirt

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The kinds of owed clean-up.
const (
	kindSnapshot hypervisors.OwedKind = "snapshot"
	kindBackup   hypervisors.OwedKind = "backup"
	kindTransfer hypervisors.OwedKind = "image-transfer"
)

// The arguments of owed clean-ups.
const (
	argTag  = "tag"
	argDisk = "disk"
)

// isFreeze says whether a description is one that a freeze gives.
func isFreeze(description string) bool { return strings.HasPrefix(description, marker) }

// releaseLimit bounds a clean-up that follows an error or a cancellation; what is left then stays owed.
const (
	releaseLimit  = 2 * time.Minute
	canceledLimit = 30 * time.Second
)

// dirty is the word of imageio's daemon for changed ranges.
const dirty = "dirty"

// frozen is a frozen VM.
type frozen struct {
	d      *Driver
	tag    string
	vm     string
	keeper *keeper

	mu       sync.Mutex
	info     hypervisors.FrozenInfo
	released bool
	images   map[string]string           // the volumes of the snapshot, by disk
	luns     map[string]*hypervisors.SAN // where they lie, by disk
	owed     []hypervisors.Owed          // what Release removes, in order of creation
}

// Info describes the frozen VM. After a disk was plugged into a mover it may be offered at another place.
func (f *frozen) Info() hypervisors.FrozenInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.info
	out.Disks = slices.Clone(f.info.Disks)
	return out
}

// owe tells the caller what is about to be made and remembers it for Release.
func (f *frozen) owe(ctx context.Context, req hypervisors.FreezeRequest, o hypervisors.Owed) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.KindOf(err), "freeze VM", f.info.VM.Name, err)
	}
	if err := req.Owe(ctx, o); err != nil {
		return fault.Context("record owed clean-up", o.Name, err)
	}
	if len(f.owed) == 0 {
		fault.Point("backup.owed")
	}
	f.owed = append(f.owed, o)
	return nil
}

// keeps says whether an owed clean-up is the checkpoint that the next backup starts from.
func (f *frozen) keeps(o hypervisors.Owed) bool {
	return o.Kind == hypervisors.OwedCheckpoint && o.Name == f.info.Checkpoint
}

// Release ends the transfers and removes what Freeze made, except the checkpoint.
func (f *frozen) Release(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return nil
	}
	f.forget()
	if err := f.undo(ctx, f.keeps); err != nil {
		return err
	}
	f.released = true
	return nil
}

// forget stops keeping the transfers alive.
func (f *frozen) forget() {
	f.keeper.stop()
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.frozen[f.tag] == f {
		delete(f.d.frozen, f.tag)
	}
}

// undo cleans up what was owed, the newest first, except what is kept.
func (f *frozen) undo(ctx context.Context, kept func(hypervisors.Owed) bool) error {
	var errs []error
	for _, o := range slices.Backward(f.owed) {
		if !kept(o) {
			errs = append(errs, f.d.CleanUp(ctx, o))
		}
	}
	return errors.Join(errs...)
}

// Freeze makes the disks of a VM readable as they are at one instant: by the engine's backup where changes are asked for
// and the engine records them, and by a snapshot otherwise.
func (d *Driver) Freeze(ctx context.Context, req hypervisors.FreezeRequest) (_ hypervisors.Frozen, err error) {
	if err := checkTag(req.Tag); err != nil {
		return nil, err
	}
	if req.Quiesce == "" {
		req.Quiesce = hypervisors.QuiesceTry
	}
	f := &frozen{d: d, tag: req.Tag, vm: req.VM, keeper: newKeeper(d)}
	defer func() {
		if err != nil {
			f.giveUp(ctx)
		}
	}()
	s, err := d.survey(ctx, req.VM)
	if err != nil {
		return nil, err
	}
	if err := busy(s); err != nil {
		return nil, err
	}
	if req.Quiesce == hypervisors.QuiesceRequire && s.vm.Power != hypervisors.PowerOff && !s.vm.Agent {
		return nil, noAgent(s.vm.Name)
	}
	p := choose(req, s)
	f.info = hypervisors.FrozenInfo{VM: s.vm, Skipped: p.skipped, Warnings: p.warnings, Consistency: hypervisors.CrashConsistent, Time: time.Now().UTC()}
	doc, err := d.vmDocument(ctx, req.VM)
	if err != nil {
		return nil, err
	}
	f.info.Documents = []hypervisors.Document{doc}
	if len(p.disks) == 0 {
		f.info.Warnings = append(f.info.Warnings, "No disk of this VM is backed up; the restore point holds its configuration only.")
		return f, nil
	}
	if p.backup {
		err = f.byBackup(ctx, req, s, p)
	} else {
		err = f.bySnapshot(ctx, req, s, p)
	}
	if err != nil {
		return nil, err
	}
	f.keep()
	return f, nil
}

// giveUp removes what a failed freeze has made.
func (f *frozen) giveUp(ctx context.Context) {
	limit := releaseLimit
	if ctx.Err() != nil {
		limit = canceledLimit
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	f.keeper.stop()
	if err := f.undo(ctx, func(hypervisors.Owed) bool { return false }); err != nil {
		f.d.log.WarnContext(ctx, "clean-up after a failed freeze is left owed", "vm", f.vm, "err", err)
	}
}

func noAgent(vm string) error {
	return fault.New(fault.Conflict, "freeze VM", vm, "no guest agent reports to the engine").
		Explain("The guest's file systems cannot be flushed, and that was required.", "Install qemu-guest-agent in the guest, or let backups try without.")
}

// survey reads all that a freeze is decided by.
func (d *Driver) survey(ctx context.Context, vm string) (survey, error) {
	x, p, err := d.find(ctx, vm)
	if err != nil {
		return survey{}, err
	}
	a, err := d.about(ctx)
	if err != nil {
		return survey{}, err
	}
	s := survey{x: x, vm: describe(x, p), cluster: p.clusters[idOf(x.Cluster())], version: a.version}
	if s.snapshots, err = d.snapshots(ctx, vm); err != nil {
		return s, err
	}
	if !s.version.atLeast(4, 4) {
		return s, nil
	}
	if s.backups, err = d.backups(ctx, vm); err != nil && !engine.Gone(err) {
		return s, err
	}
	if s.marks, err = d.marks(ctx, vm); err != nil && !engine.Gone(err) {
		return s, err
	}
	return s, nil
}

// bySnapshot freezes a VM by a snapshot of its disks.
func (f *frozen) bySnapshot(ctx context.Context, req hypervisors.FreezeRequest, s survey, p plan) error {
	d, name := f.d, marker+f.tag
	if err := f.owe(ctx, req, hypervisors.Owed{Kind: kindSnapshot, VM: f.vm, Name: name}); err != nil {
		return err
	}
	f.info.Time = time.Now().UTC()
	id, err := d.makeSnapshot(ctx, f.vm, s.vm.Name, f.tag, idsOf(p.disks))
	if err != nil {
		return err
	}
	if err := f.consistency(ctx, req, s); err != nil {
		return err
	}
	ovf, err := d.snapshotOVF(ctx, f.vm, id)
	if err != nil {
		return err
	}
	f.addOVF(ovf)
	disks, err := engine.All[*sdk.Disk](ctx, d.conn, engine.Request{
		Op: "list disks of snapshot of VM", Subject: s.vm.Name, Path: snapshotPath(f.vm, id) + "/disks",
	}, "disks", sdk.XMLDiskReadMany)
	if err != nil {
		return err
	}
	f.images = map[string]string{}
	for _, disk := range disks {
		f.images[val(disk.Id())] = val(disk.ImageId())
		i := slices.IndexFunc(p.disks, func(o hypervisors.Disk) bool { return o.ID == val(disk.Id()) })
		if size := sized(disk.ProvisionedSize()); i >= 0 && size > 0 {
			p.disks[i].SizeBytes = size // as it was at the instant
		}
	}
	f.luns = d.onLUNs(ctx, disks)
	return f.offerAll(ctx, req, p, func(disk string) (transferSpec, error) {
		spec := transferSpec{disk: disk, image: f.images[disk]}
		if !goodID.MatchString(spec.image) {
			return spec, fault.New(fault.Conflict, "freeze VM", s.vm.Name, "its snapshot does not have disk %s", disk).
				Explain("The disk was attached or removed while the snapshot was made.", "Run the backup again.")
		}
		return spec, nil
	}, nil)
}

func idsOf(disks []hypervisors.Disk) (out []string) {
	for _, d := range disks {
		out = append(out, d.ID)
	}
	return out
}

// consistency says in what state a snapshot has caught the guest. The engine freezes the file systems when the guest's
// agent answers, and goes on when it fails; then only an event tells.
func (f *frozen) consistency(ctx context.Context, req hypervisors.FreezeRequest, s survey) error {
	if f.settled(req, s) {
		return nil
	}
	events, err := f.d.events(ctx, correlation(f.tag, "snapshot"))
	if err != nil {
		return err
	}
	if slices.ContainsFunc(events, failedToFreeze) {
		if req.Quiesce == hypervisors.QuiesceRequire {
			return fault.New(fault.Conflict, "freeze VM", s.vm.Name, "its guest's file systems could not be frozen").
				Explain("The guest agent answers, but could not freeze the file systems, and that was required.", "Look at the agent's log in the guest.")
		}
		f.info.ConsistencyNote = "the engine could not freeze the guest's file systems"
		return nil
	}
	f.info.Consistency = hypervisors.FilesystemConsistent
	return nil
}

// settled decides the cases in which the guest need not be asked about.
func (f *frozen) settled(req hypervisors.FreezeRequest, s survey) bool {
	switch {
	case s.vm.Power == hypervisors.PowerOff:
		if req.Quiesce == hypervisors.QuiesceTry {
			f.info.ConsistencyNote = "the VM is off, and it is not known whether its guest shut down cleanly"
		}
	case req.Quiesce == hypervisors.QuiesceNever:
	case !s.vm.Agent:
		f.info.ConsistencyNote = "no guest agent reports to the engine"
	case s.vm.Power == hypervisors.PowerPaused:
		f.info.ConsistencyNote = "the VM is paused, and its guest cannot flush its file systems"
	default:
		return false
	}
	return true
}

// events returns what the engine has recorded of an operation.
func (d *Driver) events(ctx context.Context, correlation string) ([]*sdk.Event, error) {
	return engine.All[*sdk.Event](ctx, d.conn, engine.Request{
		Op: "list events", Path: "/events", Query: engine.Query("search", "correlation_id="+correlation),
	}, "events", sdk.XMLEventReadMany)
}

// eventFailedToFreeze is the engine's number for it; other versions have others, so the words count as well.
const eventFailedToFreeze = 10779

func failedToFreeze(e *sdk.Event) bool {
	words := strings.ToLower(val(e.Description()))
	return val(e.Code()) == eventFailedToFreeze || strings.Contains(words, "failed to freeze") || strings.Contains(words, "freeze guest filesystems")
}

func (f *frozen) addOVF(ovf string) {
	if ovf == "" {
		f.info.Warnings = append(f.info.Warnings, "The engine gave no OVF of the VM; a restore makes it from the API's description, which lacks a few settings.")
		return
	}
	f.info.Documents = append(f.info.Documents, hypervisors.Document{Name: docOVF, MediaType: xmlType, Data: []byte(ovf)})
}

// offerAll opens a transfer for each disk. changed says of which only changes are offered.
func (f *frozen) offerAll(ctx context.Context, req hypervisors.FreezeRequest, p plan, spec func(disk string) (transferSpec, error), changed map[string]bool) error {
	ca, err := f.d.conn.ImageioAuthority(ctx)
	if err != nil {
		return err
	}
	for _, disk := range p.disks {
		o := hypervisors.Owed{
			Kind: kindTransfer, VM: f.vm, Name: marker + f.tag + "/" + disk.ID, Args: map[string]string{argTag: f.tag, argDisk: disk.ID},
		}
		if err := f.owe(ctx, req, o); err != nil {
			return err
		}
		s, err := spec(disk.ID)
		if err != nil {
			return err
		}
		e := hypervisors.Export{Name: disk.ID, SizeBytes: disk.SizeBytes, SAN: f.luns[disk.ID]}
		if s.backup != "" {
			e.Unpluggable = "a disk of the engine's incremental backup exists only as an image transfer"
		}
		if changed[disk.ID] {
			e.DirtyContext = dirty
		}
		if e, err = f.open(ctx, s, ca, e); err != nil {
			return err
		}
		f.info.Disks = append(f.info.Disks, hypervisors.FrozenDiskInfo{Disk: disk, Export: e, FullReason: p.full[disk.ID]})
	}
	return nil
}

// open opens one transfer and keeps it alive.
func (f *frozen) open(ctx context.Context, s transferSpec, ca string, e hypervisors.Export) (hypervisors.Export, error) {
	t, err := f.d.openTransfer(ctx, f.tag, s)
	if err != nil {
		return e, err
	}
	f.keeper.add(val(t.Id()))
	return f.d.offer(t, ca, e, idleOf(f.tag))
}

// keep makes the freeze known to the driver, so that its transfers are kept alive until Release or Close.
func (f *frozen) keep() {
	f.d.mu.Lock()
	f.d.frozen[f.tag] = f
	f.d.mu.Unlock()
	f.keeper.start()
}
