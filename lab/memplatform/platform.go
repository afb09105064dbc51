// Package memplatform is a platform in memory: VMs with sparse disks, change tracking, exports over real NBD on unix
// sockets, restores, and faults on demand. The conformance suite and the manager's tests run against it where no
// libvirt is at hand.
//
// It runs no guests; tests write to disks as guests would. Its invariant: what is on the platform outlives its
// drivers, so that a test can drop a driver as a crash of the manager would and look at what was left.
package memplatform

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/hypervisors"
)

// PlatformName is what VMs of this platform say they run on.
const PlatformName hypervisors.Platform = "memory"

// marker begins the name of everything that drivers make here.
const marker = "cairn-"

// Options of a platform. The zero value can do everything.
type Options struct {
	// Deny takes away what the platform can do.
	Deny func(*hypervisors.Capabilities)
	// FreeBytes bounds what restores may write; 0 is no bound.
	FreeBytes int64
}

// Platform is the world that drivers see. Its methods may be called from several goroutines.
type Platform struct {
	caps hypervisors.Capabilities
	dir  string // sockets
	id   string // of the host

	mu      sync.Mutex
	free    int64 // bytes left on the datastore; below 0 is no bound
	vms     map[string]*vm
	jobs    map[string]*job  // by name: freezes under way
	volumes map[string]*disk // by name: disks of restores that no VM has yet
	alone   map[string]*disk // by name: disks that no VM has
	writers map[string]*job  // by tag: restores under way
	faults  map[string][]*Fault
	// watchers are told of VMs that change. They are called with mu held and do not wait.
	watchers map[*watcher]bool
}

// New makes a platform without VMs. Close it.
func New(o Options) (*Platform, error) {
	dir, err := os.MkdirTemp("", "mem-") // short: sockets' paths are bounded
	if err != nil {
		return nil, err
	}
	p := &Platform{
		dir: dir, id: randomID(), free: -1, vms: map[string]*vm{}, jobs: map[string]*job{}, volumes: map[string]*disk{}, alone: map[string]*disk{},
		writers: map[string]*job{}, faults: map[string][]*Fault{}, watchers: map[*watcher]bool{},
		caps: hypervisors.Capabilities{
			Platform: PlatformName, Backup: true, ChangeTracking: true, Quiesce: true, StoppedBackup: true, Restore: true,
			RestoreInPlace: true, RestoreDisks: true, RestoreInto: true, Power: true, Watch: true, Transports: []hypervisors.Transport{hypervisors.TransportNBD},
			Formats: []hypervisors.DiskFormat{hypervisors.Raw},
		},
	}
	if o.FreeBytes > 0 {
		p.free = o.FreeBytes
	}
	if o.Deny != nil {
		o.Deny(&p.caps)
	}
	return p, nil
}

// Close ends all exports and removes the sockets.
func (p *Platform) Close() error {
	p.mu.Lock()
	var all []*job
	for _, m := range []map[string]*job{p.jobs, p.writers} {
		for _, j := range m {
			all = append(all, j)
		}
	}
	p.mu.Unlock()
	for _, j := range all {
		j.end()
	}
	return os.RemoveAll(p.dir)
}

func (p *Platform) socket(tag string) string { return filepath.Join(p.dir, marker+tag+".sock") }

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func randomID() string { return randomHex(16) }

func randomMAC() string {
	h := randomHex(3)
	return strings.Join([]string{"52:54:00", h[:2], h[2:4], h[4:]}, ":")
}
