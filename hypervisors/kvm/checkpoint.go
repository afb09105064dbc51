package kvm

import (
	"cmp"
	"context"
	"encoding/xml"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"libvirt.org/go/libvirt"
)

// listCheckpoints returns all checkpoints of a domain, oldest first.
func listCheckpoints(dom *libvirt.Domain) ([]checkpointXML, error) {
	cps, err := dom.ListAllCheckpoints(libvirt.DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
	if err != nil {
		if number(err) == libvirt.ERR_NO_SUPPORT {
			return nil, nil
		}
		return nil, err
	}
	var out []checkpointXML
	for i := range cps {
		doc, err := cps[i].GetXMLDesc(libvirt.DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
		_ = cps[i].Free()
		if number(err) == libvirt.ERR_NO_DOMAIN_CHECKPOINT {
			continue
		}
		if err != nil {
			return nil, err
		}
		var x checkpointXML
		if err := xml.Unmarshal([]byte(doc), &x); err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	slices.SortStableFunc(out, func(a, b checkpointXML) int { return cmp.Compare(a.CreationTime, b.CreationTime) })
	return out, nil
}

// findCheckpoint returns one checkpoint of a domain, or nil.
func findCheckpoint(dom *libvirt.Domain, name string) (*checkpointXML, error) {
	if name == "" {
		return nil, nil
	}
	all, err := listCheckpoints(dom)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == name {
			return &all[i], nil
		}
	}
	return nil, nil
}

// Checkpoints returns the checkpoints of ours on a VM, oldest first.
func (d *Driver) Checkpoints(ctx context.Context, vm string) ([]hypervisors.Checkpoint, error) {
	if err := checkUUID(vm); err != nil {
		return nil, err
	}
	return onDomain(ctx, d.conn, "list checkpoints of", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) ([]hypervisors.Checkpoint, error) {
		all, err := listCheckpoints(dom)
		out := []hypervisors.Checkpoint{}
		for _, c := range all {
			if !strings.HasPrefix(c.Name, marker) {
				continue
			}
			cp := hypervisors.Checkpoint{Name: c.Name, Created: time.Unix(c.CreationTime, 0).UTC(), Disks: c.tracked()}
			if c.Parent != nil {
				cp.Parent = c.Parent.Name
			}
			out = append(out, cp)
		}
		return out, err
	})
}

// KeepCheckpoint removes every checkpoint of ours on a VM except keep.
func (d *Driver) KeepCheckpoint(ctx context.Context, vm, keep string) error {
	ours, err := d.Checkpoints(ctx, vm)
	if err != nil {
		return err
	}
	var drop []string
	for _, c := range ours {
		if c.Name != keep {
			drop = append(drop, c.Name)
		}
	}
	return d.deleteCheckpoints(ctx, vm, drop)
}

// deleteCheckpoints removes checkpoints one by one, never a checkpoint's children: those may be of other tools.
func (d *Driver) deleteCheckpoints(ctx context.Context, vm string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	active, err := onDomain(ctx, d.conn, "look at", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) { return dom.IsActive() })
	if err != nil {
		return err
	}
	if !active {
		// libvirt removes the bitmaps of running VMs only.
		if err := d.dropBitmaps(ctx, vm, names); err != nil {
			return err
		}
	}
	for _, name := range names {
		_, err := onDomain(ctx, d.conn, "remove checkpoint "+name+" of", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (none, error) {
			return none{}, deleteCheckpoint(dom, name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func deleteCheckpoint(dom *libvirt.Domain, name string) error {
	cp, err := dom.CheckpointLookupByName(name, 0)
	if number(err) == libvirt.ERR_NO_DOMAIN_CHECKPOINT {
		return nil
	}
	if err != nil {
		return err
	}
	defer cp.Free()
	active, err := dom.IsActive()
	if err != nil {
		return err
	}
	if !active {
		return cp.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
	}
	err = cp.Delete(0)
	if err == nil || number(err) == libvirt.ERR_NO_DOMAIN_CHECKPOINT {
		return nil
	}
	// A bitmap that is broken or gone can keep libvirt from removing the rest; what QEMU still has of it goes by QMP.
	if e := dropLiveBitmaps(dom, name); e != nil {
		return err
	}
	if e := cp.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY); e != nil && number(e) != libvirt.ERR_NO_DOMAIN_CHECKPOINT {
		return err
	}
	return nil
}

// dropLiveBitmaps removes the bitmaps of a name from every image of a running VM.
func dropLiveBitmaps(dom *libvirt.Domain, name string) error {
	m := monitor{dom}
	nodes, err := blockNodes(m)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if _, ok := n.bitmap(name); ok {
			if err := qmpRun(m, "block-dirty-bitmap-remove", map[string]any{"node": n.Name, "name": name}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
