//go:build linux

package santransport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/datamover/lvm2"
	"github.com/cairn-backup/cairn/datamover/qcow2"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// source is a frozen disk on LUNs.
type source struct {
	export  hypervisors.Export
	log     *slog.Logger
	content io.ReaderAt
	image   *qcow2.Image // nil: the content is raw
	seqno   int64
	volumes []lvm2.Volume // that are read, as they were when the disk was opened

	mu     sync.Mutex
	luns   []*blockdev.LUN
	closed bool
}

// adopt takes a LUN that was opened; false, and the LUN is closed, if the source is.
func (s *source) adopt(l *blockdev.LUN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = l.Close()
		return false
	}
	s.luns = append(s.luns, l)
	return true
}

func (s *source) lun(wwn string) *blockdev.LUN {
	for _, l := range s.luns {
		if blockdev.CanonicalWWN(l.Name()) == blockdev.CanonicalWWN(wwn) {
			return l
		}
	}
	return nil
}

// Size implements hypervisors.FrozenDisk.
func (s *source) Size() int64 { return s.export.SizeBytes }

// Close makes calls under way return.
func (s *source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for _, l := range s.luns {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// ReadAt implements hypervisors.FrozenDisk.
func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, op, s.export.Name, "offset %d", off)
	}
	want := int(max(0, min(int64(len(p)), s.export.SizeBytes-off)))
	if want > 0 {
		n, err := s.content.ReadAt(p[:want], off)
		if n < want {
			return n, err
		}
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// Confirm implements hypervisors.FrozenDisk: it reads the metadata again.
func (s *source) Confirm(context.Context) error {
	if len(s.volumes) > 0 {
		_, group, err := s.scan()
		if err != nil {
			return err
		}
		if group.Seqno != s.seqno {
			s.log.Info("the volume group changed while the disk was read", "disk", s.export.Name, "group", group.Name, "before", s.seqno, "now", group.Seqno)
		}
		for i, before := range s.volumes {
			now, ok := group.Volume(before.UUID)
			if !ok {
				return s.changed(fmt.Errorf("the volume %s is gone", before.Name))
			}
			if err := s.frozen(group, now, s.export.SAN.Layers[i]); err != nil {
				return s.changed(err)
			}
			if now, before := fmt.Sprintf("%+v", now), fmt.Sprintf("%+v", before); now != before {
				return s.changed(fmt.Errorf("the volume is %s now, was %s; the group's sequence number went from %d to %d", now, before, s.seqno, group.Seqno))
			}
		}
	}
	if s.image != nil {
		if err := s.image.Unchanged(); err != nil {
			return s.changed(err)
		}
	}
	return nil
}

func (s *source) changed(err error) error {
	return fault.Wrap(fault.Transient, op, s.export.Name, err).Explain(
		"The platform changed the disk's volumes on the storage while they were read, so what was read cannot be trusted; it is not kept.",
		"Nothing needs to be done if the task is started again and nobody makes or removes snapshots, extends or moves the disk meanwhile.")
}

// Extents implements hypervisors.FrozenDisk: what the images say, and of that only what the export's own extents do not
// call unchanged.
func (s *source) Extents(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
	content := s.allocation(ctx)
	if len(s.export.Extents) == 0 {
		return joined(content)
	}
	return joined(masked(content, s.export.Extents.Extents()))
}

// allocation yields what the images themselves say.
func (s *source) allocation(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		if s.image == nil {
			yield(hypervisors.Extent{Length: s.export.SizeBytes, State: hypervisors.Data}, nil)
			return
		}
		for e, err := range s.image.Extents(ctx, 0, s.export.SizeBytes) {
			out := hypervisors.Extent{Offset: e.Offset, Length: e.Length, State: hypervisors.Zero}
			if e.State == qcow2.Data {
				out.State = hypervisors.Data
			}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}
