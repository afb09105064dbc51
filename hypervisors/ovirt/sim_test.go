package ovirt

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

const (
	webID     = "11111111-0000-4000-8000-000000000001"
	archiveID = "11111111-0000-4000-8000-000000000002"
	moverID   = "11111111-0000-4000-8000-000000000003"
	noSuchID  = "11111111-0000-4000-8000-0000000000ff"
)

// testSite has a VM that runs, with an agent or without, one that is off, and a mover.
func testSite(agent bool) ovirtsim.Site {
	return ovirtsim.Site{
		Labels: []string{"gold"}, Tags: []string{"prod"},
		DataCenters: []ovirtsim.DataCenter{{
			Name: "Default", Networks: []string{"ovirtmgmt", "backend"},
			Storage: []ovirtsim.StorageDomain{{Name: "data1"}, {Name: "san1", Storage: "iscsi"}, {Name: "images", Kind: "iso"}},
			Clusters: []ovirtsim.Cluster{{Name: "Default", Hosts: []string{"host1", "host2"}, VMs: []ovirtsim.VM{
				{ID: webID, Name: "web", Up: true, Agent: agent, Tags: []string{"prod"}, Labels: []string{"gold"}, Networks: []string{"ovirtmgmt", "backend"},
					Disks: []ovirtsim.Disk{{}, {Bytes: 8 << 20}}, RootPassword: "initial-secret"},
				{ID: archiveID, Name: "archive", UEFI: true, Networks: []string{"ovirtmgmt"}, Disks: []ovirtsim.Disk{{Bytes: 8 << 20}, {Bytes: 4 << 20, Storage: "san1"}}},
				{ID: moverID, Name: "mover1", Comment: moverComment, Up: true, Idle: true, Networks: []string{"ovirtmgmt"}, Disks: []ovirtsim.Disk{{}}},
			}}},
		}},
	}
}

// startEngine starts a simulated engine.
func startEngine(t *testing.T, cfg ovirtsim.Config) *ovirtsim.Engine {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("CAIRN_LAB") == "" {
		t.Skip("the simulator needs root for its disks, and CAIRN_LAB is not set")
	}
	e, err := ovirtsim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return e
}

// openDriver connects to an engine, at the pace of one that is fast.
func openDriver(t *testing.T, e *ovirtsim.Engine, change ...func(*Config)) *Driver {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, e.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		URL: e.URL(), User: "admin@internal", Password: "secret", Options: map[string]string{OptCAFile: ca},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range change {
		f(&cfg)
	}
	d, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.pace.first, d.pace.most, d.pace.busy, d.pace.events = 2*time.Millisecond, 50*time.Millisecond, 3*time.Second, 20*time.Millisecond
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close the driver: %v", err)
		}
	})
	return d
}
