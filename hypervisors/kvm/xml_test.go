package kvm

import (
	"encoding/xml"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestJobIsOurs(t *testing.T) {
	const head, tail = `<domainbackup mode='pull'>`, `</domainbackup>`
	disk := func(file string) string {
		return `<disks><disk name='vd-a' backup='yes'><scratch file='` + file + `'/></disk><disk name='vdb' backup='no'/></disks>`
	}
	tests := []struct {
		name, doc, tag string
		ours           bool
	}{
		{"by its socket", `<server transport='unix' socket='/x/cairn-a-b.sock'/>` + disk("/y/z"), "a-b", true},
		{"by a scratch file", `<server transport='tcp' port='1'/>` + disk("/y/cairn-a-b-vd-a.scratch"), "a-b", true},
		{"another tool's", `<server transport='unix' socket='/x/other.sock'/>` + disk("/y/cairn/z"), "", false},
		{"nothing known", ``, "", false},
	}
	for _, tt := range tests {
		var job backupXML
		if err := xml.Unmarshal([]byte(head+tt.doc+tail), &job); err != nil {
			t.Fatal(err)
		}
		if tag, ok := job.ours(); tag != tt.tag || ok != tt.ours {
			t.Errorf("%s: ours() = %q, %v; want %q, %v", tt.name, tag, ok, tt.tag, tt.ours)
		}
	}
}

func TestSizesSurviveTheDescription(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOf(rapid.StringMatching(`[a-z]{1,5}`), rapid.Int64Min(0)).Draw(t, "sizes")
		got := checkpointXML{Description: describeSizes(want)}.sizes()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("sizes (-want +got):\n%s", diff)
		}
	})
	for _, text := range []string{"", "somebody's words", sizesPrefix + " vda=x =", "vda=5"} {
		if got := (checkpointXML{Description: text}).sizes(); len(got) != 0 {
			t.Errorf("sizes of %q: %v", text, got)
		}
	}
}

func TestWhyFull(t *testing.T) {
	cp := &checkpointXML{Description: describeSizes(map[string]int64{"vda": 10, "vdb": 10}), Disks: []checkpointDisk{{Name: "vda", Checkpoint: "bitmap"}, {Name: "vdb", Checkpoint: "no"}}}
	tests := []struct {
		name string
		disk hypervisors.Disk
		cp   *checkpointXML
		want string
	}{
		{"fine", hypervisors.Disk{ID: "vda", Format: hypervisors.QCOW2, SizeBytes: 10}, cp, ""},
		{"resized", hypervisors.Disk{ID: "vda", Format: hypervisors.QCOW2, SizeBytes: 11}, cp, "resized"},
		{"raw", hypervisors.Disk{ID: "vda", Format: hypervisors.Raw, SizeBytes: 10}, cp, "raw"},
		{"not tracked", hypervisors.Disk{ID: "vdb", Format: hypervisors.QCOW2, SizeBytes: 10}, cp, "added or converted"},
		{"added", hypervisors.Disk{ID: "vdc", Format: hypervisors.QCOW2, SizeBytes: 10}, cp, "added or converted"},
		{"no checkpoint", hypervisors.Disk{ID: "vda", Format: hypervisors.QCOW2, SizeBytes: 10}, nil, "does not exist"},
	}
	for _, tt := range tests {
		got := whyFull(tt.disk, "cairn-x", tt.cp)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q in it", tt.name, got, tt.want)
		}
	}
}

func TestMetadataOfOthersIsKept(t *testing.T) {
	other := `<x:y xmlns:x="http://x/"><x:z a="1">text</x:z></x:y>`
	for _, mine := range []string{restoredMetadata("one"), strings.Replace(restoredMetadata("one"), "/>", "></cairn:restored>", 1)} {
		if got := withoutRestored(other + mine + other + mine); got != other+other {
			t.Errorf("without the mark: %s", got)
		}
	}
	if got := withoutRestored(`<cairn:restored `); got != `<cairn:restored ` {
		t.Errorf("of broken metadata: %s", got)
	}
	if m := readMetadata(other + helperMetadata("t-1")); m.Helper != "t-1" || m.Restored != "" {
		t.Errorf("metadata of a helper: %+v", m)
	}
}

func TestHelperXML(t *testing.T) {
	var disks []helperDisk
	for i := range 30 {
		p := plannedDisk{path: "/p/d", pool: pool{hypervisors.Datastore{Kind: "dir"}}}
		disks = append(disks, helperDisk{id: "sd" + letters(i), source: p.source(), format: hypervisors.QCOW2, writable: i == 0})
	}
	doc, err := helperXML("t1", "x86_64", disks)
	if err != nil {
		t.Fatal(err)
	}
	x, err := parseDomain(doc)
	if err != nil {
		t.Fatal(err)
	}
	if !isHelper(x) || x.Name != "cairn-t1" {
		t.Errorf("%s is not known as a helper", x.Name)
	}
	if n := strings.Count(doc, "<readonly>"); n != 29 {
		t.Errorf("%d disks are read-only, want 29", n)
	}
	if got := x.Devices.Disks[29].Target.Dev; got != "sdad" {
		t.Errorf("the 30th disk is %s, want sdad", got)
	}
	x.Metadata = nil
	if isHelper(x) {
		t.Error("a VM is taken for a helper by its name alone")
	}
}

// FuzzReadDomain reads hostile domain XML: it may be refused, and nothing else may happen.
func FuzzReadDomain(f *testing.F) {
	f.Add("<domain><name>x</name><devices><disk><target dev='vda'/></disk><interface/></devices><metadata><a/></metadata></domain>")
	f.Add("<domain><os><nvram/></os><devices><disk type='volume'><source/></disk><tpm/><hostdev/><channel/></devices></domain>")
	f.Fuzz(func(t *testing.T, doc string) {
		x, err := parseDomain(doc)
		if err != nil {
			return
		}
		vm := describeXML(x)
		if len(vm.Disks) != len(x.Devices.Disks) {
			t.Errorf("%d of %d disks are described", len(vm.Disks), len(x.Devices.Disks))
		}
		p := &restorePlan{uuid: newUUID(), domain: x}
		_, _, _ = p.newDomain(hypervisors.RestoreRequest{Tag: "t", Name: "n"})
	})
}
