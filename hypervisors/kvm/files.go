package kvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// Files of the host that are no disks (scratch files, UEFI variables). On this machine they are plain files; on
// another one libvirt's storage API reaches them: the pool of their directory, or a transient pool of ours over it.

// maxSmallFile bounds what is read into memory: UEFI variable stores are 64 KiB to 64 MiB (arm).
const maxSmallFile = 64 << 20

// removeFile removes a file of the host; one that is not there is fine.
func (d *Driver) removeFile(ctx context.Context, path string) error {
	if d.access == accessLocal {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Context("remove", path, err)
		}
		return nil
	}
	_, err := call(ctx, d.conn, "remove", path, func(lv *libvirt.Connect) (none, error) {
		return none{}, withDirPool(lv, filepath.Dir(path), func(p *libvirt.StoragePool) error {
			return deleteFound(p.LookupStorageVolByName(filepath.Base(path)))
		})
	})
	return err
}

// removeSocket removes a socket of the host; one that is not there is fine. libvirt knows no way to do that on
// another machine, so it goes by ssh there; over TLS there are no sockets.
func (d *Driver) removeSocket(ctx context.Context, path string) error {
	switch d.access {
	case accessLocal:
		return d.removeFile(ctx, path)
	case accessSSH:
		return d.sshRun(ctx, "rm", "-f", "--", path)
	}
	return nil
}

// readFile returns a small file of the host.
func (d *Driver) readFile(ctx context.Context, path string) ([]byte, error) {
	if d.access == accessLocal {
		st, err := os.Stat(path)
		if err != nil {
			return nil, fault.Context("read", path, err)
		}
		if st.Size() > maxSmallFile {
			return nil, tooBig(path, st.Size())
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Context("read", path, err)
		}
		return data, nil
	}
	return call(ctx, d.conn, "read", path, func(lv *libvirt.Connect) ([]byte, error) {
		var data []byte
		err := withDirPool(lv, filepath.Dir(path), func(p *libvirt.StoragePool) error {
			v, err := p.LookupStorageVolByName(filepath.Base(path))
			if err != nil {
				return err
			}
			defer v.Free()
			data, err = download(lv, v, path)
			return err
		})
		return data, err
	})
}

func tooBig(path string, size int64) error {
	return fault.New(fault.Invalid, "read", path, "it has %d bytes, and at most %d are expected", size, maxSmallFile)
}

func download(lv *libvirt.Connect, v *libvirt.StorageVol, path string) ([]byte, error) {
	info, err := v.GetInfo()
	if err != nil {
		return nil, err
	}
	if info.Capacity > maxSmallFile {
		return nil, tooBig(path, int64(info.Capacity))
	}
	st, err := lv.NewStream(0)
	if err != nil {
		return nil, err
	}
	defer st.Free()
	if err := v.Download(st, 0, info.Capacity, 0); err != nil {
		return nil, err
	}
	data := make([]byte, 0, info.Capacity)
	buf := make([]byte, 256<<10)
	for {
		n, err := st.Recv(buf)
		if err != nil {
			_ = st.Abort()
			return nil, err
		}
		if n == 0 {
			return data, st.Finish()
		}
		if data = append(data, buf[:n]...); len(data) > maxSmallFile {
			_ = st.Abort()
			return nil, tooBig(path, int64(len(data)))
		}
	}
}

// writeFile makes a small file on the host; it must not exist. libvirt gives it to the right user when a VM uses it.
func (d *Driver) writeFile(ctx context.Context, path string, data []byte) error {
	if d.access == accessLocal {
		return writeLocal(path, data)
	}
	_, err := call(ctx, d.conn, "write", path, func(lv *libvirt.Connect) (none, error) {
		return none{}, withDirPool(lv, filepath.Dir(path), func(p *libvirt.StoragePool) error {
			return upload(lv, p, filepath.Base(path), data)
		})
	})
	return err
}

func writeLocal(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Context("write", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
		return fault.Context("write", path, err)
	}
	return nil
}

func upload(lv *libvirt.Connect, p *libvirt.StoragePool, name string, data []byte) error {
	x := libvirtxml.StorageVolume{
		Name:     name,
		Capacity: &libvirtxml.StorageVolumeSize{Value: uint64(len(data)), Unit: "bytes"},
		Target:   &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: "raw"}},
	}
	doc, err := x.Marshal()
	if err != nil {
		return err
	}
	v, err := p.StorageVolCreateXML(doc, 0)
	if err != nil {
		return err
	}
	defer v.Free()
	st, err := lv.NewStream(0)
	if err != nil {
		return err
	}
	defer st.Free()
	if err := v.Upload(st, 0, uint64(len(data)), 0); err != nil {
		return err
	}
	for len(data) > 0 {
		n, err := st.Send(data[:min(len(data), 256<<10)])
		if err != nil {
			_ = st.Abort()
			return err
		}
		data = data[n:]
	}
	return st.Finish()
}

// withDirPool runs fn with a refreshed pool over a directory: the host's own one, or a transient one that is gone
// afterwards.
func withDirPool(lv *libvirt.Connect, dir string, fn func(*libvirt.StoragePool) error) error {
	p, err := lv.LookupStoragePoolByTargetPath(dir)
	if err == nil {
		defer p.Free()
		if err := p.Refresh(0); err != nil {
			return err
		}
		return fn(p)
	}
	x := libvirtxml.StoragePool{
		Type: "dir", Name: marker + "dir-" + strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-"),
		Target: &libvirtxml.StoragePoolTarget{Path: dir},
	}
	doc, err := x.Marshal()
	if err != nil {
		return err
	}
	if p, err = lv.StoragePoolCreateXML(doc, 0); err != nil {
		// Somebody else in this process may have made it a moment ago.
		if p, err = lv.LookupStoragePoolByTargetPath(dir); err != nil {
			return fmt.Errorf("open directory %s: %w", dir, err)
		}
	}
	defer p.Free()
	err = fn(p)
	return errors.Join(err, p.Destroy())
}
