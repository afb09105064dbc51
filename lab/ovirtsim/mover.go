package ovirtsim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// device is a disk in a VM as its guest would see it: a loop device of this machine, shown in a sysfs of the VM's own.
type device struct {
	plugged *storage.Plugged
	loop    string   // "/dev/loop3"
	shown   []string // directories
	ready   chan struct{}
}

// Guest returns where a mover that plays the guest of a VM finds the disks which are plugged into that VM, and which VM it is
// in: its sysfs has them and nothing else. It needs root.
func (e *Engine) Guest(ctx context.Context, vmID string) (blockdev.System, error) {
	if _, err := e.storage(ctx); err != nil {
		return blockdev.System{}, err
	}
	sys := e.sysfs(vmID)
	dmi := filepath.Join(sys, "class/dmi/id")
	err := errors.Join(os.MkdirAll(filepath.Join(sys, "block"), 0o755), os.MkdirAll(dmi, 0o755))
	if err == nil {
		err = os.WriteFile(filepath.Join(dmi, "product_uuid"), []byte(vmID+"\n"), 0o400)
	}
	return blockdev.System{Sys: sys, Dev: "/dev", Proc: "/proc"}, err
}

// Movers returns the ids of the VMs that are marked as movers, by name.
func (e *Engine) Movers() map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]string{}
	for _, v := range e.vms.all() {
		if strings.HasPrefix(v.comment, MoverComment) {
			out[v.name] = v.id
		}
	}
	return out
}

// sysfs is where the sysfs of a VM lies, once the storage runs.
func (e *Engine) sysfs(vmID string) string {
	return filepath.Join(e.dir(), "guests", vmID, "sys")
}

// plug shows an attached disk in its VM, if that is a mover's: nothing looks into other VMs, and a disk that a device of this machine
// has open can be neither merged nor backed up here. The caller holds mu.
func (e *Engine) plug(a *attachment) {
	if !strings.HasPrefix(a.vm.comment, MoverComment) {
		return
	}
	volume, serial := a.volume, a.disk.id
	if a.snapshot == "" {
		volume = a.disk.active.id
	}
	if a.disk.lun || a.device != nil {
		return
	}
	var wrong int64
	switch {
	case e.strikes(DeviceShortSerial, a.disk.id, a.disk.alias):
		serial = serial[:20]
	case e.strikes(DeviceWrongSize, a.disk.id, a.disk.alias):
		wrong = 512
	}
	hidden, twice := e.strikes(DeviceMissing, a.disk.id, a.disk.alias), e.strikes(DeviceTwice, a.disk.id, a.disk.alias)
	d := &device{ready: make(chan struct{})}
	a.device = d
	size, model, readOnly := a.disk.size, a.model, a.readOnly
	e.work(func(ctx context.Context) error {
		defer close(d.ready)
		s, err := e.stored(ctx, a.disk)
		if err != nil {
			return err
		}
		if err := d.open(ctx, s, volume); err != nil || hidden {
			return err
		}
		names := []string{filepath.Base(d.loop)}
		if twice {
			names = append(names, "twin-of-"+names[0])
		}
		for _, name := range names {
			dir := filepath.Join(e.sysfs(a.vm.id), "block", name)
			d.shown = append(d.shown, dir)
			if err := show(dir, d.loop, serial, model, size+wrong, readOnly); err != nil {
				return err
			}
		}
		return nil
	}, func(err error) {
		if err != nil {
			e.audit(&event{code: 2001, severity: "error", text: "Failed to plug disk " + a.disk.alias + " to VM " + a.vm.name + ".", vm: a.vm.id})
		}
	})
}

// open makes a block device of a volume.
func (d *device) open(ctx context.Context, s *storage.Site, volume string) (err error) {
	if d.plugged, err = s.Plug(ctx, volume); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", d.plugged.Path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("losetup: %w: %s", err, strings.TrimSpace(string(out)))
	}
	d.loop = strings.TrimSpace(string(out))
	return nil
}

// show describes a device in a sysfs. Its serial number comes last: by that it is found.
func show(dir, loop, serial, model string, size int64, readOnly bool) error {
	number, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(loop), "dev"))
	if err != nil {
		return err
	}
	ro := "0"
	if readOnly {
		ro = "1"
	}
	last, content := "device/vpd_pg80", string(vpd(0x80, serial))
	if model == "virtio" {
		last, content = "serial", serial[:min(len(serial), 20)]
	}
	for _, f := range [][2]string{{"dev", string(number)}, {"ro", ro}, {"size", strconv.FormatInt(size/512, 10)}, {"queue/logical_block_size", "512"}, {last, content}} {
		path := filepath.Join(dir, f[0])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		tmp := filepath.Join(filepath.Dir(path), ".new")
		if err := errors.Join(os.WriteFile(tmp, []byte(f[1]), 0o644), os.Rename(tmp, path)); err != nil {
			return err
		}
	}
	return nil
}

// vpd is a page of vital product data.
func vpd(page byte, content string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, page}, uint16(len(content))), content...)
}

// unplug takes a disk out of its VM. then is called under the lock when it is gone. The caller holds mu.
func (e *Engine) unplug(a *attachment, then func()) {
	d := a.device
	a.device = nil
	if d == nil {
		then()
		return
	}
	e.work(func(ctx context.Context) error { return d.close(context.WithoutCancel(ctx)) }, func(error) { then() })
}

// close waits for the plugging.
func (d *device) close(ctx context.Context) error {
	<-d.ready
	var errs []error
	for _, dir := range d.shown {
		errs = append(errs, os.RemoveAll(dir))
	}
	if d.loop != "" {
		out, err := exec.CommandContext(ctx, "losetup", "--detach", d.loop).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("losetup: %w: %s", err, strings.TrimSpace(string(out))))
		}
	}
	if d.plugged != nil {
		errs = append(errs, d.plugged.Unplug(ctx))
	}
	return errors.Join(errs...)
}
