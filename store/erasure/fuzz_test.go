package erasure

import (
	"bytes"
	"context"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/campaign/memory"
)

func shardOfFuzz() shardHeader {
	return shardHeader{K: 4, N: 6, Shard: 5, Group: 1, Chunk: chunkBytes, Unit: unitBytes, Created: "packs/13/13caa8be0faf9c1f414f9e04748897a7.pack"}
}

// FuzzShardHeader gives each changed header its right hash: anybody can compute that.
func FuzzShardHeader(f *testing.F) {
	base := shardOfFuzz().encode()
	boundary.Add(f, base, boundary.Binary(base[:len(base)-hashBytes]))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 16, func() {
			_, _ = decodeHeader(p)
			if len(p) < headerBytes-hashBytes {
				return
			}
			sum := blake3.Sum256(p[:headerBytes-hashBytes])
			p = append(bytes.Clone(p[:headerBytes-hashBytes]), sum[:]...)
			if h, err := decodeHeader(p); err == nil && !bytes.Equal(h.encode(), p) {
				t.Error("a header has two encodings")
			}
		})
	})
}

func FuzzNames(f *testing.F) {
	good := part{name: "packs/13/13caa8be0faf9c1f414f9e04748897a7.pack", write: "01m80535qydthwh8bpddmzv1dh", size: 1 << 25, k: 4, shard: 5, moves: 1}
	f.Add(good.path())
	f.Add(good.pending())
	for p := range boundary.Text([]byte(good.path())) {
		f.Add(string(p))
	}
	for p := range boundary.Text([]byte(good.pending())) {
		f.Add(string(p))
	}
	f.Fuzz(func(t *testing.T, file string) {
		if p, ok := parsePart(file); ok && p.path() != file {
			t.Errorf("%q is read as %q", file, p.path())
		}
		if write, shard, ok := parsePending(file); ok {
			if (part{write: write, shard: shard}).pending() != file {
				t.Errorf("%q is read as %s, %d", file, write, shard)
			}
		}
		_, _, _ = parseMoved(file)
	})
}

// FuzzDocument gives whatever a description of a set may say its right hash: anybody can compute that.
func FuzzDocument(f *testing.F) {
	d := &setDocument{Format: formatVersion, Set: newID(), Version: 7, ID: newID(), Ancestors: []string{newID()}, Groups: []groupDoc{{
		Layout: Layout{2, 1}, Members: []memberDoc{{ID: "a"}, {ID: "b", Behind: true, Session: 9, Why: whyAway}, {ID: "c", Filling: true, Incomplete: true}},
	}}}
	p, err := encode(d)
	if err != nil {
		f.Fatal(err)
	}
	base := p[:len(p)-2*hashBytes-1]
	boundary.Add(f, base, boundary.Text(base))
	f.Fuzz(func(t *testing.T, p []byte) {
		ctx := context.Background()
		sum := blake3.Sum256(p)
		m := memory.New("fuzz")
		m.Set(d.name(), append(bytes.Clone(p), hex.EncodeToString(sum[:])+"\n"...))
		m.Set(memberName, p)
		boundary.Bounded(t, len(p), 400, func() {
			if i, err := readIdentity(ctx, m); err == nil {
				t.Errorf("without its hash it is read as %+v", i)
			}
			all, err := readDocuments(ctx, m)
			if err != nil && fault.KindOf(err) != fault.Unsupported {
				t.Errorf("refused with %v", err)
			}
			for _, got := range all {
				newest, _ := choose(map[string][]*setDocument{"a": {got}}, func(groupDoc) int { return 0 })
				if got.check() != nil || newest != got || !got.next().descends(got) {
					t.Errorf("accepted %+v", got)
				}
			}
		})
	})
}

func FuzzSession(f *testing.F) {
	f.Add(sessionName(7))
	f.Add(strings.ToUpper(sessionName(10)))
	f.Add(sessionPrefix + "000000000000000A")
	for _, v := range boundary.Values {
		f.Add(sessionName(v))
		f.Add(sessionName(v) + announceSuffix)
	}
	f.Fuzz(func(t *testing.T, file string) {
		n, announced, ok := parseSession(file)
		want := sessionName(n)
		if announced {
			want += announceSuffix
		}
		if ok && want != file {
			t.Errorf("%q is read as %q", file, want)
		}
	})
}
