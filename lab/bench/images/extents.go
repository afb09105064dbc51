package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// GrainBytes is how finely change tracking tells what changed, as QEMU's dirty bitmaps do.
const GrainBytes = 64 << 10

// Extent is a byte range of an image.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Changes is the record beside an image: where it differs from the image of the day before.
type Changes struct {
	SizeBytes int64    `json:"size_bytes"`
	Grain     int64    `json:"grain"`
	Changed   []Extent `json:"changed"`
	Blocks    int64    `json:"blocks_4k"` // blocks of 4 KiB that differ, for judging what a grain costs
}

// ChangedBytes sums the extents.
func (c Changes) ChangedBytes() (n int64) {
	for _, e := range c.Changed {
		n += e.Length
	}
	return n
}

// Save writes the record.
func (c Changes) Save(path string) error {
	p, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(p, '\n'), 0o644)
}

// LoadChanges reads a record.
func LoadChanges(path string) (c Changes, err error) {
	p, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(p, &c)
	}
	if err != nil {
		return c, fmt.Errorf("read record of changes: %w", err)
	}
	return c, nil
}

// DataExtents yields the ranges of a file that are not holes.
func DataExtents(f *os.File, size int64) ([]Extent, error) {
	var out []Extent
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data of %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find data of %s: %w", f.Name(), err)
		}
		out = append(out, Extent{begin, min(end, size) - begin})
		at = end
	}
	return out, nil
}

// open opens a file and answers its size.
func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// Compare tells where two images of equal size differ, in grains.
func Compare(before, after string) (Changes, error) {
	a, size, err := open(before)
	if err != nil {
		return Changes{}, err
	}
	defer a.Close()
	b, other, err := open(after)
	if err != nil {
		return Changes{}, err
	}
	defer b.Close()
	if size != other {
		return Changes{}, fmt.Errorf("%s has %d bytes, %s %d", before, size, after, other)
	}
	grains, err := dataGrains(size, a, b)
	if err != nil {
		return Changes{}, err
	}
	c := Changes{SizeBytes: size, Grain: GrainBytes}
	p, q := make([]byte, GrainBytes), make([]byte, GrainBytes)
	for _, g := range grains {
		off := g * GrainBytes
		n := min(GrainBytes, size-off)
		if _, err := io.ReadFull(io.NewSectionReader(a, off, n), p[:n]); err != nil {
			return Changes{}, err
		}
		if _, err := io.ReadFull(io.NewSectionReader(b, off, n), q[:n]); err != nil {
			return Changes{}, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			c.add(off, n)
			c.Blocks += differing(p[:n], q[:n])
		}
	}
	return c, nil
}

func (c *Changes) add(off, n int64) {
	if last := len(c.Changed) - 1; last >= 0 && c.Changed[last].Offset+c.Changed[last].Length == off {
		c.Changed[last].Length += n
		return
	}
	c.Changed = append(c.Changed, Extent{off, n})
}

func differing(p, q []byte) (n int64) {
	for at := 0; at < len(p); at += 4096 {
		if !bytes.Equal(p[at:min(at+4096, len(p))], q[at:min(at+4096, len(p))]) {
			n++
		}
	}
	return n
}

// dataGrains lists the grains in which any of the files has data.
func dataGrains(size int64, files ...*os.File) ([]int64, error) {
	var out []int64
	for _, f := range files {
		data, err := DataExtents(f, size)
		if err != nil {
			return nil, err
		}
		for _, e := range data {
			for g := e.Offset / GrainBytes; g*GrainBytes < e.Offset+e.Length; g++ {
				out = append(out, g)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Allocated is how many bytes a file takes on its file system.
func Allocated(path string) (int64, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return s.Blocks * 512, nil
}

// Same reports the first difference between two files, as cmp does; holes are zeros.
func Same(want, got string) error {
	c, err := Compare(want, got)
	if err != nil {
		return err
	}
	if len(c.Changed) > 0 {
		return fmt.Errorf("%s differs from %s in %d bytes' extents, first at %d", got, want, c.ChangedBytes(), c.Changed[0].Offset)
	}
	return nil
}

// SaveDelta writes the content of the changed extents of an image.
func SaveDelta(image, path string, c Changes) error {
	return move(c, image, path, func(in, out *os.File, e Extent, at int64) error {
		_, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, e.Offset, e.Length))
		return err
	})
}

// ApplyDelta makes an image that of the next day.
func ApplyDelta(path, image string, c Changes) error {
	return move(c, path, image, func(in, out *os.File, e Extent, at int64) error {
		_, err := io.Copy(io.NewOffsetWriter(out, e.Offset), io.NewSectionReader(in, at, e.Length))
		return err
	})
}

// move calls copy with each extent and its place in the delta file.
func move(c Changes, from, to string, copy func(in, out *os.File, e Extent, at int64) error) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	at := int64(0)
	for _, e := range c.Changed {
		if err := copy(in, out, e, at); err != nil {
			return err
		}
		at += e.Length
	}
	return nil
}
