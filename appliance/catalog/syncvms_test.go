package catalog

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
)

// manyVMs are VMs as a platform would describe them.
func manyVMs(n int) []hypervisors.VM {
	out := make([]hypervisors.VM, n)
	for i := range out {
		out[i] = hypervisors.VM{
			ID: fmt.Sprintf("id-%05d", i), Name: fmt.Sprintf("vm%05d", i), Power: hypervisors.PowerOn, Cluster: "prod", Host: fmt.Sprintf("host%d", i%20), Tags: []string{"gold"},
			Disks: []hypervisors.Disk{{ID: "vda", SizeBytes: 10 << 30, Datastore: "fast"}, {ID: "vdb", SizeBytes: 100 << 30, Datastore: "slow"}},
		}
	}
	return out
}

func TestOnlyWhatChangedIsWritten(t *testing.T) { onEach(t, testOnlyWhatChangedIsWritten) }

func testOnlyWhatChangedIsWritten(t *testing.T, dir string) {
	c := open(t, dir)
	ctx := t.Context()
	conn := Connection{Name: "one"}
	if err := c.CreateConnection(ctx, &conn, ""); err != nil {
		t.Fatal(err)
	}
	vms := manyVMs(4)
	sync := func(want InventoryReport, vms ...hypervisors.VM) {
		t.Helper()
		got, err := c.SyncVMs(ctx, conn.ID, vms)
		if want.VMs = len(vms); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	row := func(i int) VM {
		t.Helper()
		v, err := c.VMByPlatformID(ctx, conn.ID, vms[i].ID)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	sync(InventoryReport{Added: 4}, vms...)
	before := row(0)
	// A mark that no inventory makes says whether a row is written.
	if err := c.db.Model(&VM{}).Where("id = ?", before.ID).Update("name", "marked").Error; err != nil {
		t.Fatal(err)
	}
	vms[1].Power = hypervisors.PowerOff
	sync(InventoryReport{Changed: 1}, vms...)
	if got := row(0); got.Name != "marked" || !got.LastSeen.Equal(before.LastSeen) {
		t.Errorf("what has not changed was written: %+v", got)
	}
	if got := row(1); got.Power != hypervisors.PowerOff || got.Facts.State != "off" || !got.LastSeen.After(before.LastSeen) || !got.FirstSeen.Equal(before.FirstSeen) {
		t.Errorf("what has changed is %+v", got)
	}
	last, err := c.LastInventories(ctx)
	if err != nil || !last[conn.ID].After(before.LastSeen) {
		t.Errorf("last read %v, %v", last, err)
	}
	sync(InventoryReport{Gone: 1}, vms[1:]...)
	if got := row(0); got.GoneAt == nil || !got.LastSeen.Equal(last[conn.ID]) {
		t.Errorf("it vanished at %v, and was last seen at %v, not at %v", got.GoneAt, got.LastSeen, last[conn.ID])
	}
	sync(InventoryReport{Added: 1}, vms...)
	if got := row(0); got.GoneAt != nil || got.ID != before.ID || got.Name != "vm00000" {
		t.Errorf("it came back as %+v", got)
	}
	// Rows of a version whose facts said less are brought up to date.
	if err := c.db.Model(&VM{}).Where("id = ?", before.ID).Update("facts", "{}").Error; err != nil {
		t.Fatal(err)
	}
	sync(InventoryReport{Changed: 1}, vms...)
	if got := row(0); got.Facts.Cluster != "prod" {
		t.Errorf("facts are %+v", got.Facts)
	}
}

// BenchmarkSyncVMs stores an inventory of 10,000 VMs of which one in a hundred has changed.
func BenchmarkSyncVMs(b *testing.B) {
	dir := b.TempDir()
	c, err := Open(b.Context(), Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: filepath.Join(dir, "catalog.key")})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	vms := manyVMs(10_000)
	conn := Connection{Name: "one"}
	if err := c.CreateConnection(b.Context(), &conn, ""); err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	if _, err := c.SyncVMs(b.Context(), conn.ID, vms); err != nil {
		b.Fatal(err)
	}
	first := time.Since(begin)
	for n := 0; b.Loop(); n++ {
		for i := 0; i < len(vms); i += 100 {
			vms[i].Disks[0].UsedBytes = int64(n + 1)
		}
		if _, err := c.SyncVMs(b.Context(), conn.ID, vms); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(first.Seconds(), "s/first")
}
