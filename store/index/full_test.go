package index

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/store/pack"
)

// smallDisk mounts a file system of so many bytes in memory.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		if os.Getenv("CAIRN_LAB") != "" {
			t.Fatalf("mount a small file system: %v", err)
		}
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFullDisk adds to an index until its disk is full and far beyond: nobody may wait for room for ever, what is
// answered is right, and with room again, or at the next open, all is well.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, "size=24m")
	dir := filepath.Join(disk, "index")
	x := open1(t, dir, 1)
	d := &pack.Directory{Header: pack.Header{Kind: pack.Data}, Entries: make([]pack.Entry, scalePack)}
	var full error
	added := 0
	for ; full == nil; added++ {
		if added*scalePack > 20_000_000 {
			t.Fatal("the disk is not full after twenty million entries")
		}
		scaledPack(d, added)
		full = x.Add(d)
	}
	added--
	t.Logf("%d entries were taken, then: %v", added*scalePack, full)
	if !errors.Is(full, syscall.ENOSPC) {
		t.Errorf("the error of a full disk is %v", full)
	}
	right := func(x *Index, n int) (found int) {
		t.Helper()
		for i := range 200 {
			at := i * n * scalePack / 200
			places, err := x.Lookup(nil, scaled(at))
			if err != nil {
				continue
			}
			if len(places) != 1 || places[0].Slot != uint32(at%scalePack) {
				t.Fatalf("entry %d is at %v", at, places)
			}
			found++
		}
		return found
	}
	if x.log.broken() == nil && right(x, added) == 0 {
		t.Error("nothing is found though the index is not broken")
	}
	begun := time.Now()
	if err := x.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	t.Logf("closed after %v", time.Since(begun))
	x = open1(t, dir, 1)
	defer func() { x.Close() }()
	if n := len(x.Packs()); n != 0 && n != added {
		if right(x, n) != 200 { // what is there is whole
			t.Errorf("%d packs of %d are left, with holes", n, added)
		}
	}
	// A load into too little room ends with an error, and harms nothing.
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 14<<20), 0o600); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	l, err := x.Load()
	if err != nil {
		t.Fatal(err)
	}
	l.size = 10_000
	before := len(x.Packs())
	for n := added + 1; n < added+2000; n++ {
		scaledPack(d, n)
		if err = l.Add(d); err != nil {
			break
		}
	}
	if err == nil {
		err = l.Finish(t.Context())
	} else if abortErr := l.Abort(); abortErr != nil && !errors.Is(abortErr, syscall.ENOSPC) {
		t.Error(abortErr)
	}
	if !errors.Is(err, syscall.ENOSPC) || len(x.Packs()) != before {
		t.Errorf("a load into a full disk: %v, %d packs, %d before", err, len(x.Packs()), before)
	}
	// With room again it works.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	scaledPack(d, added+5000)
	if err := errors.Join(x.Add(d), x.flush()); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if places, err := x.Lookup(nil, scaled((added+5000)*scalePack)); err != nil || len(places) != 1 {
		t.Errorf("with room again: %v, %v", places, err)
	}
}
