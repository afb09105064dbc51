package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
)

// The catalog has VMs and restore points of a connection and of repositories that are not there any more, so that
// nothing that cairnd does when it starts changes them.
const (
	filledConnection = "conn_load"
	bigRepository    = "repo_big"
	smallRepository  = "repo_small"
	smallShare       = 100 // one in so many restore points is in the small repository
)

// openCatalog opens the catalog of a data directory that no cairnd works on.
func openCatalog(ctx context.Context, data string) (*catalog.Catalog, error) {
	return catalog.Open(ctx, catalog.Options{Path: filepath.Join(data, "catalog.db"), KeyFile: filepath.Join(data, "keys", "catalog.key")})
}

var sites = []string{"web", "db", "mail", "build", "desktop", "proxy", "store"}

// fillVMs stores an inventory of n VMs.
func fillVMs(ctx context.Context, c *catalog.Catalog, n int, r *rand.Rand) error {
	vms := make([]hypervisors.VM, n)
	for i := range vms {
		power := hypervisors.PowerOn
		if r.IntN(5) == 0 {
			power = hypervisors.PowerOff
		}
		vms[i] = hypervisors.VM{
			ID: fmt.Sprintf("%032x", i), Name: fmt.Sprintf("%s-%05d", sites[r.IntN(len(sites))], i), Host: fmt.Sprintf("host-%02d", i%40), Power: power,
			Arch: "x86_64", Machine: "q35", Firmware: hypervisors.UEFI, CPUs: 4, MemoryBytes: 8 << 30, Tags: []string{"load", sites[i%len(sites)]},
			NICs: []hypervisors.NIC{{ID: "net0", MAC: fmt.Sprintf("52:54:00:%02x:%02x:%02x", i>>16&255, i>>8&255, i&255), Network: "default"}},
		}
		for d := range 1 + i%3 {
			vms[i].Disks = append(vms[i].Disks, hypervisors.Disk{
				ID: fmt.Sprintf("vd%c", 'a'+d), Kind: hypervisors.KindDisk, Bus: "virtio", Format: hypervisors.QCOW2, SizeBytes: 40 << 30,
				Datastore: "default", Path: fmt.Sprintf("/var/lib/libvirt/images/%d-%d.qcow2", i, d),
			})
		}
	}
	_, err := c.SyncVMs(ctx, filledConnection, vms)
	return err
}

// vmIDs returns the ids of the VMs that fillVMs made, and their names.
func vmIDs(ctx context.Context, c *catalog.Catalog) (ids, names []string, err error) {
	for p := (catalog.Page{Limit: catalog.MaxLimit}); ; {
		list, err := c.VMs(ctx, catalog.VMFilter{ConnectionID: filledConnection}, p)
		if err != nil {
			return nil, nil, err
		}
		for _, v := range list.Items {
			ids, names = append(ids, v.ID), append(names, v.Name)
		}
		if p.Cursor = list.Next; p.Cursor == "" {
			return ids, names, nil
		}
	}
}

// fillPoints stores the restore points from the from'th to the to'th, an hour apart, of VMs in turn.
func fillPoints(ctx context.Context, c *catalog.Catalog, from, to int, r *rand.Rand) error {
	ids, names, err := vmIDs(ctx, c)
	if err != nil {
		return err
	}
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const batch = 5000
	points := make([]catalog.RestorePoint, 0, batch)
	for i := from; i < to; i++ {
		vm := i % len(ids)
		repository := bigRepository
		if i%smallShare == 0 {
			repository = smallRepository
		}
		at := began.Add(time.Duration(i) * 30 * time.Second)
		points = append(points, catalog.RestorePoint{
			ID: fmt.Sprintf("rp_%026d", i), RepositoryID: repository, ConnectionID: filledConnection, VMID: ids[vm], VMName: names[vm],
			Series: "memory/" + filledConnection + "/" + ids[vm], TaskID: fmt.Sprintf("task_%026d", i), Time: at, Published: at.Add(time.Minute),
			Kind: catalog.Incremental, Consistency: hypervisors.CrashConsistent, SizeBytes: 80 << 30, BytesRead: r.Int64N(4 << 30),
			BytesNew: r.Int64N(2 << 30), BytesStored: r.Int64N(1 << 30),
			Disks: []catalog.PointDisk{{ID: "vda", SizeBytes: 40 << 30, Format: hypervisors.QCOW2, Root: fmt.Sprintf("%064x", i), Mode: catalog.Incremental}},
		})
		if len(points) == batch || i == to-1 {
			if _, err := c.AddRestorePoints(ctx, points); err != nil {
				return err
			}
			points = points[:0]
		}
	}
	return nil
}
