package disk

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// eachData calls f with the blocks of a file that are not zero, in order, and returns the file's size. Holes are not
// read.
func eachData(name string, f func(at int64, p []byte) error) (int64, error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	for at := int64(0); at < info.Size(); at += block {
		data, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole is left
		}
		if err == nil { // a file system that knows no holes says so, and all is read
			at = data / block * block
		}
		n, err := file.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if allZero(buf[:n]) {
			continue
		}
		if err := f(at, buf[:n]); err != nil {
			return 0, err
		}
	}
	return info.Size(), nil
}

// Sum is a name for a file's content and size: the SHA-256 of the blocks that are not zero and of where they stand.
func Sum(name string) ([]byte, error) {
	h := sha256.New()
	size, err := eachData(name, func(at int64, p []byte) error {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(at)))
		h.Write(p)
		return nil
	})
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(size)))
	return h.Sum(nil), err
}
