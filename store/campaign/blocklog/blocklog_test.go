package blocklog

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestCut pins what a power cut may take: never what was flushed, and of the rest what the loss says.
func TestCut(t *testing.T) {
	l := New(make([]byte, 8*sector))
	one, two := bytes.Repeat([]byte{1}, 2*sector), bytes.Repeat([]byte{2}, 4*sector)
	l.entries = []entry{{off: 0, data: one}, {}, {ack: "first\n"}, {off: sector, data: two}, {ack: "second\n"}}
	rnd := rand.New(rand.NewPCG(1, 1))
	tests := []struct {
		name         string
		at           int
		loss         Loss
		want         []byte // a byte for each sector
		acks         string
		lost, waited int
	}{
		{"nothing written", 0, Some, []byte{0, 0, 0, 0, 0, 0, 0, 0}, "", 0, 0},
		{"not flushed, lost", 1, Everything, []byte{0, 0, 0, 0, 0, 0, 0, 0}, "", 1, 1},
		{"not flushed, kept", 1, Nothing, []byte{1, 1, 0, 0, 0, 0, 0, 0}, "", 0, 1},
		{"flushed", 3, Everything, []byte{1, 1, 0, 0, 0, 0, 0, 0}, "first\n", 0, 0},
		{"the second lost", 5, Everything, []byte{1, 1, 0, 0, 0, 0, 0, 0}, "first\nsecond\n", 1, 1},
		{"the second kept", 5, Nothing, []byte{1, 2, 2, 2, 2, 0, 0, 0}, "first\nsecond\n", 0, 1},
	}
	for _, tt := range tests {
		c := l.Replay().Cut(tt.at, tt.loss, rnd)
		var got []byte
		for at := 0; at < len(c.Image); at += sector {
			got = append(got, c.Image[at])
		}
		if !bytes.Equal(got, tt.want) || c.Acks != tt.acks || c.Lost != tt.lost || c.Pending != tt.waited {
			t.Errorf("%s: %v, %q, %d lost of %d; want %v, %q, %d of %d", tt.name, got, c.Acks, c.Lost, c.Pending, tt.want, tt.acks, tt.lost, tt.waited)
		}
	}
	torn := map[string]bool{}
	for range 200 {
		c := l.Replay().Cut(5, Some, rnd)
		if c.Image[0] != 1 {
			t.Fatal("a flushed sector is lost")
		}
		if c.Image[superblock] != c.Image[superblock+sector] {
			t.Fatal("a superblock is torn")
		}
		torn[string([]byte{c.Image[sector], c.Image[2*sector], c.Image[3*sector], c.Image[4*sector]})] = true
	}
	if len(torn) < 8 {
		t.Errorf("%d ways in which a write was torn", len(torn))
	}
}
