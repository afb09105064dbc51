package index

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// run is a file of sorted entries. Only the process that wrote it reads it, so it has no header and is not synced.
type run struct {
	name string
	f    *os.File
	in   *bufio.Reader
	head loaded
}

func (r *run) write(entries []loaded) error {
	f, err := os.OpenFile(r.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(f, 1<<20)
	var p [recordBytes]byte
	for i := range entries {
		copy(p[:], entries[i].key[:])
		binary.BigEndian.PutUint32(p[idBytes+4:], entries[i].val)
		if _, err := out.Write(p[:]); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(out.Flush(), f.Close())
}

// next reads the next entry into head; io.EOF is the end.
func (r *run) next() error {
	var p [recordBytes]byte
	if _, err := io.ReadFull(r.in, p[:]); err != nil {
		return err
	}
	copy(r.head.key[:], p[:])
	r.head.val = binary.BigEndian.Uint32(p[idBytes+4:])
	return nil
}

// merge yields the entries of all runs in order. Its runs are a heap by their heads.
type merge struct {
	heap []*run
	all  []*run
	last loaded
}

func newMerge(runs []*run) (*merge, error) {
	m := &merge{all: runs}
	for _, r := range runs {
		f, err := os.Open(r.name)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		r.f, r.in = f, bufio.NewReaderSize(f, 64<<10)
		if err := r.next(); err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.heap = append(m.heap, r)
	}
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return m, nil
}

// next returns an entry that stays what it is until the call after.
func (m *merge) next() (*loaded, bool, error) {
	if len(m.heap) == 0 {
		return nil, false, nil
	}
	first := m.heap[0]
	m.last = first.head
	switch err := first.next(); {
	case errors.Is(err, io.EOF):
		end := len(m.heap) - 1
		m.heap[0] = m.heap[end]
		m.heap = m.heap[:end]
	case err != nil:
		return nil, false, err
	}
	m.down(0)
	return &m.last, true, nil
}

func (m *merge) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(m.heap); child++ {
			if m.heap[child].head.compare(&m.heap[least].head) < 0 {
				least = child
			}
		}
		if least == i {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}

func (m *merge) close() error {
	var errs []error
	for _, r := range m.all {
		if r.f != nil {
			errs = append(errs, r.f.Close())
			r.f = nil
		}
	}
	return errors.Join(errs...)
}
