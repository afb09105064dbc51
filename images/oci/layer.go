package oci

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Layer makes one layer: files and directories that lie over what is below. Close it.
type Layer struct {
	f    *os.File
	tar  *tar.Writer
	time time.Time
	made map[string]bool
}

// NewLayer begins a layer in a file. Everything in it has one time.
func NewLayer(name string, at time.Time) (*Layer, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return &Layer{f: f, tar: tar.NewWriter(f), time: at, made: map[string]bool{}}, nil
}

// Dir adds a directory with its owner. Directories that are below already keep theirs.
func (l *Layer) Dir(name string, perm int64, owner int) error {
	l.made[name] = true
	return l.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: name + "/", Mode: perm, Uid: owner, Gid: owner, ModTime: l.time, Format: tar.FormatPAX,
	})
}

// File adds a file of root's, and the directories above it.
func (l *Layer) File(name string, perm int64, data []byte) error {
	if err := l.above(name); err != nil {
		return err
	}
	err := l.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: perm, Size: int64(len(data)), ModTime: l.time, Format: tar.FormatPAX,
	})
	if err != nil {
		return err
	}
	_, err = l.tar.Write(data)
	return err
}

func (l *Layer) above(name string) error {
	var dirs []string
	for dir := path.Dir(name); dir != "." && !l.made[dir]; dir = path.Dir(dir) {
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	for _, dir := range dirs {
		if err := l.Dir(dir, 0o755, 0); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the layer.
func (l *Layer) Close() error { return errors.Join(l.tar.Close(), l.f.Close()) }

// System copies the archive of a whole system into a layer, without device files, which an engine makes itself, and returns the
// files that are asked for.
func System(from, to string, at time.Time, want ...string) (found map[string][]byte, err error) {
	in, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	found = map[string][]byte{}
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found, w.Close()
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock || h.Typeflag == tar.TypeFifo {
			continue
		}
		if err := copyEntry(w, r, h, at, want, found); err != nil {
			return nil, err
		}
	}
}

func copyEntry(w *tar.Writer, r io.Reader, h *tar.Header, at time.Time, want []string, found map[string][]byte) error {
	h.Name = strings.TrimPrefix(h.Name, "./")
	if h.Name == "" {
		return nil // the root itself
	}
	if h.Typeflag == tar.TypeLink {
		h.Linkname = strings.TrimPrefix(h.Linkname, "./")
	}
	if h.ModTime.After(at) {
		h.ModTime = at
	}
	h.Uname, h.Gname, h.Format, h.AccessTime, h.ChangeTime = "", "", tar.FormatPAX, time.Time{}, time.Time{}
	for key := range h.PAXRecords {
		if !strings.HasPrefix(key, "SCHILY.xattr.") {
			delete(h.PAXRecords, key) // what they say is in the header, and is written again
		}
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if !slices.Contains(want, h.Name) {
		_, err := io.Copy(w, r)
		return err
	}
	p, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	found[h.Name] = p
	_, err = w.Write(p)
	return err
}
