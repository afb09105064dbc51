package ovirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// kindMover is the owed clean-up of a mover's VM.
const kindMover hypervisors.OwedKind = "mover"

const (
	moverMemory    = 1 << 30
	moverMinMemory = 128 << 20
	moverCPUs      = 2
)

// moverBus is what a mover's own disks are on: another one than disks are plugged into. The engine gives a disk its own id as serial
// number, wherever it is plugged in, so that this alone tells a mover which disks are its own.
const moverBus = sdk.DISKINTERFACE_VIRTIO

var goodMover = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// moverPlan is a request for a mover that was found possible.
type moverPlan struct {
	name    string // of the VM
	store   store
	cluster cluster
	profile string
	cpus    int
	memory  int64
}

// CheckMover says whether the request could be carried out now.
func (d *Driver) CheckMover(ctx context.Context, req hypervisors.MoverRequest) error {
	_, err := d.planMover(ctx, req)
	return err
}

func (d *Driver) planMover(ctx context.Context, req hypervisors.MoverRequest) (moverPlan, error) {
	p := moverPlan{name: marker + req.Name, cpus: max(req.CPUs, 0), memory: req.MemoryBytes}
	if p.cpus == 0 {
		p.cpus = moverCPUs
	}
	if p.memory == 0 {
		p.memory = moverMemory
	}
	bad := func(format string, args ...any) (moverPlan, error) {
		return p, fault.New(fault.Invalid, "make mover", req.Name, format, args...)
	}
	switch {
	case checkTag(req.Tag) != nil:
		return p, checkTag(req.Tag)
	case !goodMover.MatchString(req.Name):
		return bad("its name is none of a host")
	case len(req.Seed) == 0 || len(req.Seed) > 16<<20:
		return bad("its seed has %d bytes", len(req.Seed))
	case req.ImageBytes < qcowHeader:
		return bad("its image has %d bytes", req.ImageBytes)
	case p.memory < moverMinMemory:
		return bad("%d bytes of memory are too few", p.memory)
	}
	at, err := d.look(ctx)
	if err != nil {
		return p, err
	}
	if p.store, err = storeFor(hypervisors.RestoreDisk{ID: "of the mover", Datastore: req.Datastore}, hypervisors.Disk{}, at); err != nil {
		return p, err
	}
	var names []string
	for _, c := range at.clusters {
		if c.center == p.store.center {
			names = append(names, c.name)
		}
	}
	if len(names) == 0 {
		return p, fault.New(fault.Conflict, "make mover", req.Name, "the data center of %s has no cluster", req.Datastore)
	}
	first := slices.Min(names)
	for _, c := range at.clusters {
		if c.name == first && c.center == p.store.center {
			p.cluster = c
		}
	}
	if p.profile = profileNamed(req.Network, p.cluster, at); p.profile == "" {
		return p, fault.New(fault.NotFound, "make mover", req.Name, "the data center %s has no network %q", p.cluster.centerName, req.Network).
			Explain("The mover's network is not in the data center of its datastore.", "List the networks of the connection and choose one there.")
	}
	return p, d.nameIsFree(ctx, p.name)
}

// deploying is a mover being made.
type deploying struct {
	d    *Driver
	req  hypervisors.MoverRequest
	plan moverPlan
	owed []hypervisors.Owed
}

// DeployMover uploads the image and the seed, makes a VM of them and starts it.
func (d *Driver) DeployMover(ctx context.Context, req hypervisors.MoverRequest) (_ hypervisors.VM, err error) {
	p, err := d.planMover(ctx, req)
	if err != nil {
		return hypervisors.VM{}, err
	}
	m := &deploying{d: d, req: req, plan: p}
	defer func() {
		if err != nil {
			m.giveUp(ctx)
		}
	}()
	head := make([]byte, qcowHeader)
	if _, err := io.ReadFull(req.Image, head); err != nil {
		return hypervisors.VM{}, badImage(req.Name, err)
	}
	size, err := qcowSize(head)
	if err != nil {
		return hypervisors.VM{}, badImage(req.Name, err)
	}
	root := plannedDisk{size: size, format: sdk.DISKFORMAT_COW, sparse: true, store: p.store, initial: req.ImageBytes}
	image := io.MultiReader(strings.NewReader(string(head)), io.LimitReader(req.Image, req.ImageBytes-qcowHeader))
	rootID, err := m.upload(ctx, 0, root, image, req.ImageBytes)
	if err != nil {
		return hypervisors.VM{}, err
	}
	seedBytes := (int64(len(req.Seed)) + 511) &^ 511
	seed := plannedDisk{size: seedBytes, format: sdk.DISKFORMAT_RAW, sparse: p.store.Kind != "iscsi" && p.store.Kind != "fcp", store: p.store}
	padded := append(slices.Clone(req.Seed), make([]byte, seedBytes-int64(len(req.Seed)))...)
	seedID, err := m.upload(ctx, 1, seed, strings.NewReader(string(padded)), seedBytes)
	if err != nil {
		return hypervisors.VM{}, err
	}
	id, err := m.make(ctx, rootID, seedID)
	if err != nil {
		return hypervisors.VM{}, err
	}
	x, err := d.read(ctx, id)
	if err != nil {
		return hypervisors.VM{}, err
	}
	at, err := d.look(ctx)
	if err != nil {
		return hypervisors.VM{}, err
	}
	return describe(x, at), nil
}

