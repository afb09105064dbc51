package ovirt

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/ovf"
	"github.com/cairn-backup/cairn/internal/fault"
)

// restorePlan is a restore request that was found possible.
type restorePlan struct {
	source *sdk.Vm // as the engine had described it; nil where the restore point is of another platform
	// original is the VM that gets its disks back; nil for all other modes.
	original *sdk.Vm
	cluster  cluster
	disks    []plannedDisk
	nics     []plannedNIC
	ovf      []byte // without disks and NICs; nil where there is none
	notes    []string
}

// plannedDisk is one disk to make.
type plannedDisk struct {
	src    hypervisors.Disk
	size   int64
	format sdk.DiskFormat
	sparse bool
	// initial is how much block storage gives it at first; 0 is the engine's own.
	initial int64
	// tracked asks the engine to record changes, as it did for the source.
	tracked bool
	store   store
	alias   string // with our mark, until the restore is complete
	name    string // from then on
	attach  attachmentSpec
}

// plannedNIC is one NIC to make.
type plannedNIC struct {
	name, model, mac string
	profile          string // id; "" is not connected
	linked, plugged  bool
}

// planRestore checks everything that can be checked before something is made.
func (d *Driver) planRestore(ctx context.Context, req hypervisors.RestoreRequest) (*restorePlan, error) {
	if err := checkTag(req.Tag); err != nil {
		return nil, err
	}
	switch req.Mode {
	case hypervisors.RestoreNew:
		if err := checkName(req.Name); err != nil {
			return nil, err
		}
	case hypervisors.RestoreInPlace:
		if err := checkID("VM", req.VM.ID); err != nil {
			return nil, err
		}
	case hypervisors.RestoreInto:
		if err := checkID("VM", req.Into); err != nil {
			return nil, err
		}
	case hypervisors.RestoreDisks:
	default:
		return nil, fault.New(fault.Invalid, "restore VM", req.VM.Name, "unknown mode %q", req.Mode)
	}
	p := &restorePlan{}
	if err := p.readDocuments(req); err != nil {
		return nil, err
	}
	at, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	if req.Mode == hypervisors.RestoreInPlace {
		return p, d.planInPlace(ctx, p, req, at)
	}
	if err := p.planDisks(req, at); err != nil {
		return nil, err
	}
	switch req.Mode {
	case hypervisors.RestoreDisks:
		return p, p.checkNames()
	case hypervisors.RestoreInto:
		return p, d.planInto(ctx, p, req, at)
	}
	if err := p.chooseCluster(req, at); err != nil {
		return nil, err
	}
	if err := p.planNICs(req, at); err != nil {
		return nil, err
	}
	if err := d.addressesAreFree(ctx, p); err != nil {
		return nil, err
	}
	return p, d.nameIsFree(ctx, req.Name)
}

// readDocuments reads what the engine had said of the VM. Its OVF is needed for a new one only.
func (p *restorePlan) readDocuments(req hypervisors.RestoreRequest) error {
	if doc := req.Document(docVM); doc != nil {
		x, err := apixml.DecodeOne(doc, "vm", sdk.XMLVmReadOne)
		if err != nil {
			return fault.Wrap(fault.Invalid, "restore VM", req.VM.Name, err).
				Explain("The configuration in this restore point is damaged.", "Choose another restore point, or export its disks.")
		}
		p.source = x
	}
	if doc := req.Document(docOVF); doc != nil && req.Mode == hypervisors.RestoreNew {
		var err error
		if p.ovf, err = ovf.Bare(doc, req.Name, restoreComment+req.Tag); err != nil {
			p.notes = append(p.notes, "The VM was made without its OVF, which cannot be read: "+err.Error()+".")
		}
	}
	return nil
}

// addressesAreFree looks whether the addresses that are to be kept are in use, and whether that matters: the engine would
// say so only after all data was written.
func (d *Driver) addressesAreFree(ctx context.Context, p *restorePlan) error {
	if !slices.ContainsFunc(p.nics, func(n plannedNIC) bool { return n.mac != "" }) {
		return nil
	}
	if p.cluster.pool != "" {
		pool, err := engine.One(ctx, d.conn, engine.Request{Op: "look at MAC pool", Subject: p.cluster.pool, Path: "/macpools/" + p.cluster.pool}, "mac_pool", sdk.XMLMacPoolReadOne)
		if err != nil || val(pool.AllowDuplicates()) {
			return err
		}
	}
	all, err := d.list(ctx)
	if err != nil {
		return err
	}
	for _, vm := range all {
		for _, nic := range items(vm.Nics()) {
			mac, ok := nic.Mac()
			if ok && slices.ContainsFunc(p.nics, func(n plannedNIC) bool { return n.mac != "" && strings.EqualFold(n.mac, val(mac.Address())) }) {
				return fault.New(fault.Exists, "restore VM", val(vm.Name()), "VM %s has the MAC address %s", val(vm.Name()), val(mac.Address())).
					Explain("A MAC address that is to be kept is in use, and the cluster's MAC pool does not allow that.",
						"Restore with new MAC addresses, or remove the VM that has them, or let the pool give addresses twice.")
			}
		}
	}
	return nil
}

