package ovirt

import (
	"context"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/blockdomain"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// onLUNs says where disks of a snapshot lie on the LUNs of block storage domains, by disk. A disk that lies elsewhere, or of which the
// engine does not say enough, is left out: there are other ways to it. The open image transfer of a disk keeps the engine from merging
// or moving the volumes meanwhile.
func (d *Driver) onLUNs(ctx context.Context, disks []*sdk.Disk) map[string]*hypervisors.SAN {
	out := map[string]*hypervisors.SAN{}
	domains := map[string]*lunDomain{}
	for _, disk := range disks {
		for _, s := range items(disk.StorageDomains()) {
			id := val(s.Id())
			if _, known := domains[id]; !known {
				found, err := d.lunDomain(ctx, id)
				if err != nil {
					d.log.WarnContext(ctx, "it is not known where the disks of a storage domain lie", "datastore", id, "err", err)
				}
				domains[id] = found
			}
			if domains[id] == nil {
				continue
			}
			san, err := d.onDomain(ctx, domains[id], disk)
			if err != nil {
				d.log.WarnContext(ctx, "a disk cannot be read from the SAN", "disk", val(disk.Id()), "err", err)
				continue
			}
			out[val(disk.Id())] = san
		}
	}
	return out
}

// lunDomain is a storage domain of LUNs with its volumes.
type lunDomain struct {
	blockdomain.Domain
	volumes map[string]*sdk.DiskSnapshot
}

// lunDomain reads a storage domain; nil is one of files.
func (d *Driver) lunDomain(ctx context.Context, id string) (*lunDomain, error) {
	if err := checkID("storage domain", id); err != nil {
		return nil, err
	}
	path := "/storagedomains/" + id
	x, err := engine.One(ctx, d.conn, engine.Request{Op: "look at storage domain", Subject: id, Path: path}, "storage_domain", sdk.XMLStorageDomainReadOne)
	if err != nil {
		return nil, err
	}
	storage, ok := x.Storage()
	kind := sdk.StorageType("")
	if ok {
		kind = val(storage.Type())
	}
	if kind != sdk.STORAGETYPE_ISCSI && kind != sdk.STORAGETYPE_FCP {
		return nil, nil
	}
	out := &lunDomain{Domain: blockdomain.Domain{ID: id}, volumes: map[string]*sdk.DiskSnapshot{}}
	if group, ok := storage.VolumeGroup(); ok {
		out.GroupUUID = groupUUID(val(group.Id()))
		for _, u := range items(group.LogicalUnits()) {
			out.LUNs = append(out.LUNs, hypervisors.LUN{WWN: val(u.Id())})
		}
	}
	all, err := engine.All[*sdk.DiskSnapshot](ctx, d.conn, engine.Request{
		Op: "list volumes of storage domain", Subject: id, Path: path + "/disksnapshots",
		Query: engine.Query("include_active", "true", "include_template", "true"),
	}, "disk_snapshots", sdk.XMLDiskSnapshotReadMany)
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		out.volumes[val(v.Id())] = v
	}
	return out, nil
}

// groupUUID keeps an id that can be one of LVM's; the group's name is the domain's id in any case.
func groupUUID(id string) string {
	if goodID.MatchString(id) {
		return ""
	}
	return id
}

// onDomain follows a disk's volumes down from the snapshot's.
func (d *Driver) onDomain(ctx context.Context, on *lunDomain, disk *sdk.Disk) (*hypervisors.SAN, error) {
	const op = "find volumes of disk"
	id := val(disk.Id())
	now, err := engine.One(ctx, d.conn, engine.Request{Op: "look at disk", Subject: id, Path: "/disks/" + id}, "disk", sdk.XMLDiskReadOne)
	if err != nil {
		return nil, err
	}
	var chain []blockdomain.Volume
	for at := val(disk.ImageId()); at != ""; {
		v := on.volumes[at]
		if v == nil || len(chain) == len(on.volumes) {
			return nil, fault.New(fault.Conflict, op, id, "volume %q is not listed in its storage domain, or below itself", at)
		}
		chain = append(chain, blockdomain.Volume{ID: at, Disk: idOf(v.Disk()), Format: formatOf(val(v.Format()))})
		at = idOf(v.Parent())
	}
	return blockdomain.SAN(on.Domain, chain, val(now.ImageId()))
}
