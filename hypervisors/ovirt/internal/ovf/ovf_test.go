package ovf

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

const sampleOVF = `<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" xmlns:rasd="r" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ovf:version="4.4.0.0">
<References><File ovf:href="disk-1/image-1" ovf:id="image-1"/><Nic ovf:id="n"/></References>
<NetworkSection><Info>List of networks</Info><Network ovf:name="a &amp; b"/></NetworkSection>
<Section xsi:type="ovf:DiskSection_Type"><Info>List</Info><Disk ovf:diskId="image-1"/></Section>
<Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>old</Name><Description>x &lt; y</Description><Comment>old comment</Comment><BiosType>2</BiosType>
<VmInit ovf:rootPassword="initial-secret"/><Unheard of="it">stays</Unheard>
<Section ovf:id="id" xsi:type="ovf:OperatingSystemSection_Type"><Description>rhel_8x64</Description></Section>
<Section xsi:type="ovf:VirtualHardwareSection_Type"><Info>1 CPU</Info>
<Item><rasd:Caption>cpu</rasd:Caption><rasd:ResourceType>3</rasd:ResourceType></Item>
<Item><rasd:Caption>disk</rasd:Caption><rasd:ResourceType>17</rasd:ResourceType><rasd:HostResource>disk-1/image-1</rasd:HostResource></Item>
<Item><rasd:Caption>nic</rasd:Caption><rasd:ResourceType> 10 </rasd:ResourceType></Item>
<Item><Caption>rng</Caption></Item></Section>
<Section xsi:type="ovf:SnapshotsSection_Type"><Snapshot ovf:id="s"><Description>cairn-t</Description></Snapshot></Section></Content></ovf:Envelope>
`

func TestBare(t *testing.T) {
	got, err := Bare([]byte(sampleOVF), "new <name>", "cairn-restore t")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"<Name>new &lt;name&gt;</Name>", "<Comment>cairn-restore t</Comment>", "x &lt; y", `ovf:name="a &amp; b"`, `ovf:rootPassword="initial-secret"`, `<Unheard of="it">stays</Unheard>`,
		"<rasd:ResourceType>3</rasd:ResourceType>", "<Caption>rng</Caption>", `xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/"`, "rhel_8x64",
		`<Section xsi:type="ovf:DiskSection_Type"></Section>`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is not in it:\n%s", want, got)
		}
	}
	for _, gone := range []string{"image-1", "disk-1", "<Name>old", "old comment", "nic", "Snapshot", "cairn-t<", ">17<"} {
		if strings.Contains(string(got), gone) {
			t.Errorf("%s is still in it:\n%s", gone, got)
		}
	}
	again, err := Bare(got, "new <name>", "cairn-restore t")
	if err != nil || string(again) != string(got) {
		t.Errorf("done twice: %v\n%s", err, again)
	}
}

func TestBareRefuses(t *testing.T) {
	for name, doc := range map[string]string{
		"nothing":             "",
		"another document":    "<domain/>",
		"cut off":             sampleOVF[:len(sampleOVF)-20],
		"no content":          "<Envelope></Envelope>",
		"a document type":     `<!DOCTYPE x [<!ENTITY a "b">]>` + sampleOVF[39:],
		"crossed":             "<Envelope><Content></Envelope></Content>",
		"nested without end":  strings.Repeat("<Envelope>", 1000),
		"something after it":  sampleOVF + "<x/>",
		"larger than allowed": strings.Repeat(" ", maxSize+1),
	} {
		if got, err := Bare([]byte(doc), "n", "c"); got != nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %q, %v; want Invalid", name, got, err)
		}
	}
}

// FuzzBare rewrites documents from nowhere: what comes out is XML and has no disks.
func FuzzBare(f *testing.F) {
	for seed := range boundary.Text([]byte(sampleOVF)) {
		f.Add(seed, "n")
	}
	f.Add([]byte(sampleOVF), "a]]>&<b")
	f.Fuzz(func(t *testing.T, doc []byte, name string) {
		got, err := Bare(doc, name, "cairn-restore t")
		if err != nil {
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("%v is of the kind %v", err, fault.KindOf(err))
			}
			return
		}
		d := xml.NewDecoder(strings.NewReader(string(got)))
		inContent, names := 0, 0
		for {
			tok, err := d.RawToken()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in %q", err, got)
			}
			if s, ok := tok.(xml.StartElement); ok {
				switch s.Name.Local {
				case "Content":
					inContent++
				case "Comment":
					names++
				}
			}
		}
		if inContent == 0 || names == 0 {
			t.Errorf("%d contents, %d comments in %q", inContent, names, got)
		}
	})
}
