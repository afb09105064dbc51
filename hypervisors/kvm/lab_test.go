package kvm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/kvm"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// bench is a lab with a libvirtd of its own and a driver connected to it.
type bench struct {
	*testing.T
	lab     *kvmlab.Lab
	d       *kvm.Driver
	sockets string
	book    *ledger
}

// ledger is what is owed, and the number of the last tag.
type ledger struct {
	mu   sync.Mutex
	n    int
	owed []hypervisors.Owed
}

// in returns the bench for a subtest.
func (b *bench) in(t *testing.T) *bench {
	c := *b
	c.T = t
	return &c
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return benchIn(t, kvmlab.New(t, kvmlab.Options{Private: true}))
}

func benchIn(t *testing.T, lab *kvmlab.Lab) *bench {
	t.Helper()
	b := &bench{T: t, lab: lab, book: &ledger{}}
	b.sockets = filepath.Join(b.lab.Dir(), "sockets")
	if err := os.Mkdir(b.sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	u, err := user.Lookup("libvirt-qemu")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	if err := os.Chown(b.sockets, uid, -1); err != nil {
		t.Fatal(err)
	}
	b.d = b.open(b.lab.URI(), nil)
	return b
}

func (b *bench) open(uri string, more map[string]string) *kvm.Driver {
	b.Helper()
	o := map[string]string{kvm.OptSocketDir: b.sockets, kvm.OptNVRAMDir: b.lab.Dir()}
	for k, v := range more {
		o[k] = v
	}
	d, err := kvm.Open(b.Context(), kvm.Config{URI: uri, Options: o})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Close(); err != nil {
			b.Errorf("close driver: %v", err)
		}
	})
	return d
}

// run makes a VM whose guest writes only when told to.
func (b *bench) run(name string, disks ...kvmlab.Disk) *kvmlab.VM {
	b.Helper()
	vm, err := b.lab.Run(b.Context(), kvmlab.Spec{Name: name, Rate: -1, AreaBytes: 2 << 20, Disks: disks})
	b.ok(err)
	return vm
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		meaning, advice := fault.Explanation(err)
		b.Fatalf("%v (%v) %s %s", err, fault.KindOf(err), meaning, advice)
	}
}

func (b *bench) owe(_ context.Context, o hypervisors.Owed) error {
	b.book.mu.Lock()
	defer b.book.mu.Unlock()
	b.book.owed = append(b.book.owed, o)
	return nil
}

func (b *bench) tag() string {
	b.book.n++
	return fmt.Sprintf("t%d", b.book.n)
}

func (b *bench) request(vm, since string) hypervisors.FreezeRequest {
	return hypervisors.FreezeRequest{
		VM: vm, Tag: b.tag(), Quiesce: hypervisors.QuiesceTry, Since: since, Track: true, Owe: b.owe,
	}
}

func (b *bench) freeze(vm, since string) hypervisors.Frozen {
	b.Helper()
	f, err := b.d.Freeze(b.Context(), b.request(vm, since))
	b.ok(err)
	b.Cleanup(func() { _ = f.Release(context.WithoutCancel(b.Context())) })
	return f
}

func (b *bench) write(vm *kvmlab.VM) {
	b.Helper()
	_, err := vm.Write(b.Context(), 2)
	b.ok(err)
}

func uri(x hypervisors.Export) string { return "nbd+unix:///" + x.Name + "?socket=" + x.Address }

// read copies a frozen disk by a tool that is not ours.
func (b *bench) read(x hypervisors.Export) []byte {
	b.Helper()
	file := filepath.Join(b.TempDir(), "copy")
	b.tool("nbdcopy", uri(x), file)
	data, err := os.ReadFile(file)
	b.ok(err)
	return data
}

func (b *bench) tool(name string, args ...string) []byte {
	b.Helper()
	var bad bytes.Buffer
	cmd := exec.CommandContext(b.Context(), name, args...)
	cmd.Stderr = &bad
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%s %v: %v: %s", name, args, err, bad.Bytes())
	}
	return out
}

// apply brings an image to the frozen state by the dirty extents alone, and returns how many bytes those were.
func (b *bench) apply(image []byte, x hypervisors.Export) (dirty int) {
	b.Helper()
	if x.DirtyContext == "" {
		b.Fatalf("disk %s is not incremental", x.Name)
	}
	var extents []struct {
		Offset, Length, Type int
	}
	b.ok(json.Unmarshal(b.tool("nbdinfo", "--json", "--map="+x.DirtyContext, uri(x)), &extents))
	now := b.read(x)
	for _, e := range extents {
		if e.Type&1 != 0 {
			dirty += copy(image[e.Offset:e.Offset+e.Length], now[e.Offset:])
		}
	}
	return dirty
}

func (b *bench) content(vm *kvmlab.VM, disk string) []byte {
	b.Helper()
	data, err := vm.Content(b.Context(), disk)
	b.ok(err)
	return data
}

func (b *bench) same(got, want []byte, what string) {
	b.Helper()
	if !bytes.Equal(got, want) {
		b.Errorf("%s differs", what)
	}
}

// clean fails when something of ours is left, but for kinds that are expected.
func (b *bench) clean(expected ...hypervisors.OwedKind) {
	b.Helper()
	left, err := b.d.Leftovers(context.WithoutCancel(b.Context()))
	b.ok(err)
	for _, o := range left {
		if !slices.Contains(expected, o.Kind) {
			b.Errorf("left: %+v", o)
		}
	}
}

func info(f hypervisors.Frozen, disk string) hypervisors.FrozenDiskInfo {
	for _, d := range f.Info().Disks {
		if d.Disk.ID == disk {
			return d
		}
	}
	return hypervisors.FrozenDiskInfo{}
}

// try runs a tool that may fail.
func (b *bench) try(name string, args ...string) ([]byte, error) {
	return exec.CommandContext(context.WithoutCancel(b.Context()), name, args...).CombinedOutput()
}

// toolAtEnd runs a tool during the clean-up of a test.
func (b *bench) toolAtEnd(name string, args ...string) {
	if out, err := b.try(name, args...); err != nil {
		b.Errorf("%s %v: %v: %s", name, args, err, out)
	}
}
