package kvmlab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say where a lab lives. The zero value is right for tests.
type Options struct {
	// Dir is the lab's directory, made when it is not there. QEMU's user must be able to reach it, so it is not to be
	// below a home directory. Empty: a new one below /var/tmp/cairn-lab.
	Dir string
	// Private starts a libvirtd of the lab's own, for tests that kill it.
	Private bool
	Log     *slog.Logger
}

// Lab is a set of VMs with a directory and a storage pool of their own. Its methods may be called from several
// goroutines.
type Lab struct {
	dir    string
	name   string // "lab-" + random: prefix of the pool and part of every VM's name
	tag    string
	daemon *Daemon
	log    *slog.Logger
	kernel kernel
	unuse  []func()
	closed bool

	mu      sync.Mutex
	initrds map[bool]string // by agent
}

// baseDir holds labs that do not say where they want to be.
const baseDir = "/var/tmp/cairn-lab"

// Open makes a lab: libvirtd answers, the guest kernel is there, the pool is started.
func Open(ctx context.Context, o Options) (*Lab, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lab{dir: o.Dir, tag: randomHex(3), log: o.Log, initrds: map[bool]string{}}
	l.name = "lab-" + l.tag
	if l.dir == "" {
		l.dir = filepath.Join(baseDir, l.tag)
	}
	if err := l.open(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("open lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) open(ctx context.Context, o Options) error {
	err := l.claim(ctx)
	if err != nil {
		return err
	}
	if err := l.save(o.Private); err != nil {
		return err
	}
	if o.Private {
		l.daemon, err = StartPrivate(ctx, l.path(privateDir))
	} else {
		l.daemon, err = EnsureLibvirtd(ctx)
	}
	if err != nil {
		return err
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	if l.kernel, err = findKernel(ctx, cache); err != nil {
		return err
	}
	// A copy, because the cache may lie where QEMU's user cannot go.
	if err := copyFile(l.path("vmlinuz"), l.kernel.image, 0o644); err != nil {
		return err
	}
	if _, err := l.Virsh(ctx, "pool-define-as", l.name, "dir", "--target", l.PoolDir()); err != nil {
		return err
	}
	_, err = l.Virsh(ctx, "pool-start", l.name)
	return err
}

// URI is the libvirt connection on which the lab's VMs are.
func (l *Lab) URI() string { return l.daemon.URI }

// Daemon is the libvirtd behind it.
func (l *Lab) Daemon() *Daemon { return l.daemon }

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Pool is the name of the lab's storage pool.
func (l *Lab) Pool() string { return l.name }

// PoolDir is the directory of the lab's storage pool.
func (l *Lab) PoolDir() string { return filepath.Join(l.dir, "pool") }

func (l *Lab) path(name string) string { return filepath.Join(l.dir, name) }

// initrd returns the guests' file system and builds it the first time.
func (l *Lab) initrd(ctx context.Context, agent bool) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, ok := l.initrds[agent]; ok {
		return p, nil
	}
	guest := l.path("guest")
	if len(l.initrds) == 0 {
		if err := buildGuest(ctx, guest); err != nil {
			return "", fmt.Errorf("build the guest program: %w", err)
		}
	}
	out := l.path(map[bool]string{false: "guest.cpio", true: "guest-agent.cpio"}[agent])
	if err := writeInitramfs(ctx, out, guest, l.kernel, agent); err != nil {
		return "", fmt.Errorf("write the guest's file system: %w", err)
	}
	l.initrds[agent] = out
	return out, nil
}

// Close removes the lab: every VM that is its own or has a file in its directory, its pool, its directory, and its
// libvirtd if that is private. A second call does nothing when the first one has removed all.
func (l *Lab) Close() error {
	if l.closed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	if l.daemon != nil {
		errs = append(errs, l.removeVMs(ctx), l.removePool(ctx, l.name), l.daemon.Close())
	}
	errs = append(errs, removeDir(ctx, l.dir))
	for _, f := range l.unuse {
		f()
	}
	l.unuse = nil
	err := errors.Join(errs...)
	l.closed = err == nil
	return err
}

// removeDir removes a directory in which a QEMU that was just killed may still remove, or leave, something.
func removeDir(ctx context.Context, dir string) error {
	for {
		err := os.RemoveAll(dir)
		if !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// removePool removes a pool's definition and leaves its files.
func (l *Lab) removePool(ctx context.Context, name string) error {
	names, err := l.Virsh(ctx, "pool-list", "--all", "--name")
	if err != nil {
		return err
	}
	for p := range strings.FieldsSeq(names) {
		if p != name {
			continue
		}
		_, _ = l.Virsh(ctx, "pool-destroy", p) // fails when it is not started
		if _, err := l.Virsh(ctx, "pool-undefine", p); err != nil {
			return err
		}
	}
	return nil
}

// removeVMs removes all VMs that are the lab's or have a file in its directory.
func (l *Lab) removeVMs(ctx context.Context) error {
	names, err := l.Virsh(ctx, "list", "--all", "--name")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range splitLines(names) {
		xml, err := l.Virsh(ctx, "dumpxml", name)
		if err != nil || !own(name, l.tag) && !strings.Contains(xml, "'"+l.dir+"/") {
			continue // it is gone, or somebody else's
		}
		errs = append(errs, l.remove(ctx, name))
	}
	return errors.Join(errs...)
}

// remove switches a VM off and removes its definition with all that libvirt keeps of it. Its disks stay.
func (l *Lab) remove(ctx context.Context, name string) error {
	_, _ = l.Virsh(ctx, "destroy", name) // fails when it is off
	_, err := l.Virsh(ctx, "undefine", name, "--nvram", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
	if err != nil {
		if names, e := l.Virsh(ctx, "list", "--all", "--name"); e == nil && !strings.Contains("\n"+names+"\n", "\n"+name+"\n") {
			return nil // it was transient
		}
	}
	return err
}

// own says whether a VM's name is one that the lab gives.
func own(name, tag string) bool {
	return strings.HasPrefix(name, "lab-") && strings.HasSuffix(name, "-"+tag)
}

// splitLines returns the lines that are not empty; names may hold spaces.
func splitLines(s string) []string {
	var out []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func randomHex(n int) string {
	p := make([]byte, n)
	_, _ = rand.Read(p) // never fails
	return hex.EncodeToString(p)
}
