package pattern

import (
	"errors"
	"fmt"
	"io"
)

// Device is a disk: a block device in a guest, a file or memory in a test.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Sync() error
}

// ErrBlank says that a disk carries no superblock of the pattern.
var ErrBlank = errors.New("no pattern on this disk")

// Writer writes rounds to a group of disks. It is not safe for concurrent use.
type Writer struct {
	devs   []Device
	supers []super
	layout []Layout
	buf    []byte
}

// Format starts a new group at round 0 on the devices.
func Format(id ID, areaBytes int64, devs ...Device) (*Writer, error) {
	w := &Writer{devs: devs, buf: make([]byte, RunBlocks*BlockBytes)}
	for i, d := range devs {
		l, err := NewLayout(d.Size(), areaBytes)
		if err != nil {
			return nil, err
		}
		w.layout = append(w.layout, l)
		w.supers = append(w.supers, super{id: id, disk: uint32(i), disks: uint32(len(devs)), size: d.Size(), area: areaBytes})
		if err := w.commit(i, 0); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Open continues a group where its superblocks stand. The group's disks may be given in any order and some may be
// missing; check them first. It returns ErrBlank when a device carries no superblock.
func Open(devs ...Device) (*Writer, error) {
	w := &Writer{buf: make([]byte, RunBlocks*BlockBytes)}
	for _, d := range devs {
		s, err := readSuper(d)
		if err != nil {
			return nil, err
		}
		l, err := NewLayout(s.size, s.area)
		if err != nil {
			return nil, err
		}
		w.devs, w.supers, w.layout = append(w.devs, d), append(w.supers, s), append(w.layout, l)
	}
	for i, s := range w.supers { // a crash between two superblocks: the round's data is on all disks
		if s.round < w.Round() {
			if err := w.commit(i, w.Round()); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
}

// Round returns the last round that is whole.
func (w *Writer) Round() uint64 {
	var r uint64
	for _, s := range w.supers {
		r = max(r, s.round)
	}
	return r
}

// WriteRound writes one more round and returns when it is durable.
func (w *Writer) WriteRound() error {
	r := w.Round() + 1
	for i, d := range w.devs {
		s, l := w.supers[i], w.layout[i]
		for _, run := range l.roundRuns(s.id, s.disk, r) {
			off := l.offset(run)
			for b := range int64(RunBlocks) {
				at := off + b*BlockBytes
				block{id: s.id, disk: s.disk, round: r, offset: at}.encode(w.buf[b*BlockBytes:])
			}
			if _, err := d.WriteAt(w.buf, off); err != nil {
				return fmt.Errorf("write round %d to disk %d: %w", r, s.disk, err)
			}
		}
	}
	for i, d := range w.devs {
		if err := d.Sync(); err != nil {
			return fmt.Errorf("flush disk %d: %w", i, err)
		}
	}
	for i := range w.devs {
		if err := w.commit(i, r); err != nil {
			return err
		}
	}
	return nil
}

// commit writes disk i's superblock with round r.
func (w *Writer) commit(i int, r uint64) error {
	w.supers[i].round = r
	p := make([]byte, BlockBytes)
	w.supers[i].encode(p)
	if _, err := w.devs[i].WriteAt(p, int64(r%2)*BlockBytes); err != nil {
		return fmt.Errorf("write superblock of disk %d: %w", i, err)
	}
	if err := w.devs[i].Sync(); err != nil {
		return fmt.Errorf("flush disk %d: %w", i, err)
	}
	return nil
}

// readSuper returns the newer of a device's two superblocks.
func readSuper(d Device) (super, error) {
	p := make([]byte, 2*BlockBytes)
	if _, err := d.ReadAt(p, 0); err != nil {
		return super{}, fmt.Errorf("read superblocks: %w", err)
	}
	a, okA := decodeSuper(p)
	b, okB := decodeSuper(p[BlockBytes:])
	switch {
	case okA && okB && a.id != b.id:
		return super{}, fmt.Errorf("the two superblocks belong to different groups")
	case okA && (!okB || a.round > b.round):
		return a, nil
	case okB:
		return b, nil
	}
	return super{}, ErrBlank
}
