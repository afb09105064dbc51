package protect

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
)

// TestKeptHasNoTickets: what is stored of a backup under way opens no disk, and the backup itself goes on with what does.
func TestKeptHasNoTickets(t *testing.T) {
	const url = "https://h:54322/images/very-secret"
	b := &backup{info: hypervisors.FrozenInfo{VM: hypervisors.VM{Name: "web"}, Disks: []hypervisors.FrozenDiskInfo{
		{Disk: hypervisors.Disk{ID: "d1"}, Export: hypervisors.Export{Name: "d1", DirtyContext: "dirty", Imageio: &hypervisors.Imageio{TransferURL: url, ProxyURL: url}}},
		{Disk: hypervisors.Disk{ID: "d2"}, Export: hypervisors.Export{Name: "d2", Imageio: &hypervisors.Imageio{TransferURL: url}}},
	}}}
	p, err := json.Marshal(b.keep("s1"))
	if err != nil || strings.Contains(string(p), "secret") {
		t.Errorf("kept: %s, %v", p, err)
	}
	for _, want := range []string{`"web"`, `"d2"`, `"dirty"`, `"s1"`} {
		if !strings.Contains(string(p), want) {
			t.Errorf("kept without %s: %s", want, p)
		}
	}
	for _, d := range b.info.Disks {
		if d.Export.Imageio == nil || d.Export.Imageio.TransferURL != url {
			t.Errorf("the backup itself has lost the ticket of %s", d.Disk.ID)
		}
	}
}
