package pattern

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Geometry of a directory's content.
const (
	fileSlots = 32
	fileBytes = 64 << 10
	fileHead  = 32
	fileMagic = "CAIRNFIL"
)

// Files writes rounds of files into a directory of a journaling file system. A round writes one file under another
// name, syncs it, renames it to its place and syncs the directory, so that at every instant each file under its
// final name is whole, and the newest ones are those of the last rounds. It is not safe for concurrent use.
type Files struct {
	dir   string
	round uint64
	buf   []byte
}

// OpenFiles continues where the directory's files stand.
func OpenFiles(dir string) (*Files, error) {
	rep, err := CheckFiles(dir)
	if err != nil && !errors.Is(err, ErrBlank) {
		return nil, err
	}
	return &Files{dir: dir, round: rep.Round, buf: make([]byte, fileBytes)}, nil
}

// Round returns the last round that is whole.
func (f *Files) Round() uint64 { return f.round }

// WriteRound writes one more file and returns when it is durable.
func (f *Files) WriteRound() error {
	r := f.round + 1
	copy(f.buf, fileMagic)
	binary.LittleEndian.PutUint64(f.buf[16:], r)
	state := mix(r)
	for i := fileHead; i < fileBytes; i += 8 {
		state = state*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(f.buf[i:], state)
	}
	binary.LittleEndian.PutUint32(f.buf[8:], crc32.Checksum(f.buf[16:], castagnoli))
	tmp := filepath.Join(f.dir, "new.tmp")
	if err := writeSynced(tmp, f.buf); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(f.dir, fmt.Sprintf("file%02d", r%fileSlots))); err != nil {
		return err
	}
	d, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	f.round = r
	return nil
}

func writeSynced(name string, p []byte) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = file.Write(p)
	return errors.Join(err, file.Sync(), file.Close())
}

// CheckFiles reads a directory and returns an error that names the first file which is not whole or not of the round
// it must be of. It returns ErrBlank when there is no file yet.
func CheckFiles(dir string) (Report, error) {
	rep := Report{Group: "files", Disks: 1, Of: 1}
	names, err := fs.Glob(os.DirFS(dir), "file[0-9][0-9]")
	if err != nil {
		return rep, err
	}
	rounds := map[string]uint64{}
	for _, name := range names {
		r, err := checkFile(filepath.Join(dir, name))
		if err != nil {
			return rep, fmt.Errorf("%s: %w", name, err)
		}
		rounds[name] = r
		rep.Round = max(rep.Round, r)
		rep.Blocks += fileBytes / BlockBytes
	}
	if rep.Round == 0 {
		return rep, ErrBlank
	}
	for r := rep.Round; r > 0 && r+fileSlots > rep.Round; r-- {
		name := fmt.Sprintf("file%02d", r%fileSlots)
		if rounds[name] != r {
			return rep, fmt.Errorf("%s: is of round %d, want %d", name, rounds[name], r)
		}
	}
	return rep, nil
}

func checkFile(name string) (uint64, error) {
	p, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	if len(p) != fileBytes || !strings.HasPrefix(string(p), fileMagic) {
		return 0, fmt.Errorf("%d bytes, no file of the pattern", len(p))
	}
	if got, want := crc32.Checksum(p[16:], castagnoli), binary.LittleEndian.Uint32(p[8:]); got != want {
		return 0, fmt.Errorf("checksum %08x, want %08x", got, want)
	}
	return binary.LittleEndian.Uint64(p[16:]), nil
}
