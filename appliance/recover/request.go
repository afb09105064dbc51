package recover

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// Spec is what is wanted of a restore; it is the Spec of its task. Empty fields mean: as in the restore point.
type Spec struct {
	RestorePointID string                    `json:"restore_point_id"`
	Mode           hypervisors.RestoreMode   `json:"mode"`
	Name           string                    `json:"name,omitempty"`
	IntoVMID       string                    `json:"into_vm_id,omitempty"` // the VM that gets the disks
	ConnectionID   string                    `json:"connection_id,omitempty"`
	Datastore      string                    `json:"datastore,omitempty"`  // for disks that name none
	Disks          []hypervisors.RestoreDisk `json:"disks,omitempty"`      // only ID, Datastore and Format count
	OnlyDisks      []string                  `json:"only_disks,omitempty"` // ids; empty is all
	Networks       map[string]string         `json:"networks,omitempty"`
	KeepMACs       bool                      `json:"keep_macs,omitempty"`
	Start          bool                      `json:"start,omitempty"`
	Mover          string                    `json:"mover,omitempty"` // id or name; "" is chosen
	Transport      string                    `json:"transport,omitempty"`
	Fallback       bool                      `json:"fallback,omitempty"` // to another transport when one fails
}

// Plan is what a restore would make.
type Plan struct {
	ConnectionID string
	Request      hypervisors.RestoreRequest
	LeftOut      []LeftOut
	Warnings     []string
}

// LeftOut is a disk of the source that is not restored, and why.
type LeftOut struct{ Disk, Reason string }

// order is a checked request with all it needs.
type order struct {
	spec   Spec
	point  catalog.RestorePoint
	conn   catalog.Connection
	driver hypervisors.Driver
	repo   *store.Repository
	images map[string]store.ImageRef
	left   []LeftOut
	req    hypervisors.RestoreRequest // without Tag and Owe
	into   catalog.VM                 // that gets the disks; zero for other modes
}

// Plan checks a request against the platform as it is now and says what would be made. It changes nothing.
func (r *Recoverer) Plan(ctx context.Context, spec Spec) (Plan, error) {
	o, err := r.order(ctx, spec)
	if err != nil {
		return Plan{}, err
	}
	return o.plan(ctx)
}

func (o *order) plan(ctx context.Context) (Plan, error) {
	if err := checkNetworks(o.req, o.point.ID); err != nil {
		return Plan{}, err
	}
	if err := o.check(ctx, "plan"); err != nil {
		return Plan{}, err
	}
	p := Plan{ConnectionID: o.conn.ID, Request: o.req, LeftOut: o.left}
	for _, s := range o.point.Skipped {
		if s.Kind == hypervisors.KindDisk || s.Kind == hypervisors.KindLUN {
			p.LeftOut = append(p.LeftOut, LeftOut{s.ID, "not in the restore point: " + s.Reason})
			p.Warnings = append(p.Warnings, "Disk "+s.ID+" is not in the restore point: "+s.Reason)
		}
	}
	if o.point.VerifyResult == catalog.VerifyDamaged {
		p.Warnings = append(p.Warnings, "The last verify found this restore point damaged.")
	}
	return p, nil
}

// RequestRestore checks a request like Plan and makes the task for it, which it does not store.
func (r *Recoverer) RequestRestore(ctx context.Context, spec Spec) (*catalog.Task, error) {
	o, err := r.order(ctx, spec)
	if err != nil {
		return nil, err
	}
	p, err := o.plan(ctx)
	if err != nil {
		return nil, err
	}
	return o.task(p)
}

// task makes the task of a request that was found possible.
func (o *order) task(p Plan) (*catalog.Task, error) {
	raw, err := json.Marshal(o.spec)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "restore", o.point.ID, err)
	}
	t := &catalog.Task{
		VMID: o.point.VMID, VMName: p.Request.Name, ConnectionID: p.ConnectionID, RepositoryID: o.point.RepositoryID,
		RestorePointID: o.point.ID, Spec: raw,
		// The VM that is made is what the task has for itself; its name stands for it.
		Subject: p.ConnectionID + "/" + p.Request.Name,
	}
	switch o.spec.Mode {
	case hypervisors.RestoreInPlace:
		t.Subject = o.point.VMID
	case hypervisors.RestoreInto:
		t.Subject = o.into.ID
	case hypervisors.RestoreDisks:
		t.Subject = "" // nobody else has what it makes
	}
	return t, nil
}

