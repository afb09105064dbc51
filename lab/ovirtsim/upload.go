package ovirtsim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/ovirtsim/imageio"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// upload is a qcow2 file that is sent as it is. It goes into a file of its own and becomes the disk's content when the
// transfer is finalized, since the volume is open in the storage meanwhile.
type upload struct {
	path string
	disk string
	size int64 // virtual, of the disk
}

// openUpload makes the file. What may be sent is the disk's initial size, or what a full qcow2 file of it can have.
func (e *Engine) openUpload(d *disk, size, initial int64, id string) (*upload, imageio.Backend, int64, error) {
	u := &upload{path: filepath.Join(e.dir(), "upload-"+id), disk: d.id, size: size}
	room := cmp.Or(initial, size+size/8+(1<<20))
	f, err := os.OpenFile(u.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(room), f.Close())
	}
	if err != nil {
		return nil, nil, 0, err
	}
	b, err := imageio.OpenFile(u.path, true)
	if err != nil {
		return nil, nil, 0, errors.Join(err, os.Remove(u.path))
	}
	return u, b, room, nil
}

// verify refuses what the hosts refuse: another virtual size, another format, and a file that refers to others.
func (u *upload) verify(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "qemu-img", "info", "--output=json", "-f", "qcow2", u.path).Output()
	if err != nil {
		return fault.New(fault.Invalid, "verify upload", u.disk, "it is no qcow2 image: %w", err)
	}
	var info struct {
		Size    int64  `json:"virtual-size"`
		Backing string `json:"backing-filename"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return err
	}
	if info.Size != u.size || info.Backing != "" {
		return fault.New(fault.Invalid, "verify upload", u.disk, "its virtual size is %d bytes, not %d, or it has a backing file", info.Size, u.size)
	}
	return nil
}

// install makes what was uploaded the content of the disk, which was never written before.
func (u *upload) install(ctx context.Context, s *storage.Site) (err error) {
	if err := u.verify(ctx); err != nil {
		return err
	}
	raw := u.path + ".raw"
	defer func() { err = errors.Join(err, os.RemoveAll(raw)) }()
	if out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", u.path, raw).CombinedOutput(); err != nil {
		return fault.New(fault.Internal, "convert upload", u.disk, "%w: %s", err, strings.TrimSpace(string(out)))
	}
	from, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := s.Guest(ctx, u.disk)
	if err != nil {
		return err
	}
	return errors.Join(copyData(from, to), to.Flush(ctx), to.Close())
}

// copyData copies what is not zero.
func copyData(from io.Reader, to io.WriterAt) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := io.ReadFull(from, buf)
		if n > 0 && !zeros(buf[:n]) {
			if _, err := to.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func zeros(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
