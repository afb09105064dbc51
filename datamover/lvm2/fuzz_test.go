package lvm2

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

// memory is a device in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) Name() string { return "memory" }

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

const areaAt, areaBytes = 1024, 8192

// device makes a physical volume with one metadata area that holds a text, begun so near to the ring's end that it
// goes round.
func device(text []byte) memory {
	le := binary.LittleEndian
	m := make(memory, areaAt+areaBytes+64<<10)
	l := m[sectorBytes:]
	copy(l, "LABELONE")
	le.PutUint64(l[8:], 1)
	le.PutUint32(l[20:], 32)
	copy(l[24:], "LVM2 001")
	copy(l[32:], "tGBIkDfJ6zgBy9EqZdX04EZ8D3YFGOB8")
	le.PutUint64(l[64:], uint64(len(m)))
	le.PutUint64(l[72:], areaAt+areaBytes) // data
	le.PutUint64(l[104:], areaAt)
	le.PutUint64(l[112:], areaBytes)
	h := m[areaAt:]
	copy(h[4:], mdaMagic)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], areaAt)
	le.PutUint64(h[32:], areaBytes)
	const begin = areaBytes - 512
	le.PutUint64(h[40:], begin)
	le.PutUint64(h[48:], uint64(len(text)))
	le.PutUint32(h[56:], checksum(text, initialCRC))
	if n := copy(h[begin:areaBytes], text); n < len(text) {
		copy(h[mdaHeader:], text[n:])
	}
	seal(m)
	return m
}

// seal sets the checksums of label and area right.
func seal(m memory) {
	l, h := m[sectorBytes:][:sectorBytes], m[areaAt:][:mdaHeader]
	binary.LittleEndian.PutUint32(l[16:], checksum(l[20:], initialCRC))
	binary.LittleEndian.PutUint32(h, checksum(h[4:], initialCRC))
}

// texts are what lvm2 2.03.16 has written.
func texts(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*.text")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	out := map[string][]byte{}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(n), ".text")] = b
	}
	return out
}

func FuzzText(f *testing.F) {
	for _, text := range texts(f) {
		boundary.Add(f, text, boundary.Text(text))
		for at := 0; at < len(text); at += 61 {
			f.Add(text[:at])
		}
	}
	f.Add([]byte(strings.Repeat("a{", 1000)))
	f.Add([]byte(strings.Repeat("a=[", 1000)))
	f.Fuzz(func(t *testing.T, text []byte) {
		g, err := parseGroup(text)
		if err != nil {
			return
		}
		for _, v := range g.Volumes {
			at := int64(0)
			for _, s := range v.Segments {
				if s.Offset != at || s.Length <= 0 || s.StripeBytes <= 0 || len(s.Stripes) == 0 {
					t.Fatalf("segment %+v after %d", s, at)
				}
				at += s.Length
			}
			if v.Unreadable == "" && at != v.Size || v.Unreadable != "" && v.Segments != nil {
				t.Fatalf("volume %+v", v)
			}
		}
	})
}

// FuzzDevice changes headers and sets their checksums right, so that the changes are met.
func FuzzDevice(f *testing.F) {
	base := device(texts(f)["linear"])
	for _, w := range [][2]int{{sectorBytes, 200}, {areaAt, 100}} {
		for p := range boundary.Binary(base[w[0] : w[0]+w[1]]) {
			f.Add(uint32(w[0]), p)
		}
	}
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		p := memory(bytes.Clone(base))
		copy(p[int(at)%len(p):], patch)
		seal(p)
		s, err := ScanDevices([]Device{p})
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		buf := make([]byte, 10000)
		for _, g := range s.Groups {
			for _, v := range g.Volumes {
				if r, err := s.Open(g, v); err == nil {
					_, _ = r.ReadAt(buf, max(0, r.Size()-5000))
					_, _ = r.ReadAt(buf, 0)
				}
			}
		}
	})
}

// TestAllocatesWithinItsInput parses texts whose numbers promise much.
func TestAllocatesWithinItsInput(t *testing.T) {
	n := 0
	for _, text := range texts(t) {
		for p := range boundary.Text(text) {
			boundary.Bounded(t, len(p), 64, func() { _, _ = parseGroup(p) })
			n++
		}
	}
	for _, word := range []string{"a{}", "a=1 ", "[", "a=[1,1]"} {
		p := []byte("vg {" + strings.Repeat(word, 20000) + "}")
		boundary.Bounded(t, len(p), 64, func() { _, _ = parseGroup(p) })
	}
	base := device(texts(t)["linear"])
	for p := range boundary.Binary(base[areaAt : areaAt+80]) {
		m := append(append(append(memory{}, base[:areaAt]...), p...), base[areaAt+80:]...)
		seal(m)
		boundary.Bounded(t, len(m), 16, func() { _, _ = ScanDevices([]Device{m}) })
		n++
	}
	t.Logf("%d inputs", n)
}

