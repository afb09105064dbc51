package kvm

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirtxml"
)

func TestCheckImage(t *testing.T) {
	header := func(change func(head []byte)) []byte {
		head := make([]byte, qcow2Header)
		copy(head, "QFI\xfb")
		binary.BigEndian.PutUint32(head[4:], 3)
		binary.BigEndian.PutUint64(head[24:], 64<<20)
		change(head)
		return head
	}
	for name, tt := range map[string]struct {
		change func(head []byte)
		good   bool
	}{
		"an image":              {func([]byte) {}, true},
		"version 2":             {func(h []byte) { h[7] = 2 }, true},
		"compressed with zstd":  {func(h []byte) { h[79] = 1 << 3 }, true},
		"not qcow2":             {func(h []byte) { h[0] = 0 }, false},
		"version 4":             {func(h []byte) { h[7] = 4 }, false},
		"no size":               {func(h []byte) { clear(h[24:32]) }, false},
		"a backing file":        {func(h []byte) { h[15] = 0x70 }, false},
		"an external data file": {func(h []byte) { h[79] = 1 << 2 }, false},
	} {
		capacity, err := checkImage(header(tt.change))
		if good := err == nil && capacity == 64<<20; good != tt.good {
			t.Errorf("%s: %d, %v; want good: %v", name, capacity, err, tt.good)
		}
		if _, advice := fault.Explanation(err); err != nil && (fault.KindOf(err) != fault.Invalid || advice == "") {
			t.Errorf("%s: %v (%v) without advice", name, err, fault.KindOf(err))
		}
	}
}

// slowReader gives bytes when it is told to.
type slowReader struct{ began, more chan struct{} }

func (s slowReader) Read(p []byte) (int, error) {
	s.began <- struct{}{}
	<-s.more
	return len(p), nil
}

// TestLentReader: once a reader is given back nobody is reading from it, and nobody begins to.
func TestLentReader(t *testing.T) {
	s := slowReader{make(chan struct{}), make(chan struct{})}
	l := &lentReader{r: s}
	read, back := make(chan error), make(chan struct{})
	go func() {
		_, err := l.Read(make([]byte, 1))
		read <- err
	}()
	<-s.began
	go func() {
		l.giveBack()
		close(back)
	}()
	select {
	case <-back:
		t.Error("given back while it is read")
	default:
	}
	close(s.more)
	if err := <-read; err != nil {
		t.Error(err)
	}
	<-back
	if _, err := l.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after it was given back: %v", err)
	}
	var _ io.Reader = l
}

// TestIsMover tells VMs that get disks plugged in, and those that may be removed, from the user's.
func TestIsMover(t *testing.T) {
	for name, tt := range map[string]struct {
		vm, metadata    string
		mover, deployed bool
	}{
		"deployed":          {"cairn-m1", moverMetadata("t", true), true, true},
		"marked by hand":    {"m1", moverMetadata("t", true), true, false},
		"of a mover's name": {"cairn-m1", "", false, false},
		"a helper":          {"cairn-x", helperMetadata("x"), false, false},
		"another's mark":    {"m1", `<mover tag="t" ready="true"/>`, false, false},
	} {
		x := &libvirtxml.Domain{Name: tt.vm, Metadata: &libvirtxml.DomainMetadata{XML: tt.metadata}}
		if mover, deployed := isMover(x), isDeployed(x); mover != tt.mover || deployed != tt.deployed {
			t.Errorf("%s: mover %v, deployed %v; want %v, %v", name, mover, deployed, tt.mover, tt.deployed)
		}
	}
}
