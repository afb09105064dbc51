package blockdomain

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// id makes an id of one digit.
func id(digit string) string {
	return strings.Replace(noParent, "00000000-", strings.Repeat(digit, 8)+"-", 1)
}

func TestSAN(t *testing.T) {
	d := Domain{ID: id("a"), GroupUUID: "x-y", LUNs: []hypervisors.LUN{{WWN: "360014050000000000000000000000001"}}}
	got, err := SAN(d, []Volume{{id("2"), id("d"), hypervisors.QCOW2}, {id("1"), id("e"), hypervisors.Raw}}, id("3"))
	if err != nil {
		t.Fatal(err)
	}
	want := &hypervisors.SAN{LUNs: d.LUNs, GroupUUID: "x-y", Group: id("a"), Layers: []hypervisors.SANLayer{
		{VolumeName: id("2"), Format: hypervisors.QCOW2, Tags: []string{"IU_" + id("d"), "PU_" + id("1")}, NotTags: []string{initializing}, FrozenBy: "PU_" + id("2")},
		{VolumeName: id("1"), Name: id("1"), Format: hypervisors.Raw, Tags: []string{"IU_" + id("e"), "PU_" + noParent}, NotTags: []string{initializing}, FrozenBy: "PU_" + id("1")},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	cow := func(n string) Volume { return Volume{id(n), id("d"), hypervisors.QCOW2} }
	for _, tt := range []struct {
		name   string
		domain Domain
		chain  []Volume
		active string
		kind   fault.Kind
	}{
		{"the active volume", d, []Volume{cow("3"), cow("2")}, id("3"), fault.Conflict},
		{"the active volume below", d, []Volume{cow("2"), cow("3")}, id("3"), fault.Conflict},
		{"a volume twice", d, []Volume{cow("2"), cow("2")}, id("3"), fault.Invalid},
		{"raw on top of another", d, []Volume{{id("2"), id("d"), hypervisors.Raw}, cow("1")}, id("3"), fault.Invalid},
		{"no volumes", d, nil, id("3"), fault.Invalid},
		{"nobody knows the active one", d, []Volume{cow("2")}, "", fault.Invalid},
		{"no LUNs", Domain{ID: id("a")}, []Volume{cow("2")}, id("3"), fault.Invalid},
		{"an id that is a path", d, []Volume{{"../../../dev/sda0000000000000000000000", id("d"), hypervisors.Raw}}, id("3"), fault.Invalid},
		{"another format", d, []Volume{{id("2"), id("d"), "vmdk"}}, id("3"), fault.Invalid},
	} {
		if got, err := SAN(tt.domain, tt.chain, tt.active); fault.KindOf(err) != tt.kind || err == nil {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

// FuzzSAN makes chains of what an engine might say: each byte chooses a volume's id and its format.
func FuzzSAN(f *testing.F) {
	ids := []string{id("1"), id("2"), id("3"), noParent, "", "../../dev/sda", strings.ToUpper(id("a")), id("4") + "5"}
	formats := []hypervisors.DiskFormat{hypervisors.QCOW2, hypervisors.Raw, "vmdk", ""}
	f.Add([]byte{0, 1, 9}, uint8(2))
	f.Add([]byte{2, 1, 8}, uint8(2))
	f.Add([]byte{0, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, chain []byte, active uint8) {
		var volumes []Volume
		for _, b := range chain {
			volumes = append(volumes, Volume{ids[b%8], ids[b>>2%8], formats[b>>3%4]})
		}
		leaf := ids[active%8]
		got, err := SAN(Domain{ID: id("a"), LUNs: []hypervisors.LUN{{WWN: "x"}}}, volumes, leaf)
		if err != nil {
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.Conflict {
				t.Errorf("%v is of the kind %v", err, k)
			}
			return
		}
		seen := map[string]bool{leaf: true}
		for i, l := range got.Layers {
			if seen[l.VolumeName] || !goodID(l.VolumeName) || l.FrozenBy != "PU_"+l.VolumeName || l.Format == hypervisors.Raw && i < len(got.Layers)-1 {
				t.Errorf("layer %d of %+v: %+v", i, volumes, l)
			}
			seen[l.VolumeName] = true
		}
		if len(got.Layers) != len(volumes) || len(volumes) == 0 {
			t.Errorf("%d layers of %d volumes", len(got.Layers), len(volumes))
		}
	})
}