// order reads everything a restore needs from catalog and repository.
func (r *Recoverer) order(ctx context.Context, spec Spec) (*order, error) {
	o := &order{spec: spec}
	var err error
	if o.point, err = r.catalog.RestorePoint(ctx, spec.RestorePointID); err != nil {
		return nil, err
	}
	if spec.Mode == hypervisors.RestoreInto {
		if o.into, err = r.intoOf(ctx, spec); err != nil {
			return nil, err
		}
		spec.ConnectionID = o.into.ConnectionID
	}
	if spec.ConnectionID == "" {
		spec.ConnectionID = o.point.ConnectionID
	}
	if err := checkSpec(spec, o.point); err != nil {
		return nil, err
	}
	if o.conn, err = r.catalog.Connection(ctx, spec.ConnectionID); err != nil {
		if o.spec.ConnectionID == "" && fault.KindOf(err) == fault.NotFound {
			err = unknownOrigin(o.point)
		}
		return nil, err
	}
	if o.driver, err = r.drivers(ctx, o.conn.ID); err != nil {
		return nil, err
	}
	if o.repo, err = r.repositories(ctx, o.point.RepositoryID); err != nil {
		return nil, err
	}
	stored, err := o.repo.RestorePoint(ctx, o.point.ID)
	if err != nil {
		return nil, fault.Context("read restore point", o.point.ID, err)
	}
	o.req, err = r.request(ctx, o, stored)
	return o, err
}

// checkNetworks refuses to map what the VM is not connected to. A name that is misspelt would otherwise leave its NIC where the
// original's is, beside the original.
func checkNetworks(req hypervisors.RestoreRequest, point string) error {
	var known []string
	for _, nic := range req.VM.NICs {
		known = append(known, strconv.Quote(nic.Network))
	}
	for _, from := range slices.Sorted(maps.Keys(req.Networks)) {
		if slices.ContainsFunc(req.VM.NICs, func(n hypervisors.NIC) bool { return n.Network == from }) {
			continue
		}
		advice := "It is connected to none: leave the mapping out."
		if len(known) > 0 {
			advice = "It is connected to " + strings.Join(slices.Compact(slices.Sorted(slices.Values(known))), ", ") + "."
		}
		return fault.New(fault.Invalid, "restore", point, "network %q is not to be mapped", from).Explain(
			"The VM in the restore point is not connected to that network.", advice)
	}
	return nil
}

// unknownOrigin is for a restore point that came with its repository, from a connection of another catalog.
func unknownOrigin(point catalog.RestorePoint) error {
	return fault.New(fault.Invalid, "restore", point.ID, "its connection %q is not in the catalog, and no other is named", point.ConnectionID).Explain(
		"The restore point was made through a connection that this appliance does not know, or not any more.",
		"Restore it as a new VM, and name the connection to restore to: --connection, in the API \"connection\".")
}

func checkSpec(spec Spec, point catalog.RestorePoint) error {
	invalid := func(format string, args ...any) *fault.Error {
		return fault.New(fault.Invalid, "restore", point.ID, format, args...)
	}
	switch spec.Mode {
	case hypervisors.RestoreNew:
		if spec.Name == "" {
			return invalid("a new VM needs a name")
		}
	case hypervisors.RestoreInPlace:
		if spec.ConnectionID != point.ConnectionID {
			return invalid("in place means on the connection the VM was backed up from")
		}
		if point.VMID == "" {
			return fault.New(fault.NotFound, "restore", point.ID, "the original VM is not known").Explain(
				"The connection has no VM any more whose disks could be replaced.", "Restore it as a new VM.")
		}
	case hypervisors.RestoreDisks, hypervisors.RestoreInto:
		if len(spec.Networks) > 0 || spec.KeepMACs || spec.Start {
			return invalid("mode %q makes no VM whose networks could be mapped, or that could be started", spec.Mode)
		}
	default:
		return invalid("there is no mode %q", spec.Mode)
	}
	has := func(id string) bool {
		return slices.ContainsFunc(point.Disks, func(p catalog.PointDisk) bool { return p.ID == id })
	}
	for i, id := range spec.OnlyDisks {
		if !has(id) {
			return invalid("it has no disk %q", id).Explain(
				"A disk that is to be restored is not in the restore point.", "It has these: "+disksOf(point)+".")
		}
		if slices.Contains(spec.OnlyDisks[:i], id) {
			return invalid("disk %q is chosen twice", id)
		}
	}
	for i, d := range spec.Disks {
		if !has(d.ID) {
			return invalid("it has no disk %q", d.ID)
		}
		if len(spec.OnlyDisks) > 0 && !slices.Contains(spec.OnlyDisks, d.ID) {
			return invalid("it is said how to restore disk %q, which is not among those that were chosen", d.ID)
		}
		if slices.ContainsFunc(spec.Disks[:i], func(e hypervisors.RestoreDisk) bool { return e.ID == d.ID }) {
			return invalid("disk %q is named twice", d.ID)
		}
	}
	return nil
}

