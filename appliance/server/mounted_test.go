package server

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMountedRepository counts what goes over the network between a mover and the appliance: with the repository's storage
// mounted on the mover it is ids and leases, without it is the data. A copy of the repository is no such storage.
func TestMountedRepository(t *testing.T) {
	const data = 3 << 20
	tests := []struct {
		name    string
		mounted func(b *bench) string // the directory; "" is none
		direct  bool
		log     string // of the mover
	}{
		{"not mounted", func(*bench) string { return "" }, false, ""},
		{"mounted", func(b *bench) string { return filepath.Join(b.root, "repo") }, true, "the repository's storage is mounted here"},
		{"another directory", func(b *bench) string { return b.root }, false, "there is no repository in a directory that was named"},
		{"a copy", func(b *bench) string {
			to := filepath.Join(b.root, "copy")
			if out, err := exec.Command("cp", "-a", filepath.Join(b.root, "repo"), to).CombinedOutput(); err != nil {
				b.t.Fatalf("%v: %s", err, out)
			}
			return to
		}, false, "it is a copy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.backup() // so that there is something to copy
			var args []string
			if dir := tt.mounted(b); dir != "" {
				args = []string{"--repository", dir}
			}
			m := b.outside(b.listen(), "m1", args...)
			b.write("disk0", data, 0)
			up0, down0 := m.proxy.Bytes()
			before := m.info()
			task := b.ended(b.through("m1"))
			point := b.pointOf(task, "m1")
			up, down := m.proxy.Bytes()
			lan := up - up0 + down - down0
			after := m.info()
			t.Logf("read %d bytes, stored %d; %d bytes to the appliance, %d from it", point.BytesRead, point.BytesStored, up-up0, down-down0)
			if point.BytesStored < data {
				t.Errorf("stored %d bytes of %d random ones", point.BytesStored, data)
			}
			if direct := lan < data/10; direct != tt.direct {
				t.Errorf("%d bytes over the network for %d bytes of data", lan, data)
			}
			// The appliance's own counter, which an admin sees, says the same.
			counted := after.Received - before.Received + after.Sent - before.Sent
			if diff := counted - lan; max(diff, -diff) > lan/10+4096 {
				t.Errorf("the appliance counts %d bytes, the network %d", counted, lan)
			}
			if !strings.Contains(m.log.String(), tt.log) {
				t.Errorf("the mover's log has no %q", tt.log)
			}
			if said := b.said(task.RunID); tt.direct && !strings.Contains(said, "has the repository's storage mounted") {
				t.Errorf("the run's log: %s", said)
			}
			up0, down0 = m.proxy.Bytes()
			b.restoresThrough("m1", point.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
			up, down = m.proxy.Bytes()
			// The copy lacks the newest packs, of which chunks come from the appliance.
			if lan := up - up0 + down - down0; (lan < data/10) != tt.direct {
				t.Errorf("restore: %d bytes over the network for %d bytes of data", lan, data)
			}
			b.clean()
		})
	}
}
