// Package hypervisortest is the conformance suite that every driver runs: in memory, against a simulator, on the
// real platform.
//
// It tests the contract of package hypervisors and nothing that is one platform's own. Its invariant: after each of
// its tests the platform is as it was before, and a test that finds something left of ours fails.
package hypervisortest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Fixture is a platform with VMs for one test. The suite leaves it as it was, but for the content of disks, so a
// fixture may be handed out several times.
type Fixture struct {
	Driver hypervisors.Driver
	// Running is a VM that is on, has two disks or more that can be backed up, and writes only in Write and
	// Background.
	Running string
	// Stopped is a VM that is off and has a disk that can be backed up. It may be empty if Capabilities lacks
	// StoppedBackup and Restore.
	Stopped string
	// Mover is a VM that is on and whose guest opens what is attached to it: OpenSource and OpenTarget reach into it
	// for exports of TransportHotadd. It may be empty if Capabilities lacks that.
	Mover string
	// OwnSerials says that the platform gives disks in movers serial numbers of its own.
	OwnSerials bool
	// MoverImage says how mover VMs are made: the image as a *bytes.Reader, seed, datastore and network. It may be empty
	// if Capabilities lacks DeployMover.
	MoverImage hypervisors.MoverRequest
	// Agent says that the guest of Running can be quiesced.
	Agent bool
	// Write makes the guest of Running write something to all its disks and returns when that is durable.
	Write func(t testing.TB)
	// Background makes the guest of Running write all the time, until stop returns.
	Background func(t testing.TB) (stop func())
	// Content returns what a disk of a VM holds now, read in another way than by the driver; the VM is "" for a disk that none has. Nothing
	// writes meanwhile.
	Content func(t testing.TB, vm, disk string) []byte
	// Remove removes a VM that was restored, with its disks.
	Remove func(t testing.TB, vm string)
	// RemoveDisk removes a disk that was restored and that no VM has. It may be nil if Capabilities lacks RestoreDisks.
	RemoveDisk func(t testing.TB, disk string)
	// OpenSource and OpenTarget open exports.
	OpenSource func(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error)
	OpenTarget func(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error)
	// Foreign makes a checkpoint on Running as another tool would, and returns its name and whether it is still there;
	// nil where that is not possible.
	Foreign func(t testing.TB) (name string, exists func() bool)
	// NoSuchVM is an id of the platform's form that no VM has.
	NoSuchVM string
}

// Run runs the suite. open is called once for each of its tests. Other tests may use the platform at the same time:
// the suite looks only at what carries its own tags.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	run := "suite" + random()
	for _, tt := range []struct {
		name string
		test func(*env)
	}{
		{"Inventory", testInventory},
		{"UnknownVM", testUnknownVM},
		{"Watch", testWatch},
		{"Capabilities", testCapabilities},
		{"FrozenContent", testFrozenContent},
		{"StableWhileGuestWrites", testStable},
		{"ReleaseMayBeRepeated", testRelease},
		{"Refreeze", testRefreeze},
		{"SecondFreezeIsRefused", testSecondFreeze},
		{"Quiesce", testQuiesce},
		{"ExcludedDisk", testExcluded},
		{"StoppedVM", testStopped},
		{"OweIsHonoured", testOwe},
		{"CleanUpAfterCrash", testCleanUp},
		{"CanceledFreeze", testCanceled},
		{"Incrementals", testIncrementals},
		{"IncrementalAfterAbandonedRun", testAbandonedRun},
		{"LostCheckpoint", testLostCheckpoint},
		{"KeepCheckpoint", testKeepCheckpoint},
		{"ForeignCheckpoint", testForeign},
		{"RestoreNew", testRestoreNew},
		{"RestoreInPlace", testRestoreInPlace},
		{"RestoreChosenDisk", testRestoreChosenDisk},
		{"RestoreDisks", testRestoreDisks},
		{"RestoreInto", testRestoreInto},
		{"RestoreAbandoned", testRestoreAbandoned},
		{"RestoreRefused", testRestoreRefused},
		{"RestoreOwe", testRestoreOwe},
		{"RestoreKeepsMACs", testRestoreKeepsMACs},
		{"CanceledRestore", testRestoreCanceled},
		{"RestoreCleanUpAfterCrash", testRestoreCleanUp},
		{"Attach", testAttach},
		{"AttachChanged", testAttachChanged},
		{"AttachRestore", testAttachRestore},
		{"AttachOwe", testAttachOwe},
		{"AttachCleanUpAfterCrash", testAttachCleanUp},
		{"AttachRefused", testAttachRefused},
		{"Deploy", testDeploy},
		{"DeployRefused", testDeployRefused},
		{"DeployOwe", testDeployOwe},
		{"DeployCleanUpAfterCrash", testDeployCleanUp},
		{"Power", testPower},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &env{T: t, Fixture: open(t), owed: &ledger{}, run: run}
			e.caps = e.Driver.Capabilities()
			e.clean("before the test")
			tt.test(e)
			e.clean("after the test")
		})
	}
}

// env is what one test works with.
type env struct {
	*testing.T
	Fixture
	caps hypervisors.Capabilities
	owed *ledger
	run  string // begins the tags of this run of the suite
}

// ledger records what was owed, as the manager's catalog would.
type ledger struct {
	mu    sync.Mutex
	items []hypervisors.Owed
	fail  int   // which call answers err; 0 is none
	err   error // what it answers
	hook  func(n int)
}

func (l *ledger) owe(_ context.Context, o hypervisors.Owed) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = append(l.items, o)
	if l.hook != nil {
		l.hook(len(l.items))
	}
	if len(l.items) == l.fail {
		return l.err
	}
	return nil
}

