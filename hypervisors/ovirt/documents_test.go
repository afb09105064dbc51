package ovirt

import (
	"encoding/xml"
	"strings"
	"testing"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

// hostile are names that people and engines give, and that must arrive as they are.
var hostile = []string{
	"plain", `a < b & c > d "quoted" 'too'`, "</description><persist_memorystate>true</persist_memorystate>", "]]>", "<!--", "&amp;",
	"tab\tnew\nline", "Ünïcode ☃ 𝄞", "\x00\x01", "a\xffb", strings.Repeat("long ", 10000), "",
}

// read decodes a document as an engine does: not by the SDK.
func readPlain(t *testing.T, doc []byte, into any) {
	t.Helper()
	if err := xml.Unmarshal(doc, into); err != nil {
		t.Fatalf("the engine could not read %q: %v", doc, err)
	}
}

type plainSnapshot struct {
	XMLName     xml.Name `xml:"snapshot"`
	Description string   `xml:"description"`
	Memory      []string `xml:"persist_memorystate"`
	Disks       []struct {
		ID string `xml:"id,attr"`
	} `xml:"disk_attachments>disk_attachment>disk"`
}

func checkSnapshotDocument(t *testing.T, description string) {
	t.Helper()
	doc, err := snapshotDocument(description, []string{"d1", "d2"})
	if err != nil {
		t.Fatal(err)
	}
	var got plainSnapshot
	readPlain(t, doc, &got)
	if want := asXML(description); got.Description != want {
		t.Errorf("description %.80q became %.80q", want, got.Description)
	}
	if len(got.Memory) != 1 || got.Memory[0] != "false" {
		t.Errorf("%.80q: persist_memorystate %q, want false alone", description, got.Memory)
	}
	if len(got.Disks) != 2 || got.Disks[0].ID != "d1" || got.Disks[1].ID != "d2" {
		t.Errorf("%.80q: disks %+v", description, got.Disks)
	}
}

// asXML is what can be left of a text in any XML document: characters that have no place there are replaced.
func asXML(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r != 0xFFFE && r != 0xFFFF {
			return r
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func TestTextIsEscaped(t *testing.T) {
	for _, s := range hostile {
		checkSnapshotDocument(t, s)
	}
}

func FuzzSnapshotDocument(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkSnapshotDocument(t, s) })
}

// FuzzDescribe reads VMs from nowhere, as an engine might send them.
func FuzzDescribe(f *testing.F) {
	vm := `<vms><vm id="1"><name>a</name><memory>-1</memory><cpu><topology><cores>99999999999</cores></topology></cpu><bios><type>q35_ovmf</type></bios>` +
		`<disk_attachments><disk_attachment id="00000000-0000-0000-0000-000000000001"><disk id="00000000-0000-0000-0000-000000000001"><alias>x</alias>` +
		`<provisioned_size>9223372036854775807</provisioned_size></disk></disk_attachment><disk_attachment/></disk_attachments><nics><nic/></nics><tags><tag/></tags></vm></vms>`
	for seed := range boundary.Text([]byte(vm)) {
		f.Add(seed)
	}
	f.Add([]byte(vm))
	f.Fuzz(func(t *testing.T, doc []byte) {
		all, err := apixml.Decode(doc, "vms", sdk.XMLVmReadMany)
		if err != nil {
			if fault.KindOf(err) != fault.Transient {
				t.Errorf("%v is of the kind %v", err, fault.KindOf(err))
			}
			return
		}
		for _, x := range all.Slice() {
			got := describe(x, &places{})
			if got.CPUs < 1 || got.MemoryBytes < 0 || got.Firmware == "" {
				t.Errorf("%+v", got)
			}
			for _, d := range got.Disks {
				if !goodID.MatchString(d.ID) || d.SizeBytes < 0 || d.SizeBytes == 0 && d.Unprotectable == "" {
					t.Errorf("disk %+v", d)
				}
			}
		}
	})
}
