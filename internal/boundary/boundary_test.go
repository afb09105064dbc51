package boundary

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// toyRead is a decoder as they are written: an offset and a length of 64 bits, and a test whose sum overflows.
func toyRead(p []byte) (out []byte, err bool) {
	if len(p) < 24 || string(p[:8]) != "TOYMAGIC" {
		return nil, true
	}
	off, n := binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint64(p[16:])
	if off+n > uint64(len(p)) {
		return nil, true
	}
	return p[off:][:n], false
}

func panics(p []byte) (yes bool) {
	defer func() { yes = recover() != nil }()
	_, _ = toyRead(p)
	return false
}

func toy() []byte {
	p := append([]byte("TOYMAGIC"), make([]byte, 16+40)...)
	binary.LittleEndian.PutUint64(p[8:], 24)
	binary.LittleEndian.PutUint64(p[16:], 10)
	return p
}

// TestCampaignSeedsFindOverflow shows what the seeds are for: they find the planted overflow, and as many random
// mutations as a fuzzer does in minutes do not.
func TestCampaignSeedsFindOverflow(t *testing.T) {
	base := toy()
	seeds, found := 0, 0
	for p := range Binary(base) {
		seeds++
		if panics(p) {
			found++
		}
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	tries, byChance := 300_000, 0
	for range tries {
		p := bytes.Clone(base)
		for range 1 + rnd.IntN(3) {
			p[rnd.IntN(len(p))] = byte(rnd.Uint32())
		}
		if panics(p) {
			byChance++
		}
	}
	t.Logf("campaign: name=fuzz-seeds-planted-overflow injected=1 fired=%d lost=0 seeds=%d finding=%d random-mutations=%d finding-by-chance=%d",
		min(found, 1), seeds, found, tries, byChance)
	if found == 0 {
		t.Errorf("none of %d seeds finds the overflow", seeds)
	}
}

func TestBinaryCoversEveryField(t *testing.T) {
	base := bytes.Repeat([]byte{0x55}, 12)
	var all [][]byte
	for p := range Binary(base) {
		if len(p) != len(base) {
			t.Fatalf("a seed of %d bytes", len(p))
		}
		all = append(all, p)
	}
	for at := 0; at+8 <= len(base); at += 2 {
		want := bytes.Clone(base)
		binary.LittleEndian.PutUint64(want[at:], 1<<63)
		if !slices.ContainsFunc(all, func(p []byte) bool { return bytes.Equal(p, want) }) {
			t.Errorf("2^63 at %d is missing", at)
		}
	}
}

func TestText(t *testing.T) {
	var all []string
	for p := range Text([]byte(`{"size":12}`)) {
		all = append(all, string(p))
	}
	for _, want := range []string{`{"size":18446744073709551616}`, `{"size":}`, `{"size":`} {
		if !slices.Contains(all, want) {
			t.Errorf("%s is missing among %q", want, all)
		}
	}
}

func TestBoundedFindsTooMuch(t *testing.T) {
	var kept []byte
	inner := &testing.T{}
	Bounded(inner, 10, 8, func() { kept = make([]byte, 2*Slack) })
	if !inner.Failed() || len(kept) == 0 {
		t.Error("an allocation beyond the limit is not reported")
	}
	Bounded(t, 10, 8, func() { kept = make([]byte, 100) })
}
