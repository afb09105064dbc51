package command

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

var update = flag.Bool("update", false, "rewrite testdata")

// TestPages compares what commands print on standard output with testdata/pages, byte for byte.
func TestPages(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	a.get("/runs", client.RunList{Items: []client.Run{failedRun, runningRun}})
	a.get("/runs/run_02", failedRun)
	a.get("/runs/run_02/events", client.RunEventList{Items: events})
	a.get("/tasks", client.TaskList{Items: []client.Task{runningRun.Tasks[0], failedRun.Tasks[0]}})
	a.get("/tasks/task_03", runningRun.Tasks[0])
	a.get("/connections/conn_01/datastores", client.DatastoreList{Items: []client.Datastore{{Name: "default", Kind: "dir", Path: "/var/lib/libvirt/images", CapacityBytes: 1 << 40, FreeBytes: 1 << 39, Active: true}}})
	a.get("/connections/conn_01/networks", client.NetworkList{Items: []client.Network{{Name: "network:default", Kind: "network", Active: true}, {Name: "bridge:br0", Kind: "bridge"}}})
	a.get("/tokens", client.TokenList{Items: []client.Token{{ID: "tok_1", Name: "ci", Scope: client.ScopeAll, User: "admin", ExpiresAt: noon.Add(90 * 24 * time.Hour)}}})
	a.get("/movers", client.MoverList{Items: movers})
	a.get("/mover-limits", client.MoverLimitList{Items: moverLimits})
	a.get("/audit", client.AuditList{Items: audited})
	pages := []string{
		"mover list", "mover list -o wide", "mover show m1", "mover show built-in", "mover limit list", "audit list",
		"connection list", "connection list -o wide", "connection list -o json", "connection show lab", "connection show far", "connection datastores lab",
		"connection networks lab", "repository list", "repository list -o yaml", "repository show", "vm list", "vm list -o wide", "vm list -o name",
		"vm list db -o json", "vm list --gone", "vm show web01", "vm show vm_web -o yaml", "point list", "point list web01 -o wide", "point show rp_02", "point show rp_01",
		"run list", "run list -o wide", "run show run_02", "task list", "task show task_03", "token list",
	}
	for _, page := range pages {
		t.Run(page, func(t *testing.T) {
			got := a.run(t, strings.Fields(page)...)
			if got.code != 0 || got.stderr != "" {
				t.Fatalf("exit code %d, stderr %q", got.code, got.stderr)
			}
			compare(t, filepath.Join("testdata", "pages", strings.ReplaceAll(page, " ", "_")+".txt"), got.stdout)
		})
	}
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, string(want)); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
}