var goodName = regexp.MustCompile(`^[\p{L}\p{N}._-]{1,255}$`)

func checkName(name string) error {
	if goodName.MatchString(name) {
		return nil
	}
	return fault.New(fault.Invalid, "restore VM as", fmt.Sprintf("%.100q", name), "it is not 1 to 255 letters, digits, '.', '_' and '-'").
		Explain("This cannot be the name of a VM of the engine.", "Choose another name.")
}

// nameIsFree looks whether there is a VM of the name. Each data center may have one, but who could tell them apart?
func (d *Driver) nameIsFree(ctx context.Context, name string) error {
	all, err := engine.All[*sdk.Vm](ctx, d.conn, engine.Request{Op: "look up VM", Subject: name, Path: "/vms", Query: engine.Query("search", "name="+name, "case_sensitive", "false")}, "vms", sdk.XMLVmReadMany)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(vm *sdk.Vm) bool { return strings.EqualFold(val(vm.Name()), name) }) {
		return fault.New(fault.Exists, "restore VM as", name, "a VM of that name exists").
			Explain("The engine has a VM of this name.", "Choose another name, or rename the VM.")
	}
	return nil
}

// planDisks checks the requested disks against the stored VM and finds their storage domains.
func (p *restorePlan) planDisks(req hypervisors.RestoreRequest, at *places) error {
	need := map[string]int64{}
	for n, want := range req.Disks {
		bad := func(format string, args ...any) error {
			return fault.New(fault.Invalid, "restore disk", want.ID, format, args...)
		}
		i := slices.IndexFunc(req.VM.Disks, func(disk hypervisors.Disk) bool { return disk.ID == want.ID })
		if i < 0 {
			return bad("the VM in the restore point has no such disk")
		}
		if slices.ContainsFunc(p.disks, func(o plannedDisk) bool { return o.src.ID == want.ID }) {
			return bad("it is named twice")
		}
		src := req.VM.Disks[i]
		disk := plannedDisk{
			src: src, size: cmp.Or(want.SizeBytes, src.SizeBytes), alias: fmt.Sprintf("%s%s-%d", marker, req.Tag, n), name: cmp.Or(want.Name, nameOf(src, req)),
		}
		if disk.size < src.SizeBytes || disk.size <= 0 || disk.size > 1<<60 {
			return bad("its size would be %d bytes, and the restore point has %d", disk.size, src.SizeBytes)
		}
		disk.size = (disk.size + 511) &^ 511
		var err error
		if disk.store, err = storeFor(want, src, at); err != nil {
			return err
		}
		if err := disk.choose(want, src); err != nil {
			return err
		}
		if disk.format == sdk.DISKFORMAT_COW && src.Format == hypervisors.Raw && want.Format == "" {
			p.notes = append(p.notes, fmt.Sprintf("Disk %s was raw and is qcow2 now: a raw disk on block storage is not empty at first.", cmp.Or(src.Name, src.ID)))
		}
		disk.attach = p.attachmentOf(src)
		if a := p.attachment(src.ID); a != nil {
			disk.tracked = tracked(a) && disk.format == sdk.DISKFORMAT_COW
		}
		need[disk.store.Name] += min(disk.size, max(src.UsedBytes, 1<<20))
		p.disks = append(p.disks, disk)
	}
	for _, s := range at.stores {
		if n := need[s.Name]; n > s.FreeBytes {
			return fault.New(fault.Conflict, "restore VM", req.VM.Name, "the storage domain %q has %d bytes free, and about %d are needed", s.Name, s.FreeBytes, n).
				Explain("The chosen storage domain has too little room.", "Free space there, or choose another one.")
		}
	}
	return nil
}

func storeFor(want hypervisors.RestoreDisk, src hypervisors.Disk, at *places) (store, error) {
	name := cmp.Or(want.Datastore, src.Datastore)
	for _, s := range at.stores {
		if name == "" || s.Name != name && s.ID != name {
			continue
		}
		if !s.Active || s.backup {
			return s, fault.New(fault.Conflict, "restore disk", want.ID, "no VM can run on the storage domain %q: it is not active, or a backup domain", name).
				Explain("The chosen storage domain cannot take disks of VMs.", "Activate it in the engine, or choose another one.")
		}
		return s, nil
	}
	return store{}, fault.New(fault.NotFound, "restore disk", want.ID, "there is no storage domain %q", name).
		Explain("The chosen datastore does not exist on this engine.", "List the datastores of the connection and choose one of them.")
}

