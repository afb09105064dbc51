package command

import (
	"net/http"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/api/client"
)

// What the fake appliance has.
var (
	lab = client.Connection{
		ID: "conn_01", Name: "lab", Platform: "kvm", Address: "qemu:///system", Status: client.StatusOK, Product: "QEMU 7.2.7, libvirt 9.0.0",
		Host: "host1", HostID: "4c4c4544-0042-3510-8053-c4c04f564433", VMs: 3, CheckedAt: noon.Add(-3 * time.Minute), InventoryAt: noon.Add(-3 * time.Minute), CreatedAt: noon.Add(-50 * time.Hour),
		Capabilities: client.Capabilities{Backup: true, ChangeTracking: true, Restore: true, Power: true, Transports: []string{"nbd"}},
	}
	broken = client.Connection{
		ID: "conn_02", Name: "far", Platform: "kvm", Address: "qemu+ssh://root@far/system", Status: client.StatusProblem, CreatedAt: noon,
		Error: client.Failure{Type: "/problems/transient", Detail: "connect to far: no route to host", Meaning: "The host cannot be reached.", Advice: "Check the network."},
	}
	web = client.VM{
		ID: "vm_web", Name: "web01", ConnectionID: "conn_01", PlatformID: "11111111-2222-3333-4444-555555555555", Host: "host1", Power: client.PowerOn,
		Disks: 2, SizeBytes: 12 << 30, SeenAt: noon.Add(-3 * time.Minute), LastRestorePointID: "rp_02", LastRestorePointAt: noon.Add(-26 * time.Hour),
		Unprotectable: []client.Unprotectable{{Disk: "sdb", Reason: "it is a direct LUN, which the platform cannot freeze"}},
	}
	db1  = client.VM{ID: "vm_db1", Name: "db", ConnectionID: "conn_01", Power: client.PowerOff, Disks: 1, SizeBytes: 40 << 30, SeenAt: noon}
	db2  = client.VM{ID: "vm_db2", Name: "db", ConnectionID: "conn_02", Power: client.PowerOn, Disks: 1, SizeBytes: 40 << 30, SeenAt: noon}
	odd  = client.VM{ID: "vm_odd", Name: "odd*\x1b[2J", ConnectionID: "conn_01", Power: client.PowerOther, Gone: true, SeenAt: noon, UnprotectableReason: "it is the VM that the engine itself runs in"}
	old  = client.VM{ID: "vm_old", Name: "web01", ConnectionID: "conn_01", Power: client.PowerOff, Gone: true, SeenAt: noon}
	desc = client.VMDescription{
		Arch: "x86_64", Machine: "q35", Firmware: "uefi", SecureBoot: true, CPUs: 4, MemoryBytes: 8 << 30, Agent: true, Tags: []string{"prod", "web"},
		Disks: []client.Disk{
			{ID: "vda", Kind: "disk", Bus: "virtio", Format: "qcow2", SizeBytes: 10 << 30, UsedBytes: 3 << 30, Datastore: "default", Path: "/var/lib/libvirt/images/web01.qcow2", Serial: "A1"},
			{ID: "sdb", Kind: "lun", Bus: "scsi", SizeBytes: 100 << 30, Path: "/dev/disk/by-id/x"},
		},
		NICs:  []client.NIC{{ID: "net0", MAC: "52:54:00:aa:bb:cc", Model: "virtio", Network: "network:default"}},
		Notes: []string{"The TPM's secrets are not part of a backup."},
	}
	mainRepo = client.Repository{
		ID: "repo_01", Name: "main", Path: "/srv/backup", Status: client.StatusOK, StoreID: "st_7", KeyFile: "/var/lib/cairn/keys/repo_01.key", CreatedAt: noon.Add(-50 * time.Hour),
		Usage: client.Usage{RestorePoints: 2, Packs: 31, LogicalBytes: 24 << 30, StoredBytes: 1717986918, FreeBytes: 200 << 30},
	}
	point = client.RestorePoint{
		ID: "rp_02", VMID: "vm_web", VMName: "web01", Series: "kvm/conn_01/1111", RepositoryID: "repo_01", TaskID: "task_02", Kind: "incremental",
		Time: noon.Add(-26 * time.Hour), PublishedAt: noon.Add(-26*time.Hour + time.Minute), Consistency: client.ConsistencyCrash,
		ConsistencyNote: "the guest agent did not answer", SizeBytes: 12 << 30, ReadBytes: 300 << 20, NewBytes: 200 << 20, StoredBytes: 123456789,
		Disks: []client.RestorePointDisk{
			{ID: "vda", SizeBytes: 10 << 30, Root: "aa11", Mode: client.DiskIncremental, ReadBytes: 100 << 20},
			{ID: "vdb", SizeBytes: 2 << 30, Root: "bb22", Mode: client.DiskFull, FullReason: "the disk is raw", ReadBytes: 200 << 20},
		},
		Skipped:    []client.Unprotectable{{Disk: "sdb", Reason: "it is a direct LUN, which the platform cannot freeze"}},
		VerifiedAt: noon.Add(-2 * time.Hour),
	}
	damaged = client.RestorePoint{
		ID: "rp_01", VMID: "vm_web", VMName: "web01", RepositoryID: "repo_01", Time: noon.Add(-50 * time.Hour), Consistency: client.ConsistencyFilesystem, Kind: "full",
		SizeBytes: 12 << 30, ReadBytes: 3 << 30, StoredBytes: 1 << 30, Disks: []client.RestorePointDisk{{ID: "vda"}}, VerifyProblem: "pack 12 is damaged", VerifiedAt: noon,
	}
)

