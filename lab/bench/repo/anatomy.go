package repo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-backup/cairn/store/pack"
)

// Anatomy says what the bytes of a repository are, in total of all its files.
type Anatomy struct {
	Packs        int   `json:"packs"`
	Content      int64 `json:"content"`           // compressed frames of disk data
	Fingerprints int64 `json:"fingerprints"`      // of blocks
	Directories  int64 `json:"directories"`       // of packs of data, with their headers and trailers
	Trees        int64 `json:"trees"`             // frames of nodes, image heads and documents
	TreePacks    int64 `json:"trees_directories"` // what their packs have beside frames
	Manifests    int64 `json:"manifests"`
	Rest         int64 `json:"rest"` // config, keys, the format's text, the reader and the reserve
}

// Dissect looks at the files of a repository in a directory. It needs no key: where a pack's parts lie stands in its
// trailer (store/FORMAT.md, section 7), which it trusts.
func Dissect(ctx context.Context, dir string) (a Anatomy, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(name, pack.Folder):
			return a.addPack(path, info.Size())
		case strings.HasPrefix(name, "manifests/"):
			a.Manifests += info.Size()
		default:
			a.Rest += info.Size()
		}
		return nil
	})
	return a, err
}

func (a *Anatomy) addPack(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head, end := make([]byte, pack.HeaderBytes), make([]byte, pack.TrailerBytes)
	if _, err := f.ReadAt(head, 0); err != nil {
		return err
	}
	if _, err := f.ReadAt(end, size-pack.TrailerBytes); err != nil {
		return err
	}
	h, err := pack.ParseHeader(head)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	le := binary.LittleEndian
	frames := int64(le.Uint64(end)) - pack.HeaderBytes
	directory, prints := int64(le.Uint32(end[8:])), int64(le.Uint32(end[12:]))
	if pack.HeaderBytes+frames+directory+prints+pack.TrailerBytes != size {
		return fmt.Errorf("%s: the trailer's lengths are not those of a file of %d bytes", path, size)
	}
	a.Packs++
	if h.Kind == pack.Meta {
		a.Trees, a.TreePacks = a.Trees+frames, a.TreePacks+size-frames
		return nil
	}
	a.Content, a.Fingerprints, a.Directories = a.Content+frames, a.Fingerprints+prints, a.Directories+size-frames-prints
	return nil
}
