package ovirt

import (
	"context"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Names of the documents kept with a restore point. They may hold secrets (cloud-init's root password and keys), so they
// are never logged.
const (
	docVM  = "vm.xml" // the API's own description, with what belongs to the VM
	docOVF = "vm.ovf" // the engine's OVF
)

const xmlType = "application/xml"

// manyParts are the collections of a VM that are kept; an engine that does not know all of them gets withParts.
const manyParts = withParts + ",graphics_consoles,watchdogs,cdroms"

// vmDocument reads the API's description of a VM as it is.
func (d *Driver) vmDocument(ctx context.Context, vm string) (hypervisors.Document, error) {
	r := engine.Request{Op: "read configuration of VM", Subject: vm, Path: "/vms/" + vm, Query: engine.Query("follow", manyParts, "all_content", "true"), Content: true}
	out, err := d.conn.Do(ctx, r)
	if err != nil && fault.KindOf(err) == fault.Invalid {
		r.Query.Set("follow", withParts)
		out, err = d.conn.Do(ctx, r)
	}
	if err != nil {
		return hypervisors.Document{}, err
	}
	_, err = apixml.DecodeOne(out, "vm", sdk.XMLVmReadOne)
	return hypervisors.Document{Name: docVM, MediaType: xmlType, Data: out}, err
}

// ovfOf takes the OVF out of a VM's or snapshot's description, "" where there is none.
func ovfOf(i *sdk.Initialization, there bool) string {
	if !there {
		return ""
	}
	c, ok := i.Configuration()
	if !ok {
		return ""
	}
	return val(c.Data())
}

// snapshotOVF reads the OVF that a snapshot has kept. Engines give it in the list only, or in the single entity only.
func (d *Driver) snapshotOVF(ctx context.Context, vm, snapshot string) (string, error) {
	s, err := d.snapshot(ctx, vm, snapshot, true)
	if err != nil {
		return "", err
	}
	if ovf := ovfOf(s.Initialization()); ovf != "" {
		return ovf, nil
	}
	all, err := engine.All[*sdk.Snapshot](ctx, d.conn, engine.Request{
		Op: "list snapshots of VM", Subject: vm, Path: "/vms/" + vm + "/snapshots", Query: engine.Query("all_content", "true"), Content: true,
	}, "snapshots", sdk.XMLSnapshotReadMany)
	if err != nil {
		return "", err
	}
	for _, s := range all {
		if val(s.Id()) == snapshot {
			return ovfOf(s.Initialization()), nil
		}
	}
	return "", nil
}