// TestRing reads a text that goes beyond the end of its ring.
func TestRing(t *testing.T) {
	text := texts(t)["linear"]
	if len(text) <= 512 {
		t.Fatal("the text is too short to go round")
	}
	s, err := ScanDevices([]Device{device(text)})
	if err != nil || len(s.Groups) != 1 || s.Groups[0].Name != "vgx" {
		t.Fatalf("%+v, %v", s, err)
	}
	m := device(text)
	m[areaAt+areaBytes-1]++ // the ring's last byte
	if _, err := ScanDevices([]Device{m}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("a changed byte of the text: %v", err)
	}
}

// TestTwoTruths shows two devices that say different things under one number.
func TestTwoTruths(t *testing.T) {
	text := texts(t)["linear"]
	a := device(text)
	b := device(bytes.Replace(text, []byte(`"pv0", 15`), []byte(`"pv0", 16`), 1))
	copy(b[sectorBytes+32:], "8uh0Ad3nts28hiDbvVjFWKlCaFIMIB5d")
	seal(b)
	if _, err := ScanDevices([]Device{a, b}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("two texts with one number: %v", err)
	}
}

func TestBadTexts(t *testing.T) {
	for _, text := range []string{
		"", "vg {", "vg }", "vg = ", "vg { id = \"x }", "vg { a = [1, 2 }", "vg { a = 1 a = 2 }", "contents = \"other\"", "}",
	} {
		if g, err := parseGroup([]byte(text)); err == nil {
			t.Errorf("%q is a group: %+v", text, g)
		}
	}
	if s, err := parseText([]byte("a = \"x\\\"\\\\y\" # c\nb { c = [\"1\", 2,] }\x00\x00")); err != nil || s.text("a") != `x"\y` || len(s.child("b").words("c")) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestUnreadable looks at what lvm2 has written of volumes that are more than places on devices.
func TestUnreadable(t *testing.T) {
	g, err := parseGroup(texts(t)["types"])
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"raw": "", "base": "", "middle": "", "top": "", "other": "",
		"shot":              "it is the store of a snapshot, whose bytes are not the snapshot's content",
		"mirrored":          "it is a RAID volume (raid1)",
		"old":               "it is a mirror",
		"thinpool":          "it is a thin pool",
		"thin":              "it is a thin volume",
		"snapshot0":         "it is a snapshot",
		"mirrored_rimage_0": "it is a part of another volume",
		"thinpool_tdata":    "it is a part of another volume",
	}
	got := map[string]string{}
	for _, v := range g.Volumes {
		if _, ok := want[v.Name]; ok {
			got[v.Name] = v.Unreadable
		}
		if v.Name == "raw" && cmp.Diff([]string{"shot"}, v.Snapshots) != "" {
			t.Errorf("snapshots of raw: %v", v.Snapshots)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMoreThanPlaces changes a text so that its volumes are what a test cannot easily make.
func TestMoreThanPlaces(t *testing.T) {
	for _, tt := range []struct{ old, new, volume, words string }{
		{`type = "striped"`, `type = "cache"`, "a", "cached volume"},
		{`type = "striped"`, `type = "striped+ODD"`, "a", "unknown type"},
		{`"pv0", 0`, `"pvmove0", 0`, "a", "being moved"},
		{`"pv0", 0`, `"pv0", 125`, "a", "beyond the end"},
		{`"pv0", 0`, `"pv7", 0`, "a", "no physical volume"},
		{`status = ["READ", "WRITE", "VISIBLE"]`, `status = ["READ", "WRITE", "VISIBLE", "LOCKED"]`, "a", "being moved"},
		{`status = ["READ", "WRITE", "VISIBLE"]`, `status = ["READ", "WRITE", "VISIBLE", "ODD"]`, "a", "not known"},
		{`stripe_size = 128`, `stripe_size = 100`, "s", "does not divide"},
		{`"pv1", 0`, `"pv1"`, "s", "3 values"},
	} {
		g, err := parseGroup(bytes.Replace(texts(t)["linear"], []byte(tt.old), []byte(tt.new), 1))
		if err != nil {
			t.Errorf("%s: %v", tt.new, err)
			continue
		}
		for _, v := range g.Volumes {
			if v.Name == tt.volume && !strings.Contains(v.Unreadable, tt.words) {
				t.Errorf("%s: %q, want %q in it", tt.new, v.Unreadable, tt.words)
			}
		}
	}
	merging := bytes.Replace(texts(t)["types"], []byte("cow_store ="), []byte("merging_store ="), 1)
	g, err := parseGroup(merging)
	if err != nil {
		t.Fatal(err)
	}
	if v := g.Volumes[0]; !strings.Contains(v.Unreadable, "merged into it") {
		t.Errorf("the origin of a snapshot that is being merged: %+v", v)
	}
}