// need skips the test when the platform cannot do something.
func (e *env) need(has bool, what string) {
	e.Helper()
	if !has {
		e.Skipf("this platform has no %s", what)
	}
}

func (e *env) ok(err error, doing string) {
	e.Helper()
	if err != nil {
		meaning, advice := fault.Explanation(err)
		e.Fatalf("%s: %v (kind %v) %s %s", doing, err, fault.KindOf(err), meaning, advice)
	}
}

// kind fails the test when an error is not of a kind.
func (e *env) kind(err error, want fault.Kind, doing string) {
	e.Helper()
	if err == nil {
		e.Errorf("%s: no error, want one of kind %v", doing, want)
	} else if got := fault.KindOf(err); got != want {
		e.Errorf("%s: %v: kind %v, want %v", doing, err, got, want)
	}
}

// leftovers returns what this run of the suite has on the platform.
func (e *env) leftovers() []hypervisors.Owed {
	e.Helper()
	left, err := e.Driver.Leftovers(e.cleanup())
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	e.ok(err, "look for leftovers")
	return slices.DeleteFunc(left, func(o hypervisors.Owed) bool { return !hasMarker(o.Name, e.run) })
}

// clean fails the test when something of ours is on the platform.
func (e *env) clean(when string) {
	e.Helper()
	if left := e.leftovers(); len(left) > 0 {
		e.Errorf("%s there is left on the platform: %+v", when, left)
	}
}

// cleanup returns a context that the end of the test does not cancel.
func (e *env) cleanup() context.Context { return context.WithoutCancel(e.Context()) }

// tag returns a new tag of this run.
func (e *env) tag() string { return e.run + "-" + random() }

func random() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func (e *env) vm(id string) hypervisors.VM {
	e.Helper()
	vm, err := e.Driver.VM(e.Context(), id)
	e.ok(err, "look up VM")
	return vm
}

func (e *env) request(vm string) hypervisors.FreezeRequest {
	return hypervisors.FreezeRequest{VM: vm, Tag: e.tag(), Quiesce: hypervisors.QuiesceTry, Owe: e.owed.owe}
}

// freeze freezes a VM and releases it at the end of the test, if that was not done before.
func (e *env) freeze(req hypervisors.FreezeRequest) hypervisors.Frozen {
	e.Helper()
	f, err := e.Driver.Freeze(e.Context(), req)
	e.ok(err, "freeze")
	e.Cleanup(func() {
		if err := f.Release(e.cleanup()); err != nil {
			e.Errorf("release at the end of the test: %v", err)
		}
	})
	return f
}

func (e *env) release(f hypervisors.Frozen) {
	e.Helper()
	e.ok(f.Release(e.cleanup()), "release")
}

// forget removes all checkpoints of ours from Running, as a test must before it ends.
func (e *env) forget() {
	e.Helper()
	if e.caps.ChangeTracking {
		e.ok(e.Driver.KeepCheckpoint(e.cleanup(), e.Running, ""), "remove checkpoints")
	}
}

// read returns the whole content of a frozen disk.
func (e *env) read(x hypervisors.Export) []byte {
	e.Helper()
	x.DirtyContext = ""
	d, err := e.OpenSource(e.Context(), x)
	e.ok(err, "open export "+x.Name)
	defer d.Close()
	p := make([]byte, d.Size())
	for off := 0; off < len(p); off += 1 << 20 {
		if _, err := d.ReadAt(p[off:min(off+1<<20, len(p))], int64(off)); err != nil {
			e.ok(err, "read export "+x.Name)
		}
	}
	return p
}

// content returns the content of all disks of a frozen VM by id.
func (e *env) content(f hypervisors.Frozen) map[string][]byte {
	e.Helper()
	out := map[string][]byte{}
	for _, d := range f.Info().Disks {
		out[d.Disk.ID] = e.read(d.Export)
	}
	return out
}

// same fails the test when two contents of a disk differ, and says where.
func (e *env) same(got, want []byte, what string) {
	e.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		e.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
		return
	}
	at, differ := -1, 0
	for i := range got {
		if got[i] != want[i] {
			differ++
			if at < 0 {
				at = i
			}
		}
	}
	e.Errorf("%s: %d bytes differ, the first one at offset %d", what, differ, at)
}

// apply brings a copy of a disk from the last restore point to the frozen state, and returns how many bytes were
// known to be unchanged.
func (e *env) apply(image []byte, x hypervisors.Export) (unchanged int64) {
	e.Helper()
	d, err := e.OpenSource(e.Context(), x)
	e.ok(err, "open export "+x.Name)
	defer d.Close()
	end := int64(0)
	for ext, err := range d.Extents(e.Context()) {
		e.ok(err, "list extents")
		if ext.Offset != end || ext.Length <= 0 || ext.Offset+ext.Length > d.Size() {
			e.Fatalf("extent %+v after offset %d of %d: they must follow each other", ext, end, d.Size())
		}
		end += ext.Length
		part := image[ext.Offset:end]
		switch ext.State {
		case hypervisors.Unchanged:
			unchanged += ext.Length
		case hypervisors.Zero:
			clear(part)
		default:
			for len(part) > 0 {
				n := min(len(part), 1<<20)
				if _, err := d.ReadAt(part[:n], end-int64(len(part))); err != nil {
					e.ok(err, "read export")
				}
				part = part[n:]
			}
		}
	}
	if end != d.Size() {
		e.Fatalf("extents of %s end at %d, want %d", x.Name, end, d.Size())
	}
	return unchanged
}

func diskIDs(disks []hypervisors.FrozenDiskInfo) []string {
	var out []string
	for _, d := range disks {
		out = append(out, d.Disk.ID)
	}
	slices.Sort(out)
	return out
}

func hasMarker(name, tag string) bool { return strings.Contains(name, "cairn-"+tag) }