func badImage(name string, err error) error {
	return fault.Wrap(fault.Invalid, "read image of mover", name, err).
		Explain("The mover image is no qcow2 image, or not all of it came.", "Make the images anew: make images.")
}

const qcowHeader = 512

// qcowSize reads the virtual size in the header of a qcow2 image.
func qcowSize(head []byte) (int64, error) {
	if binary.BigEndian.Uint32(head) != 0x514649fb {
		return 0, errors.New("it does not begin as a qcow2 image")
	}
	size := binary.BigEndian.Uint64(head[24:])
	if size == 0 || size > 1<<40 {
		return 0, fmt.Errorf("its disk has %d bytes", size)
	}
	return int64(size+511) &^ 511, nil
}

func (m *deploying) owe(ctx context.Context, o hypervisors.Owed) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.KindOf(err), "make mover", m.req.Name, err)
	}
	if err := m.req.Owe(ctx, o); err != nil {
		return fault.Context("record owed clean-up", o.Name, err)
	}
	m.owed = append(m.owed, o)
	return nil
}

func (m *deploying) giveUp(ctx context.Context) {
	limit := releaseLimit
	if ctx.Err() != nil {
		limit = canceledLimit
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	for _, o := range slices.Backward(m.owed) {
		if err := m.d.CleanUp(ctx, o); err != nil {
			m.d.log.WarnContext(ctx, "clean-up after a failed deployment is left owed", "name", o.Name, "err", err)
		}
	}
}

// upload makes a disk and fills it with a file in the disk's own format.
func (m *deploying) upload(ctx context.Context, n int, disk plannedDisk, from io.Reader, size int64) (string, error) {
	tag := m.req.Tag
	disk.alias = fmt.Sprintf("%s%s-%d", marker, tag, n)
	if err := m.owe(ctx, hypervisors.Owed{Kind: kindDisk, Name: marker + tag + "/" + disk.alias, Args: map[string]string{argTag: tag, argAlias: disk.alias}}); err != nil {
		return "", err
	}
	id, _, err := m.d.makeDisk(ctx, tag, disk)
	if err != nil {
		return "", err
	}
	t, err := m.d.openTransfer(ctx, tag, transferSpec{disk: id, upload: true, file: disk.format})
	if err != nil {
		return "", err
	}
	ca, err := m.d.conn.ImageioAuthority(ctx)
	if err != nil {
		return "", err
	}
	e, err := m.d.offer(t, ca, hypervisors.Export{Name: id, SizeBytes: size, Writable: true}, idleOf(tag))
	if err == nil {
		err = m.d.putFile(ctx, e, from, size)
	}
	if err != nil {
		return "", err
	}
	last, err := m.d.endTransfer(ctx, val(t.Id()), id, verbFinalize)
	if err != nil {
		return "", err
	}
	if last != "" && last != sdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS {
		return "", badImage(m.req.Name, fmt.Errorf("the engine ends its upload as %q", last))
	}
	return id, m.d.pace.poll(ctx, m.d.pace.transfer, "disk "+disk.alias+" is free", func() (bool, error) {
		x, err := m.d.disk(ctx, id)
		return err == nil && val(x.Status()) == sdk.DISKSTATUS_OK, err
	})
}

// make makes the VM of its two disks and starts it. Its comment has the tag until it is complete.
func (m *deploying) make(ctx context.Context, root, seed string) (string, error) {
	d, tag := m.d, m.req.Tag
	if err := m.owe(ctx, hypervisors.Owed{Kind: kindMover, Name: marker + tag, Args: map[string]string{argTag: tag}}); err != nil {
		return "", err
	}
	doc, err := moverDocument(m.plan, moverComment+" "+tag+unready)
	if err != nil {
		return "", err
	}
	id, err := makeFor(ctx, d, tag, "make mover", m.req.Name, func(ctx context.Context) (string, error) {
		out, err := d.conn.Post(ctx, "make mover", m.req.Name, "/vms", doc, correlation(tag, "mover"))
		if err != nil {
			return "", err
		}
		x, err := apixml.DecodeOne(out, "vm", sdk.XMLVmReadOne)
		if err != nil {
			return "", err
		}
		return val(x.Id()), checkID("VM", val(x.Id()))
	})
	if err != nil {
		return "", err
	}
	err = d.pace.poll(ctx, d.pace.create, "mover "+m.req.Name+" is made", func() (bool, error) {
		x, err := d.read(ctx, id)
		return err == nil && val(x.Status()) == sdk.VMSTATUS_DOWN, err
	})
	if err != nil {
		return "", err
	}
	r := &restoring{d: d, req: hypervisors.RestoreRequest{Tag: tag, Name: m.plan.name}, plan: &restorePlan{disks: []plannedDisk{
		{alias: "root", name: m.plan.name + "-root", attach: attachmentSpec{disk: root, bus: moverBus, boot: true, active: true}},
		{alias: "seed", name: m.plan.name + "-seed", attach: attachmentSpec{disk: seed, bus: moverBus, readOnly: true, active: true}},
	}}}
	for _, disk := range r.plan.disks {
		if err := r.attach(ctx, id, disk); err != nil {
			return "", err
		}
	}
	nic, err := nicDocument(plannedNIC{name: "nic1", model: "virtio", profile: m.plan.profile, linked: true, plugged: true})
	if err != nil {
		return "", err
	}
	if _, err := d.conn.Post(ctx, "make NIC", "nic1", "/vms/"+id+"/nics", nic, ""); err != nil {
		return "", err
	}
	if err := d.conn.Act(ctx, "start mover", m.req.Name, "/vms/"+id+"/start", nil); err != nil {
		return "", err
	}
	err = d.pace.poll(ctx, d.pace.create, "mover "+m.req.Name+" runs", func() (bool, error) {
		x, err := d.read(ctx, id)
		return err == nil && reached(x, hypervisors.PowerOn), err
	})
	if err != nil {
		return "", err
	}
	if err := r.nameDisks(ctx, id); err != nil {
		return "", err
	}
	ready := []byte("<vm><comment>" + moverComment + " " + tag + "</comment></vm>")
	_, err = d.conn.Do(ctx, engine.Request{Op: "complete mover", Subject: m.req.Name, Method: http.MethodPut, Path: "/vms/" + id, Body: ready, Repeat: true})
	return id, err
}

// unready ends the comment of a mover that is being made.
const unready = " (being made)"

// cleanMover removes the VM of a deployment, complete or not, with its disks.
func (d *Driver) cleanMover(ctx context.Context, tag string) error {
	all, err := d.list(ctx)
	if err != nil {
		return err
	}
	for _, vm := range all {
		if c := val(vm.Comment()); c != moverComment+" "+tag && c != moverComment+" "+tag+unready {
			continue
		}
		if err := d.removeMover(ctx, vm); err != nil {
			return err
		}
	}
	return nil
}

// RemoveMover switches a mover off that DeployMover has made and removes it with its disks.
func (d *Driver) RemoveMover(ctx context.Context, id string) error {
	vm, err := d.read(ctx, id)
	if engine.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !strings.HasPrefix(val(vm.Comment()), moverComment+" ") {
		return fault.New(fault.Invalid, "remove mover", val(vm.Name()), "it was not made as a mover by this product").
			Explain("Only movers that were deployed are removed.", "Remove the VM in the engine.")
	}
	all, err := d.list(ctx)
	if err != nil {
		return err
	}
	owners := plugged(all)
	for _, a := range items(vm.DiskAttachments()) {
		disk, _ := a.Disk()
		if owners[val(a.Id())] != "" || disk != nil && aliasTag(val(disk.Alias())) != "" && !strings.HasSuffix(val(vm.Comment()), unready) {
			return fault.New(fault.Conflict, "remove mover", val(vm.Name()), "disk %s is plugged into it", val(a.Id())).
				Explain("A task still works with a disk in this mover.", "Wait until it has ended.")
		}
	}
	return d.removeMover(ctx, vm)
}

func (d *Driver) removeMover(ctx context.Context, vm *sdk.Vm) error {
	id, name := val(vm.Id()), val(vm.Name())
	if !reached(vm, hypervisors.PowerOff) {
		err := d.conn.Act(ctx, "stop mover", name, "/vms/"+id+"/stop", nil)
		if err != nil && fault.KindOf(err) != fault.Conflict && !engine.Gone(err) {
			return err
		}
		err = d.pace.poll(ctx, d.pace.create, "mover "+name+" is off", func() (bool, error) {
			x, err := d.read(ctx, id)
			if engine.Gone(err) {
				return true, nil
			}
			return err == nil && reached(x, hypervisors.PowerOff), err
		})
		if err != nil {
			return err
		}
	}
	if err := d.pace.unlessBusy(ctx, "remove mover", func() error { return d.conn.Remove(ctx, "remove mover", name, "/vms/"+id) }); err != nil {
		return err
	}
	return d.pace.poll(ctx, d.pace.create, "mover "+name+" is gone", func() (bool, error) {
		_, err := d.read(ctx, id)
		if engine.Gone(err) {
			return true, nil
		}
		return false, err
	})
}
