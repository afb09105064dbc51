package ovirt

import (
	"strings"
	"testing"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TestStanding: which disk of the VM is replaced by which of the restore point.
func TestStanding(t *testing.T) {
	backedUp := []hypervisors.Disk{{ID: "a", Name: "system"}, {ID: "b", Name: "data"}, {ID: "c", Name: "data"}}
	for name, tt := range map[string]struct {
		now  string // disks of the VM: id=name, …
		want string // for each disk of the restore point; - is none; "" is an error
	}{
		"as it was":                    {"a=system b=data c=data", "a b c"},
		"restored in place before":     {"x=system b=data c=data", "x b c"},
		"renamed":                      {"a=other b=data c=data", "a b c"},
		"removed":                      {"a=system b=data", "a b -"},
		"removed, and another added":   {"b=data c=data n=new", "- b c"},
		"one of two of a name is back": {"a=system b=data y=data", "a b y"},
		"two of a name are back":       {"a=system x=data y=data", ""},
		"two took the place of one":    {"x=system y=system b=data c=data", ""},
	} {
		vm := &sdk.Vm{}
		var all []*sdk.DiskAttachment
		for _, d := range strings.Fields(tt.now) {
			id, alias, _ := strings.Cut(d, "=")
			all = append(all, sdk.NewDiskAttachmentBuilder().Id(id).Disk(sdk.NewDiskBuilder().Id(id).Alias(alias).MustBuild()).MustBuild())
		}
		attachments := &sdk.DiskAttachmentSlice{}
		attachments.SetSlice(all)
		vm.SetDiskAttachments(attachments)
		p := &restorePlan{}
		for _, d := range backedUp {
			p.disks = append(p.disks, plannedDisk{src: d})
		}
		standing, err := p.standing(vm, hypervisors.RestoreRequest{VM: hypervisors.VM{Disks: backedUp}})
		if tt.want == "" {
			if fault.KindOf(err) != fault.Conflict {
				t.Errorf("%s: %v, want a Conflict", name, err)
			}
			continue
		}
		var got []string
		for _, a := range standing {
			id := "-"
			if a != nil {
				id = idOf(a.Disk())
			}
			got = append(got, id)
		}
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, tt.want)
		}
	}
}