// disksOf names the disks of a restore point.
func disksOf(point catalog.RestorePoint) string {
	ids := make([]string, len(point.Disks))
	for i, d := range point.Disks {
		ids[i] = d.ID
	}
	return strings.Join(ids, ", ")
}

func (r *Recoverer) request(ctx context.Context, o *order, stored store.RestorePoint) (hypervisors.RestoreRequest, error) {
	req := hypervisors.RestoreRequest{
		Mode: o.spec.Mode, Name: o.spec.Name, Networks: o.spec.Networks, KeepMACs: o.spec.KeepMACs,
	}
	if err := json.Unmarshal(stored.Description, &req.VM); err != nil {
		return req, fault.Wrap(fault.Unsupported, "read description of VM in", stored.ID, err)
	}
	switch req.Mode {
	case hypervisors.RestoreInPlace, hypervisors.RestoreDisks:
		req.Name = req.VM.Name
	case hypervisors.RestoreInto:
		req.Name, req.Into = o.into.Name, o.into.PlatformID
	}
	for _, d := range stored.Documents {
		data, err := o.repo.Document(ctx, stored.ID, d.Name)
		if err != nil {
			return req, fault.Context("read document", d.Name, err)
		}
		req.Documents = append(req.Documents, hypervisors.Document{Name: d.Name, MediaType: d.MediaType, Data: data})
	}
	o.images = make(map[string]store.ImageRef, len(stored.Images))
	for _, img := range stored.Images {
		if len(o.spec.OnlyDisks) > 0 && !slices.Contains(o.spec.OnlyDisks, img.Name) {
			o.left = append(o.left, LeftOut{img.Name, "not chosen"})
			req.Chosen = true
			continue
		}
		o.images[img.Name] = img.Ref
		req.Disks = append(req.Disks, o.disk(img))
	}
	o.nameDisks(&req)
	return req, nil
}

func (o *order) disk(img store.NamedImage) hypervisors.RestoreDisk {
	d := hypervisors.RestoreDisk{ID: img.Name, SizeBytes: img.Ref.SizeBytes, Datastore: o.spec.Datastore}
	for _, want := range o.spec.Disks {
		if want.ID != img.Name {
			continue
		}
		d.Format = want.Format
		if want.Datastore != "" {
			d.Datastore = want.Datastore
		}
	}
	return d
}

// check asks the platform whether the request could be carried out now.
func (o *order) check(ctx context.Context, tag string) error {
	c := o.driver.Capabilities()
	can := map[hypervisors.RestoreMode]bool{
		hypervisors.RestoreNew: true, hypervisors.RestoreInPlace: c.RestoreInPlace, hypervisors.RestoreDisks: c.RestoreDisks, hypervisors.RestoreInto: c.RestoreInto,
	}
	if !c.Restore || !can[o.spec.Mode] {
		return fault.New(fault.Unsupported, "restore to connection", o.conn.Name, "it cannot restore in the mode %s", o.spec.Mode).Explain(
			"The platform behind this connection, or its version, cannot do this kind of restore.",
			"Restore in another mode, or to another connection.")
	}
	req := o.req
	req.Tag = tag
	if err := o.driver.CheckRestore(ctx, req); err != nil {
		return fault.Context("restore to connection", o.conn.Name, err)
	}
	return nil
}
