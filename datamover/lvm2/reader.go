package lvm2

import (
	"errors"
	"io"
	"sort"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Reader reads a logical volume from its devices. It may be used from several goroutines; it closes nothing.
type Reader struct {
	volume  Volume
	devices map[string]Device // by UUID of the physical volume
}

// Size returns the volume's size in bytes.
func (r *Reader) Size() int64 { return r.volume.Size }

// Place is a range of a device.
type Place struct {
	Device         Device
	Offset, Length int64
}

// Place returns where the byte at off lies and how many bytes from there on lie in one piece.
func (r *Reader) Place(off int64) (Place, error) {
	if off < 0 || off >= r.volume.Size {
		return Place{}, fault.New(fault.Invalid, op, r.volume.Name, "offset %d of %d", off, r.volume.Size)
	}
	segs := r.volume.Segments
	seg := segs[sort.Search(len(segs), func(i int) bool { return segs[i].Offset > off })-1]
	within := off - seg.Offset
	chunk, rest := within/seg.StripeBytes, within%seg.StripeBytes
	n := int64(len(seg.Stripes))
	st := seg.Stripes[chunk%n]
	return Place{
		Device: r.devices[st.PV], Offset: st.Offset + chunk/n*seg.StripeBytes + rest,
		Length: min(seg.StripeBytes-rest, seg.Length-within),
	}, nil
}

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= r.volume.Size {
			return done, io.EOF
		}
		place, err := r.Place(at)
		if err != nil {
			return done, err
		}
		part := p[done:][:min(int64(len(p)-done), place.Length)]
		n, err := place.Device.ReadAt(part, place.Offset)
		if n < len(part) {
			if err == nil || errors.Is(err, io.EOF) {
				err = fault.New(fault.Transient, op, r.volume.Name, "%s ends at %d", place.Device.Name(), place.Offset+int64(n))
			}
			return done + n, err
		}
		done += n
	}
	return done, nil
}