// choose settles how a disk is stored. A raw disk on block storage is made of whatever lay there before: its zeros would have
// to be written, which a restore does not do.
func (disk *plannedDisk) choose(want hypervisors.RestoreDisk, src hypervisors.Disk) error {
	block := disk.store.Kind == "iscsi" || disk.store.Kind == "fcp"
	switch cmp.Or(want.Format, src.Format, hypervisors.QCOW2) {
	case hypervisors.QCOW2:
		disk.format, disk.sparse = sdk.DISKFORMAT_COW, true
	case hypervisors.Raw:
		disk.format, disk.sparse = sdk.DISKFORMAT_RAW, true
		if block && want.Format == hypervisors.Raw {
			return fault.New(fault.Invalid, "restore disk", want.ID, "raw disks are not made on the block storage domain %q", disk.store.Name).
				Explain("A new raw disk on block storage holds what lay there before.", "Choose qcow2, or a storage domain of files.")
		}
		if block {
			disk.format = sdk.DISKFORMAT_COW
		}
	default:
		return fault.New(fault.Invalid, "restore disk", want.ID, "format %q is neither raw nor qcow2", want.Format)
	}
	return nil
}

// attachment returns how a disk was attached to the source, or nil.
func (p *restorePlan) attachment(disk string) *sdk.DiskAttachment {
	if p.source == nil {
		return nil
	}
	return attachment(p.source, disk)
}

// buses are the words of other platforms for disks' interfaces.
var buses = map[string]sdk.DiskInterface{
	"virtio": sdk.DISKINTERFACE_VIRTIO, "virtio_scsi": sdk.DISKINTERFACE_VIRTIO_SCSI, "scsi": sdk.DISKINTERFACE_VIRTIO_SCSI,
	"sata": sdk.DISKINTERFACE_SATA, "ide": sdk.DISKINTERFACE_IDE, "spapr_vscsi": sdk.DISKINTERFACE_SPAPR_VSCSI,
}

func (p *restorePlan) attachmentOf(src hypervisors.Disk) attachmentSpec {
	out := attachmentSpec{bus: buses[src.Bus], boot: src.BootOrder == 1, active: true}
	if out.bus == "" {
		out.bus = sdk.DISKINTERFACE_VIRTIO_SCSI
	}
	if a := p.attachment(src.ID); a != nil {
		out.passDiscard = val(a.PassDiscard())
		if active, ok := a.Active(); ok {
			out.active = active
		}
	}
	if out.boot && slices.ContainsFunc(p.disks, func(o plannedDisk) bool { return o.attach.boot }) {
		out.boot = false // the engine allows one
	}
	return out
}

// chooseCluster takes the source's cluster, if its data center has the storage domains, or another one there.
func (p *restorePlan) chooseCluster(req hypervisors.RestoreRequest, at *places) error {
	center := ""
	for _, disk := range p.disks {
		if center != "" && disk.store.center != center {
			return fault.New(fault.Invalid, "restore VM", req.VM.Name, "its storage domains are of different data centers").
				Explain("All disks of a VM must be in one data center.", "Choose storage domains of one data center.")
		}
		center = disk.store.center
	}
	var names []string
	for _, c := range at.clusters {
		if center != "" && c.center != center {
			continue
		}
		if c.name == req.VM.Cluster && (center != "" || c.centerName == req.VM.DataCenter) {
			p.cluster = c
			return nil
		}
		names = append(names, c.name)
	}
	slices.Sort(names)
	for _, c := range at.clusters {
		if len(names) > 0 && c.name == names[0] && (center == "" || c.center == center) {
			p.cluster = c
			p.notes = append(p.notes, fmt.Sprintf("The cluster %q of the source is not in this data center; the VM is in %q.", req.VM.Cluster, c.name))
			return nil
		}
	}
	return fault.New(fault.Conflict, "restore VM", req.VM.Name, "the data center has no cluster").
		Explain("A VM needs a cluster.", "Choose storage domains of a data center that has one.")
}

// planNICs connects the NICs: as the request maps networks, or to what has the source's name.
func (p *restorePlan) planNICs(req hypervisors.RestoreRequest, at *places) error {
	for _, n := range req.VM.NICs {
		nic := plannedNIC{name: n.ID, model: n.Model, linked: true, plugged: true}
		if req.KeepMACs {
			nic.mac = n.MAC
		}
		if p.source != nil {
			for _, old := range items(p.source.Nics()) {
				if val(old.Name()) != n.ID {
					continue
				}
				if linked, ok := old.Linked(); ok {
					nic.linked = linked
				}
				if plugged, ok := old.Plugged(); ok {
					nic.plugged = plugged
				}
			}
		}
		network, mapped := req.Networks[n.Network]
		if !mapped {
			network = n.Network
		}
		if network != "" {
			if nic.profile = profileNamed(network, p.cluster, at); nic.profile == "" {
				return fault.New(fault.NotFound, "restore VM", req.VM.Name, "the data center %s has no network %q", p.cluster.centerName, network).
					Explain("A network of the VM is not on this engine.", "Map it to one that is, or to none.")
			}
		}
		p.nics = append(p.nics, nic)
	}
	return nil
}

// profileNamed returns the id of a vNIC profile of a cluster's data center.
func profileNamed(name string, c cluster, at *places) string {
	for id, p := range at.profiles {
		if p.name == name && p.center == c.center {
			return id
		}
	}
	return ""
}