var (
	failedRun = client.Run{
		ID: "run_02", Kind: client.RunBackup, State: client.StateFailed, RequestedBy: "admin", CreatedAt: noon.Add(-10 * time.Minute),
		StartedAt: noon.Add(-10 * time.Minute), EndedAt: noon.Add(-7 * time.Minute),
		Tasks: []client.Task{{
			ID: "task_02", RunID: "run_02", Kind: client.RunBackup, State: client.StateFailed, VMID: "vm_web", VMName: "web01", CreatedAt: noon.Add(-10 * time.Minute),
			StartedAt: noon.Add(-10 * time.Minute), EndedAt: noon.Add(-7 * time.Minute), Attempt: 1,
			Progress: client.Progress{BytesTotal: 12 << 30, BytesScanned: 6 << 30, BytesRead: 1 << 30, BytesNew: 1 << 29, BytesStored: 1 << 28},
			Transfers: []client.Transfer{{Disk: "vda", Transport: "nbd", Mover: "built-in", Mode: "full", FullReason: "there is no checkpoint yet", ChosenBecause: "it runs on the machine that offers the disk, 0 of 8 slots in use",
				Rejected: []client.RejectedWay{{Transport: "hotadd", Reason: "the connection has no mover VM that is on"}, {Mover: "m1", Reason: "it is drained"}}, Progress: client.Progress{BytesTotal: 12 << 30, BytesScanned: 6 << 30, BytesRead: 1 << 30}}},
			Error: client.Failure{Type: "/problems/transient", Detail: "write pack 7: no space left on device", Meaning: "The repository is full.", Advice: "Make room, then back up again."},
		}},
	}
	runningRun = client.Run{
		ID: "run_03", Kind: client.RunRestore, State: client.StateRunning, RequestedBy: "admin", CreatedAt: noon.Add(-90 * time.Second), StartedAt: noon.Add(-80 * time.Second),
		Tasks: []client.Task{{
			ID: "task_03", RunID: "run_03", Kind: client.RunRestore, State: client.StateRunning, Phase: "transferring", VMName: "web01", RestorePointID: "rp_02",
			CreatedAt: noon.Add(-90 * time.Second), StartedAt: noon.Add(-80 * time.Second),
			Progress: client.Progress{BytesTotal: 8 << 30, BytesScanned: 2 << 30, BytesRead: 1 << 30, RateBytesPerSecond: 150 << 20, ETASeconds: 40, Bottleneck: "store"},
			Warnings: []string{"The network \"old\" is not there; the NIC is not connected."},
		}},
	}
	events = []client.RunEvent{
		{ID: "1", RunID: "run_02", Time: noon.Add(-10 * time.Minute), Level: client.LevelInfo, Message: "frozen", Fields: map[string]string{"disk": "vda", "bytes": "1073741824"}},
		{ID: "2", RunID: "run_02", Time: noon.Add(-7 * time.Minute), Level: client.LevelError, Message: "write pack 7: no space left on device", Advice: "Make room, then back up again."},
	}
)

var (
	movers = []client.Mover{
		{ID: "built-in", Name: "built-in", State: client.MoverOnline, Slots: 8, Hostname: "cairn", CPUs: 2, Version: "1.2.3", Transports: []string{"nbd"}},
		{
			ID: "mover_01", Name: "m1", State: client.MoverDraining, Transfers: 1, Slots: 4, Rate: 100 << 20, Hostname: "m1.example", CPUs: 2,
			MemoryBytes: 512 << 20, Version: "1.2.3", Transports: []string{"nbd"}, MachineUUID: "0c5d", Outdated: true, ReadLimit: 100 << 20, NetworkLimit: 20 << 20,
			ReceivedBytes: 3 << 30, SentBytes: 5 << 20, Mounts: []client.MoverMount{{Path: "/srv/repository", StoreID: "3f9a"}}, Source: "192.0.2.7", EnrolledAt: noon.Add(-48 * time.Hour),
			ConnectedAt: noon.Add(-2 * time.Hour), LastSeenAt: noon.Add(-2 * time.Hour), CertificateEndsAt: noon.Add(20 * time.Hour),
		},
		{
			ID: "mover_02", Name: "m2", State: client.MoverRevoked, Slots: 4, Hostname: "m2.example", Source: "192.0.2.8", EnrolledAt: noon.Add(-48 * time.Hour),
			LastSeenAt: noon.Add(-3 * time.Hour), RevokedAt: noon.Add(-time.Hour), CertificateEndsAt: noon.Add(-time.Hour),
		},
	}
	moverLimits = []client.MoverLimit{
		{ID: "limit_1", Kind: client.LimitOfLink, Name: "10.2.0.0/16", NetworkBytesPerSecond: 20 << 20, From: "07:00", To: "19:00", Days: []string{"mon", "tue"}, Holds: true, CreatedBy: "admin"},
		{ID: "limit_2", Kind: client.LimitOfMover, Name: "m1", Slots: 2, ReadBytesPerSecond: 100 << 20},
	}
	audited = []client.AuditEntry{
		{ID: "2", Time: noon.Add(-time.Minute), Source: "192.0.2.66", Action: "mover.enrol", Refused: true, Detail: "use join token: it was used already", Hash: "cd"},
		{ID: "1", Time: noon.Add(-time.Hour), Actor: "admin", Source: "192.0.2.1", Action: "mover.revoke", Subject: "m2", Detail: "mover_02", Hash: "ab"},
	}
)
