package storage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Format is a volume's format, in oVirt's words.
type Format string

// The formats.
const (
	Raw Format = "raw" // no snapshots of its own content's changes: a raw volume has no checkpoints
	Cow Format = "cow" // qcow2
)

func (f Format) driver() string {
	if f == Cow {
		return "qcow2"
	}
	return "raw"
}

// Site is the storage of a simulated site. Its methods may be called from several goroutines. Those that change a disk exclude
// each other; which of them make sense at the same time is the caller's to say.
type Site struct {
	dir    string
	serial atomic.Int64 // of nodes, exports and jobs

	mu      sync.Mutex // of the fields below; never held during a command
	daemon  *daemon
	disks   map[string]*disk
	backups map[string]*Backup
	closed  bool
}

// disk is a chain of volumes.
type disk struct {
	id string

	op     sync.Mutex // held while the disk is changed
	size   int64      // op
	chain  []*volume  // op and Site.mu for writing, either for reading; the base first, the active one last
	guests []*Image   // as chain; those that follow the active volume
	gone   bool       // op
}

// volume is a file that the daemon has open.
type volume struct {
	id     string
	path   string
	format Format
	node   string // the daemon's name of it
}

func (d *disk) active() *volume { return d.chain[len(d.chain)-1] }

func (d *disk) index(id string) int {
	return slices.IndexFunc(d.chain, func(v *volume) bool { return v.id == id })
}

// Start starts a site's storage in an empty directory of the caller's, whose path must be short enough for a Unix socket.
// Whoever started it closes it.
func Start(ctx context.Context, dir string) (*Site, error) {
	d, err := startDaemon(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &Site{dir: dir, daemon: d, disks: map[string]*disk{}, backups: map[string]*Backup{}}, nil
}

// Close ends the daemon; the files stay. It may be repeated.
func (s *Site) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	d, images := s.daemon, s.images()
	s.mu.Unlock()
	for _, i := range images {
		i.hangUp()
	}
	return d.quit(context.Background())
}

// Crash kills the daemon and starts another one, as when a host dies and its VMs are started elsewhere: exports, backups and
// plugged disks are gone, and checkpoints of volumes that were being written are gone, too, or inconsistent. What was flushed is there.
func (s *Site) Crash(ctx context.Context) error {
	s.mu.Lock()
	old, images := s.daemon, s.images()
	disks := make([]*disk, 0, len(s.disks))
	for _, d := range s.disks {
		disks = append(disks, d)
	}
	s.mu.Unlock()
	old.kill() // whatever is under way fails and lets go of its disk
	for _, i := range images {
		i.hangUp()
	}
	slices.SortFunc(disks, func(a, b *disk) int { return strings.Compare(a.id, b.id) })
	for _, d := range disks {
		d.op.Lock()
		defer d.op.Unlock()
	}
	now, err := startDaemon(ctx, s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.daemon = now
	clear(s.backups)
	for _, d := range disks {
		d.guests = nil
	}
	s.mu.Unlock()
	for _, d := range disks {
		if d.gone {
			continue
		}
		if err := s.openChain(ctx, d); err != nil {
			return fault.Context("open again after a crash", d.id, err)
		}
	}
	return nil
}

// images are the open ones; Site.mu is held.
func (s *Site) images() (out []*Image) {
	for _, d := range s.disks {
		out = append(out, d.guests...)
	}
	return out
}

// do runs a command of the daemon's.
func (s *Site) do(ctx context.Context, command string, arguments object, out any) error {
	return s.current().do(ctx, command, arguments, out)
}

func (s *Site) current() *daemon {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon
}

// name gives something in the daemon a name that nothing else had.
func (s *Site) name(prefix string) string { return fmt.Sprintf("%s%d", prefix, s.serial.Add(1)) }

// lock returns a disk that nobody else changes until unlock.
func (s *Site) lock(id string) (d *disk, unlock func(), err error) {
	s.mu.Lock()
	d = s.disks[id]
	s.mu.Unlock()
	if d != nil {
		d.op.Lock()
		if !d.gone {
			return d, d.op.Unlock, nil
		}
		d.op.Unlock()
	}
	return nil, nil, fault.New(fault.NotFound, "find disk", id, "there is none")
}

// find returns the disk of a volume.
func (s *Site) find(volume string) (disk string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, d := range s.disks {
		if d.index(volume) >= 0 {
			return id, nil
		}
	}
	return "", fault.New(fault.NotFound, "find volume", volume, "there is none")
}

// lockVolume returns a volume whose disk nobody changes until unlock.
func (s *Site) lockVolume(id string) (d *disk, v *volume, unlock func(), err error) {
	name, err := s.find(id)
	if err != nil {
		return nil, nil, nil, err
	}
	if d, unlock, err = s.lock(name); err != nil {
		return nil, nil, nil, err
	}
	i := d.index(id)
	if i < 0 {
		unlock()
		return nil, nil, nil, fault.New(fault.NotFound, "find volume", id, "it was merged")
	}
	return d, d.chain[i], unlock, nil
}

// openNode makes the daemon open a volume. backing is the node below it, "" for none.
func (s *Site) openNode(ctx context.Context, v *volume, backing string, readOnly bool) error {
	v.node = s.name("v")
	return s.do(ctx, "blockdev-add", v.options(backing, readOnly), nil)
}

// options are those of a volume's node, for opening and for opening anew.
func (v *volume) options(backing string, readOnly bool) object {
	o := object{
		"driver": v.format.driver(), "node-name": v.node, "read-only": readOnly, "discard": "unmap",
		// The file follows what the format above it does.
		"file": object{"driver": "file", "node-name": v.node + "-file", "filename": v.path, "auto-read-only": true, "discard": "unmap"},
	}
	if v.format == Cow {
		o["backing"] = any(nil)
		if backing != "" {
			o["backing"] = backing
		}
	}
	return o
}

// openChain opens all volumes of a disk; those below the active one read-only.
func (s *Site) openChain(ctx context.Context, d *disk) error {
	backing := ""
	for i, v := range d.chain {
		if err := s.openNode(ctx, v, backing, i < len(d.chain)-1); err != nil {
			return err
		}
		backing = v.node
	}
	return nil
}

// image runs qemu-img.
func image(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if err != nil {
		return fault.New(fault.Internal, "qemu-img "+args[0], "", "%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// path is where a volume lies, as in a file domain of oVirt's.
func (s *Site) path(disk, volume string) string {
	return filepath.Join(s.dir, "images", disk, volume)
}

func remove(paths ...string) error {
	for _, p := range paths {
		if err := os.Remove(p); err != nil {
			return fault.Context("remove", p, err)
		}
	}
	return nil
}
