package images

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"slices"
)

const blockBytes = 4096

var zeroBlock [blockBytes]byte

// Novel writes what is new on a day on machines of a kind: the blocks of 4 KiB that were on no machine of the set the
// day before, in the order of the disks, each once. No engine that works on blocks can store less than these compress
// to. It returns how many bytes that are; scratch is a folder for images.
func Novel(ctx context.Context, dir string, k Kind, day int, scratch, path string) (n int64, err error) {
	s, err := Load(dir)
	if err != nil {
		return 0, err
	}
	seed, known := maphash.MakeSeed(), map[uint64]struct{}{}
	for _, m := range s.Machines {
		image := filepath.Join(scratch, m.Name+".img")
		err := Build(ctx, dir, m.Name, min(day-1, m.Days), image)
		if err == nil {
			err = eachBlock(image, func(b []byte) error {
				known[maphash.Bytes(seed, b)] = struct{}{}
				return nil
			})
		}
		if err = errors.Join(err, os.Remove(image)); err != nil {
			return 0, err
		}
	}
	out, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := bufio.NewWriterSize(out, mib)
	of := slices.DeleteFunc(s.Machines, func(m Machine) bool { return m.Kind != k || m.Days < day })
	for _, m := range of {
		err := eachBlock(Delta(dir, m.Name, day), func(b []byte) error {
			h := maphash.Bytes(seed, b)
			if _, old := known[h]; old {
				return nil
			}
			known[h] = struct{}{}
			n += int64(len(b))
			_, err := w.Write(b)
			return err
		})
		if err != nil {
			return n, err
		}
	}
	return n, w.Flush()
}

// eachBlock calls do with each block of a file that is not all zeros.
func eachBlock(path string, do func(b []byte) error) error {
	f, size, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := DataExtents(f, size)
	if err != nil {
		return err
	}
	for _, e := range data {
		in := bufio.NewReaderSize(io.NewSectionReader(f, e.Offset, e.Length), mib)
		for b := make([]byte, blockBytes); ; {
			n, err := io.ReadFull(in, b)
			if n > 0 && !bytes.Equal(b[:n], zeroBlock[:n]) {
				if err := do(b[:n]); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
