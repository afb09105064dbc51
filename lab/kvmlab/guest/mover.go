//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/transport/hotadd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// A VM of Spec.Mover plays a mover: it opens hot-plugged disks with the product's own transport and offers the one that
// is open to the host by NBD over a virtio port, so that tests read and write through a real guest.

// moverPort is the port with NBD.
const moverPort = "cairn.mover.0"

// mover has at most one disk open.
type mover struct {
	server *nbd.Server
	disk   io.Closer
}

// startMover offers the open disk on the port from now on.
func startMover() (*mover, error) {
	dev, err := port(moverPort)
	if err != nil {
		return nil, err
	}
	m := &mover{server: nbd.NewServer(nbd.ServerOptions{})}
	go func() { say("nbd: %v", m.server.Serve(&portListener{dev: dev, free: make(chan struct{}, 1)})) }()
	return m, nil
}

// open opens a disk for reading, or for writing if the export is writable. text is the JSON of an Export, wait how many
// milliseconds the disk may take to appear.
func (m *mover) open(text, wait string) error {
	var e hypervisors.Export
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return err
	}
	m.close()
	ms, _ := strconv.Atoi(wait)
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(ms)*time.Millisecond)
	defer cancel()
	var o hotadd.Options
	if !e.Writable {
		d, err := o.OpenSource(ctx, e)
		if err != nil {
			return err
		}
		m.disk = d
		b := readBackend{FrozenDisk: d}
		for x, err := range d.Extents(ctx) {
			if err != nil {
				return err
			}
			b.extents = append(b.extents, x)
		}
		return m.server.Add(nbd.Export{Name: "disk", Backend: b, ReadOnly: true, Contexts: []string{nbd.BaseAllocation, "qemu:dirty-bitmap:mover"}})
	}
	d, err := o.OpenTarget(ctx, e)
	if err != nil {
		return err
	}
	back, err := o.OpenSource(ctx, e)
	if err != nil {
		_ = d.Close()
		return err
	}
	m.disk = closers{d, back}
	return m.server.Add(nbd.Export{Name: "disk", Backend: writeBackend{d, back}})
}

// mountedAt is where mount puts a disk.
const mountedAt = "/mounted"

// mount does what nothing in a mover may do by itself: it mounts the ext4 file system of the virtio disk with a serial.
func mount(serial string) error {
	files, err := filepath.Glob("/sys/block/*/serial")
	if err != nil {
		return err
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && string(b) == serial {
			if err := os.MkdirAll(mountedAt, 0o755); err != nil {
				return err
			}
			return syscall.Mount("/dev/"+filepath.Base(filepath.Dir(f)), mountedAt, "ext4", 0, "")
		}
	}
	return fault.New(fault.NotFound, "mount disk", serial, "it is not there")
}

func (m *mover) close() {
	m.server.Remove("disk")
	if m.disk != nil {
		_ = m.disk.Close()
		m.disk = nil
	}
}

// answer puts an error into a reply, with its kind and words.
func (r *reply) answer(err error) {
	if err != nil {
		r.Kind = fault.KindOf(err).String()
		r.Fault = err.Error()
		r.Meaning, r.Advice = fault.Explanation(err)
	}
}

type closers []io.Closer

func (c closers) Close() error {
	for _, x := range c {
		_ = x.Close()
	}
	return nil
}

// readBackend is a frozen disk as NBD wants it.
type readBackend struct {
	hypervisors.FrozenDisk
	extents []hypervisors.Extent
}

func (readBackend) WriteAt([]byte, int64) (int, error)       { return 0, syscall.EPERM }
func (readBackend) Zero(context.Context, int64, int64) error { return syscall.EPERM }
func (readBackend) Flush(context.Context) error              { return nil }

// Extents says what the transport says, in the words of the context asked for.
func (r readBackend) Extents(_ context.Context, name string, off, n int64) ([]nbd.Extent, error) {
	var out []nbd.Extent
	for _, x := range r.extents {
		from, to := max(x.Offset, off), min(x.Offset+x.Length, off+n)
		if from >= to {
			continue
		}
		e := nbd.Extent{Length: to - from}
		switch {
		case name == nbd.BaseAllocation && x.State == hypervisors.Zero:
			e.Flags = nbd.StateHole | nbd.StateZero
		case name != nbd.BaseAllocation && x.State != hypervisors.Unchanged:
			e.Flags = nbd.StateDirty
		}
		out = append(out, e)
	}
	return out, nil
}

// writeBackend is a new disk that can also be read back.
type writeBackend struct {
	hypervisors.TargetDisk
	back hypervisors.FrozenDisk
}

func (w writeBackend) ReadAt(p []byte, off int64) (int, error) { return w.back.ReadAt(p, off) }
func (writeBackend) Extents(context.Context, string, int64, int64) ([]nbd.Extent, error) {
	return nil, syscall.EINVAL
}

// portListener makes one connection after the other of a virtio port. What is written to it waits until the host has
// connected.
type portListener struct {
	dev  string
	free chan struct{} // holds the connection there is
}

func (l *portListener) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	for {
		fd, err := syscall.Open(l.dev, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if errors.Is(err, syscall.EBUSY) {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return nil, err
		}
		return &portConn{fd: fd, l: l}, nil
	}
}

func (l *portListener) Close() error   { return nil }
func (l *portListener) Addr() net.Addr { return &net.UnixAddr{Name: l.dev, Net: "unix"} }

// portConn is the port while a host is connected.
type portConn struct {
	fd   int
	l    *portListener
	once sync.Once
}

func (c *portConn) Read(p []byte) (int, error) {
	n, err := syscall.Read(c.fd, p)
	if err != nil {
		return 0, os.NewSyscallError("read", err)
	}
	if n == 0 {
		return 0, io.EOF // the host has gone
	}
	return n, nil
}

func (c *portConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := syscall.Write(c.fd, p[done:])
		if err != nil {
			return done, os.NewSyscallError("write", err)
		}
		done += n
	}
	return done, nil
}

func (c *portConn) Close() error {
	c.once.Do(func() {
		_ = syscall.Close(c.fd)
		<-c.l.free
	})
	return nil
}

func (c *portConn) LocalAddr() net.Addr              { return c.l.Addr() }
func (c *portConn) RemoteAddr() net.Addr             { return c.l.Addr() }
func (c *portConn) SetDeadline(time.Time) error      { return nil }
func (c *portConn) SetReadDeadline(time.Time) error  { return nil }
func (c *portConn) SetWriteDeadline(time.Time) error { return nil }
