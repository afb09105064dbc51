package store

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// count fills p with from, from+1, ...
func count(p []byte, from byte) {
	for i := range p {
		p[i] = from + byte(i)
	}
}

// vectors computes what FORMAT.md section 14 lists.
func vectors(t *testing.T) string {
	var idKey, dataKey [32]byte
	var repository, object seal.ID
	var salt seal.Salt
	count(idKey[:], 0)
	count(dataKey[:], 0x20)
	count(repository[:], 0x40)
	count(object[:], 0x50)
	count(salt[:], 0x60)
	h := chunk.NewHasher(idKey)
	var out strings.Builder
	text := func(name, value string) { fmt.Fprintf(&out, "    %-52s %s\n", name, value) }
	line := func(name string, p []byte) { text(name, hex.EncodeToString(p)) }

	c := make([]byte, 64<<10)
	prints := make([]chunk.Fingerprint, 16)
	count(c[:4096], 0)
	id, zeros := h.Chunk(c), h.Prints(c, prints)
	line("chunk id, block 0 = 00 01 .. ff repeated, rest zeros", id[:])
	line("its fingerprint of block 0", prints[0][:])
	if zeros != 0xfffe {
		t.Errorf("zeros = %x", zeros)
	}
	n := &tree.Node{}
	n.Children[0], n.Children[9] = id, id
	enc := n.Append(nil)
	line("node, level 0, children 0 and 9 that chunk", enc)
	nodeID := h.Node(enc)
	line("its id", nodeID[:])
	head := tree.Head{Size: 655360, ChunkBytes: 65536, Height: 1, Top: nodeID}.Append(nil)
	line("image head over it, 655,360 bytes", head)
	root := h.Image(head)
	line("its root", root[:])
	doc, man := h.Document([]byte("abc")), h.Manifest([]byte("abc"))
	line(`piece id of "abc"`, doc[:])
	line(`manifest hash of "abc"`, man[:])
	box, err := seal.NewBox(dataKey, 1, 1, repository, object, salt)
	if err != nil {
		t.Fatal(err)
	}
	line(`"abc" sealed as type 1, number 2, detail 3`, box.Seal(nil, seal.Frame, 2, 3, []byte("abc")))
	line("pack header, kind 1", pack.AppendHeader(nil, pack.Header{Kind: pack.Data, Repository: repository, ID: object, KeyID: 1, Salt: salt}))
	line("fingerprint of the key 00 01 .. 1f", []byte(must(hex.DecodeString(Key{idKey}.Fingerprint()))))
	moreVectors(t, text)
	return out.String()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestVectorsOfFormat(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := strings.Cut(string(text), "<!-- vectors -->\n")
	if !ok {
		t.Fatal("FORMAT.md has no vectors")
	}
	want := "\n" + vectors(t)
	if *update {
		if err := os.WriteFile("FORMAT.md", []byte(before+"<!-- vectors -->\n"+want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("vectors in FORMAT.md (-computed +written):\n%s", diff)
	}
}

// TestExampleOfFormat keeps section 12 true.
func TestExampleOfFormat(t *testing.T) {
	g := newRig(t)
	disk := make([]byte, 200000)
	copy(disk, bytes.Repeat([]byte("text "), 20000)[:testChunk])
	for i := 2 * testChunk; i < len(disk); i++ {
		disk[i] = byte(i*i>>3) | 1
	}
	p := g.backup(disk, nil, nil)
	at, err := g.repo.idx.Lookup(nil, must(g.repo.chunkID(t.Context(), must(g.repo.imageHead(t.Context(), p.Images[0].Ref)), 3)))
	if err != nil || len(at) != 1 {
		t.Fatalf("Lookup = %v, %v", at, err)
	}
	rd, e, err := g.repo.entry(t.Context(), at[0])
	if err != nil {
		t.Fatal(err)
	}
	if e.Present != 1 || e.Zeros != 0xfffe || len(rd.Directory().Frames) != 1 || rd.Directory().Frames[0].Plain != 2*65536+4096 {
		t.Errorf("entry %+v in %+v", e, rd.Directory().Frames)
	}
	changed := bytes.Clone(disk)
	clear(changed[2*testChunk+700 : 2*testChunk+700+512])
	q := g.backup(changed, disk, &p.Images[0].Ref)
	at, err = g.repo.idx.Lookup(nil, must(g.repo.chunkID(t.Context(), must(g.repo.imageHead(t.Context(), q.Images[0].Ref)), 2)))
	if err != nil || len(at) != 1 {
		t.Fatalf("Lookup = %v, %v", at, err)
	}
	if _, e, err = g.repo.entry(t.Context(), at[0]); err != nil || e.Present != 1 || len(e.Refs) != 15 {
		t.Errorf("entry %+v, %v", e, err)
	}
	g.mustHold(q, changed)
}
