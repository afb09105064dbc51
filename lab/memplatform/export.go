package memplatform

import (
	"context"
	"net"
	"sync"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
)

// job is a freeze or a restore under way: a server with its exports.
type job struct {
	name    string
	vm      string
	socket  string
	server  *nbd.Server
	serving sync.WaitGroup
	ended   sync.Once
}

// serve starts a server for backends on a socket of their own.
func (p *Platform) serve(name, vmID, tag string, exports []nbd.Export) (*job, error) {
	j := &job{name: name, vm: vmID, socket: p.socket(tag), server: nbd.NewServer(nbd.ServerOptions{})}
	for _, e := range exports {
		e.Backend = &faulty{Backend: e.Backend, platform: p}
		e.MultiConn = true
		if err := j.server.Add(e); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", j.socket)
	if err != nil {
		return nil, err
	}
	j.serving.Go(func() { _ = j.server.Serve(l) })
	return j, nil
}

// end cuts the clients off and waits until nothing of the job runs. It may be repeated.
func (j *job) end() {
	j.ended.Do(func() {
		_ = j.server.Close() // the listener's socket goes with it
		j.serving.Wait()
	})
}

// export tells movers where a disk of the job is.
func (j *job) export(name string, size int64, writable bool) hypervisors.Export {
	return hypervisors.Export{Transport: hypervisors.TransportNBD, Network: "unix", Address: j.socket, Name: name, SizeBytes: size, Writable: writable}
}

// faulty lets requests of movers meet the platform's faults.
type faulty struct {
	nbd.Backend
	platform *Platform
}

func (f *faulty) ReadAt(b []byte, off int64) (int, error) {
	if err := f.platform.meet(context.Background(), OpReadDisk); err != nil {
		return 0, err
	}
	return f.Backend.ReadAt(b, off)
}

func (f *faulty) WriteAt(b []byte, off int64) (int, error) {
	if err := f.platform.meet(context.Background(), OpWriteDisk); err != nil {
		return 0, err
	}
	if err := f.platform.allocate(int64(len(b))); err != nil {
		return 0, err
	}
	return f.Backend.WriteAt(b, off)
}

// allocate takes space from the datastore, roughly: a byte written is a byte used.
func (p *Platform) allocate(n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free < 0 {
		return nil
	}
	if n > p.free {
		return nbd.ENOSPC
	}
	p.free -= n
	return nil
}
