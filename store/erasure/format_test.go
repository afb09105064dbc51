package erasure

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sampleHeader() shardHeader {
	return shardHeader{
		Set: id{1, 2, 3}, Write: id{0xa0, 15: 9}, Group: 1, K: 4, N: 6, Shard: 5, Chunk: chunkBytes, Unit: unitBytes, Created: "packs/13/x.pack",
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	h := sampleHeader()
	got, err := decodeHeader(h.encode())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzHeader: no header that is accepted says anything impossible, and it encodes to itself. Seeds set every field to
// its bounds, with a right checksum, which random bytes never have.
func FuzzHeader(f *testing.F) {
	good := sampleHeader().encode()
	f.Add(good, true)
	f.Add([]byte{}, false)
	f.Add(good[:headerBytes-1], false)
	for at := 0; at < nameAt+2; at++ {
		for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff} {
			p := bytes.Clone(good)
			p[at] = v
			f.Add(p, true)
		}
	}
	for _, at := range []int{8, 10, 16, 20, 24} {
		for _, v := range []uint32{0, 1, 1<<15 - 1, 1 << 15, 1<<16 - 1, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
			p := bytes.Clone(good)
			binary.LittleEndian.PutUint32(p[at:], v)
			f.Add(p, true)
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, resum bool) {
		if resum && len(p) >= headerBytes {
			p = rehash(p)
		}
		h, err := decodeHeader(p)
		if err != nil {
			return
		}
		if h.K < 1 || h.K > h.N || h.Shard >= h.N || h.Created == "" || len(h.Created) > maxName {
			t.Errorf("accepted %+v", h)
		}
		if !bytes.Equal(h.encode(), p[:headerBytes]) {
			t.Errorf("%+v does not encode to what it was read from", h)
		}
	})
}

// FuzzPartName: a file's name that is accepted is the one its parts make, and its geometry can be computed.
func FuzzPartName(f *testing.F) {
	write := "01m80ekxhy9mt0fy37y1h90cwn"
	for _, size := range []string{"0", "1", "7fffffff", "80000000", "ffffffff", "3fffffffffff", "400000000000", "7fffffffffffffff", "8000000000000000", "ffffffffffffffff", "-1", "00"} {
		for _, rest := range []string{".1.0.0", ".4.5.0", ".0.0.0", ".64.63.1", ".65.64.0", ".255.255.9", ".4.-1.0", ".4.1.18446744073709551615", ""} {
			f.Add(objectFolder + "/a/_/x~" + write + "." + size + rest)
		}
	}
	f.Add("objects/__/_/_~" + write + ".1.1.1.1")
	f.Add("objects/_/~" + write + ".1.1.1.1")
	f.Fuzz(func(t *testing.T, name string) {
		p, ok := parsePart(name)
		if !ok {
			return
		}
		if p.path() != name {
			t.Errorf("%q is read as %+v, which is %q", name, p, p.path())
		}
		g := geometry{k: p.k, n: maxMembers, size: p.size}
		if n := g.shardBytes(); n < 0 || n*int64(p.k) < p.size || g.fileBytes() < n {
			t.Errorf("%q: %+v has shards of %d bytes, files of %d", name, p, n, g.fileBytes())
		}
		if p.size > 0 {
			if shard, at, run := g.place(p.size - 1); shard < 0 || shard >= p.k || at < 0 || at >= g.shardBytes() || run != 1 {
				t.Errorf("%q: its last byte is at %d of shard %d, %d bytes follow", name, at, shard, run)
			}
		}
	})
}

func rehash(p []byte) []byte {
	p = bytes.Clone(p)
	sum := sumHeader(p)
	copy(p[headerBytes-hashBytes:], sum[:])
	return p
}

func TestGeometry(t *testing.T) {
	tests := []struct {
		k     int
		size  int64
		shard int64
		file  int64
	}{
		{1, 0, 0, 576},
		{1, 1, 1, 576 + 1 + 32},
		{1, 65536, 65536, 576 + 65536 + 32},
		{4, 65537, 16385, 576 + 16385 + 32},
		{4, 1 << 20, 1 << 18, 576 + 1<<18 + 4*32},
		{4, 1<<20 + 1, 1<<18 + 1, 576 + 1<<18 + 1 + 5*32},
		{8, 32 << 20, 4 << 20, 576 + 4<<20 + 64*32},
	}
	for _, tt := range tests {
		g := geometry{k: tt.k, n: tt.k + 2, size: tt.size}
		if g.shardBytes() != tt.shard || g.fileBytes() != tt.file {
			t.Errorf("%d bytes over %d: shards of %d in files of %d, want %d, %d", tt.size, tt.k, g.shardBytes(), g.fileBytes(), tt.shard, tt.file)
		}
		// Every byte lies in one place: runs put together are the object.
		var off int64
		for off < tt.size {
			shard, at, run := g.place(off)
			if run < 1 || shard >= tt.k || at+run > g.shardBytes() {
				t.Fatalf("%+v: byte %d: shard %d at %d, run %d", tt, off, shard, at, run)
			}
			off += run
		}
		if off != tt.size {
			t.Errorf("%+v: runs end at %d", tt, off)
		}
	}
}

func TestDocumentsThatCount(t *testing.T) {
	group := groupDoc{Layout: Layout{2, 1}, Members: []memberDoc{{ID: "a"}, {ID: "b"}, {ID: "c"}}}
	one := &setDocument{Format: 1, Set: newID(), Version: 1, ID: newID(), Groups: []groupDoc{group}}
	two, other := one.next(), one.next()
	three := two.next()
	need := func(g groupDoc) int { return g.Data }
	type docs = map[string][]*setDocument
	tests := []struct {
		name   string
		docs   docs
		newest *setDocument
		apart  bool
	}{
		{"all agree", docs{"a": {one}, "b": {one}, "c": {one}}, one, false},
		{"one is old", docs{"a": {one, two}, "b": {two}, "c": {one}}, two, false},
		{"a change that reached one only", docs{"a": {one, two}, "b": {one}, "c": {one}}, one, false},
		{"a change that may have reached another that is away", docs{"a": {one, two}, "b": {one}}, two, false},
		{"two changes cut short", docs{"a": {one, two}, "b": {one, other}, "c": {one}}, one, false},
		{"a later change beside one cut short", docs{"a": {one, other}, "b": {three}, "c": {three}}, three, false},
	}
	for _, tt := range tests {
		newest, apart := choose(tt.docs, need)
		if newest != tt.newest || (apart != nil) != tt.apart {
			t.Errorf("%s: version %v, apart %v", tt.name, newest, apart)
		}
	}
	mirror := groupDoc{Layout: Layout{1, 1}, Members: []memberDoc{{ID: "a"}, {ID: "b"}}}
	one.Groups[0] = mirror
	two, other = one.next(), one.next()
	if _, apart := choose(docs{"a": {two}, "b": {other}}, need); apart == nil {
		t.Error("two histories of a mirror were not found out")
	}
}
