package chunk

import (
	"encoding/json"
	"sync"
	"testing"
)

func TestChunkIsAFunctionOfKeyAndContent(t *testing.T) {
	h, other := NewHasher([32]byte{1}), NewHasher([32]byte{2})
	p := make([]byte, DefaultBytes)
	p[5*BlockBytes] = 1
	prints := make([]Fingerprint, 16)
	id, zeros := h.Chunk(p, prints)
	if zeros != 0xffff&^(1<<5) {
		t.Errorf("zeros = %x", zeros)
	}
	for i, f := range prints {
		if (f == Fingerprint{}) != (i != 5) {
			t.Errorf("fingerprint %d = %x", i, f)
		}
	}
	if again, _ := h.Chunk(p, nil); again != id {
		t.Error("the same chunk has two ids")
	}
	if foreign, _ := other.Chunk(p, nil); foreign == id {
		t.Error("two keys give one id")
	}
	if h.Node(p) == h.Image(p) || h.Node(p) == h.Document(p) || h.Document(p) == h.Manifest(p) {
		t.Error("two purposes give one hash")
	}
	p[0], p[5*BlockBytes] = 1, 0
	if moved, _ := h.Chunk(p, nil); moved == id {
		t.Error("a block elsewhere gives the same id")
	}
}

func TestHasherInManyGoroutines(t *testing.T) {
	h := NewHasher([32]byte{1})
	p := make([]byte, MinBytes)
	p[1] = 1
	want, _ := h.Chunk(p, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if got, _ := h.Chunk(p, nil); got != want {
					t.Error("another id in another goroutine")
				}
			}
		})
	}
	wg.Wait()
}

func TestHashText(t *testing.T) {
	want := Hash{1, 2, 0xff}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Hash
	if err := json.Unmarshal(text, &got); err != nil || got != want {
		t.Errorf("%s reads as %v, %v", text, got, err)
	}
	for _, bad := range []string{`""`, `"00"`, `"zz"`, `"` + want.String() + `0"`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s is read as a hash", bad)
		}
	}
}

func TestValidSize(t *testing.T) {
	for n, want := range map[int]bool{0: false, -65536: false, 8 << 10: false, 16 << 10: true, 48 << 10: false, 256 << 10: true, 512 << 10: false} {
		if got := ValidSize(n); got != want {
			t.Errorf("ValidSize(%d) = %v", n, got)
		}
	}
}