// inventory makes the fake appliance answer everything that is only read.
func (a *appliance) inventory() {
	a.get("/connections", client.ConnectionList{Items: []client.Connection{broken, lab}})
	a.get("/connections/conn_01", lab)
	a.get("/connections/conn_02", broken)
	a.get("/repositories", client.RepositoryList{Items: []client.Repository{mainRepo}})
	a.get("/repositories/repo_01", mainRepo)
	full, fullPoint := web, point
	full.Description, fullPoint.Description = desc, desc
	a.get("/vms/vm_web", full)
	a.get("/restore-points/rp_02", fullPoint)
	a.get("/restore-points/rp_01", damaged)
	a.get("/restore-points", client.RestorePointList{Items: []client.RestorePoint{point, damaged}})
	a.HandleFunc("GET /vms/{id}", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, 404, "not-found", "there is no such VM", "", "")
	})
	a.HandleFunc("GET /vms", a.listVMs)
	a.HandleFunc("GET /restore-points/{id}", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, 404, "not-found", "find restore point "+r.PathValue("id")+": there is no such restore point", "", "List them.")
	})
}

// listVMs gives one VM a page, filters names with stars and hides what is gone unless asked.
func (a *appliance) listVMs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var hits []client.VM
	for _, v := range []client.VM{db1, db2, odd, old, web} {
		if v.Gone && q.Get("gone") != "true" {
			continue
		}
		if n := q.Get("name"); n != "" && n != v.Name && !(strings.HasSuffix(n, "*") && strings.HasPrefix(v.Name, strings.TrimSuffix(n, "*"))) {
			continue
		}
		if c := q.Get("connection"); c != "" && c != v.ConnectionID {
			continue
		}
		hits = append(hits, v)
	}
	start := len(q.Get("page_token"))
	list := client.VMList{Items: []client.VM{}}
	if q.Get("include_total") == "true" {
		list.Total = ref(len(hits))
	}
	if start < len(hits) {
		list.Items = hits[start : start+1]
		if start+1 < len(hits) {
			list.Next = strings.Repeat("x", start+1)
		}
	}
	reply(w, 200, list)
}
