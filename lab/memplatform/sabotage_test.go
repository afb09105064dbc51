package memplatform

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
)

// saboteur is a driver with one flaw; what is nil is done as it should be.
type saboteur struct {
	hypervisors.Driver
	freeze  func(*hypervisors.FreezeRequest)
	frozen  func(*hypervisors.FrozenInfo)
	release bool // Release does nothing
	restore func(*hypervisors.RestoreRequest)
	abandon bool // Abandon does nothing
	finish  func(*hypervisors.VM)
	keep    func(string) string
	cleanUp func(hypervisors.Owed) error
	vms     func([]hypervisors.VM) []hypervisors.VM
	vague   bool // errors have no kind
	deaf    bool // Watch does not listen
}

func (s *saboteur) Freeze(ctx context.Context, req hypervisors.FreezeRequest) (hypervisors.Frozen, error) {
	if s.freeze != nil {
		s.freeze(&req)
	}
	f, err := s.Driver.Freeze(ctx, req)
	if err != nil {
		return nil, err
	}
	info := f.Info()
	if s.frozen != nil {
		s.frozen(&info)
	}
	return &badFrozen{f, info, s.release}, nil
}

type badFrozen struct {
	hypervisors.Frozen
	info hypervisors.FrozenInfo
	keep bool
}

func (f *badFrozen) Info() hypervisors.FrozenInfo { return f.info }

func (f *badFrozen) Release(ctx context.Context) error {
	if f.keep {
		return nil
	}
	return f.Frozen.Release(ctx)
}

func (s *saboteur) BeginRestore(ctx context.Context, req hypervisors.RestoreRequest) (hypervisors.Restoring, error) {
	if s.restore != nil {
		s.restore(&req)
	}
	r, err := s.Driver.BeginRestore(ctx, req)
	if err != nil {
		return nil, err
	}
	return &badRestoring{r, s}, nil
}

type badRestoring struct {
	hypervisors.Restoring
	s *saboteur
}

func (r *badRestoring) Abandon(ctx context.Context) error {
	if r.s.abandon {
		return nil
	}
	return r.Restoring.Abandon(ctx)
}

func (r *badRestoring) Finish(ctx context.Context) (hypervisors.VM, error) {
	vm, err := r.Restoring.Finish(ctx)
	if err == nil && r.s.finish != nil {
		r.s.finish(&vm)
	}
	return vm, err
}

func (s *saboteur) KeepCheckpoint(ctx context.Context, vm, keep string) error {
	if s.keep != nil {
		keep = s.keep(keep)
	}
	return s.Driver.KeepCheckpoint(ctx, vm, keep)
}

func (s *saboteur) CleanUp(ctx context.Context, o hypervisors.Owed) error {
	if s.cleanUp != nil {
		return s.cleanUp(o)
	}
	return s.Driver.CleanUp(ctx, o)
}

func (s *saboteur) VMs(ctx context.Context) ([]hypervisors.VM, error) {
	vms, err := s.Driver.VMs(ctx)
	if s.vms != nil {
		vms = s.vms(vms)
	}
	return vms, err
}

func (s *saboteur) VM(ctx context.Context, id string) (hypervisors.VM, error) {
	vm, err := s.Driver.VM(ctx, id)
	if err != nil && s.vague {
		err = errors.New(err.Error())
	}
	return vm, err
}

func (s *saboteur) Watch(ctx context.Context, tell func(string)) error {
	if s.deaf {
		tell("")
		return nil
	}
	return s.Driver.Watch(ctx, tell)
}

var flaws = map[string]func(*saboteur){
	"does not listen":     func(s *saboteur) { s.deaf = true },
	"releases nothing":    func(s *saboteur) { s.release = true },
	"abandons nothing":    func(s *saboteur) { s.abandon = true },
	"owes nothing":        func(s *saboteur) { s.freeze = func(r *hypervisors.FreezeRequest) { r.Owe = nil } },
	"restores unowed":     func(s *saboteur) { s.restore = func(r *hypervisors.RestoreRequest) { r.Owe = nil } },
	"ignores exclusions":  func(s *saboteur) { s.freeze = func(r *hypervisors.FreezeRequest) { r.Exclude = nil } },
	"ignores quiesce":     func(s *saboteur) { s.freeze = func(r *hypervisors.FreezeRequest) { r.Quiesce = "never" } },
	"ignores Since":       func(s *saboteur) { s.freeze = func(r *hypervisors.FreezeRequest) { r.Since = "" } },
	"ignores Track":       func(s *saboteur) { s.freeze = func(r *hypervisors.FreezeRequest) { r.Track = false } },
	"always tracks":       func(s *saboteur) { s.freeze = func(r *hypervisors.FreezeRequest) { r.Track = true } },
	"other tags":          func(s *saboteur) { s.freeze = func(r *hypervisors.FreezeRequest) { r.Tag = "x" + r.Tag[1:] } },
	"promises too much":   func(s *saboteur) { s.frozen = func(i *hypervisors.FrozenInfo) { i.Consistency = "filesystem" } },
	"skips silently":      func(s *saboteur) { s.frozen = func(i *hypervisors.FrozenInfo) { i.Skipped = nil } },
	"gives no documents":  func(s *saboteur) { s.frozen = func(i *hypervisors.FrozenInfo) { i.Documents = nil } },
	"gives no reason":     func(s *saboteur) { s.frozen = dropReasons },
	"keeps MACs":          func(s *saboteur) { s.restore = func(r *hypervisors.RestoreRequest) { r.KeepMACs = true } },
	"wrong order":         func(s *saboteur) { s.restore = reverseDisks },
	"starts restored VMs": func(s *saboteur) { s.finish = func(vm *hypervisors.VM) { vm.Power = hypervisors.PowerOn } },
	"keeps too much":      func(s *saboteur) { s.keep = func(string) string { return "cairn-" } },
	"cleans up nothing":   func(s *saboteur) { s.cleanUp = func(hypervisors.Owed) error { return nil } },
	"hides a VM":          func(s *saboteur) { s.vms = func(v []hypervisors.VM) []hypervisors.VM { return v[1:] } },
	"vague errors":        func(s *saboteur) { s.vague = true },
}

func dropReasons(i *hypervisors.FrozenInfo) {
	for n := range i.Disks {
		i.Disks[n].FullReason = ""
	}
}

func reverseDisks(r *hypervisors.RestoreRequest) {
	if n := len(r.Disks); n > 1 {
		r.Disks = []hypervisors.RestoreDisk{r.Disks[n-1], r.Disks[0]}
	}
}

const sabotageEnv = "MEMPLATFORM_SABOTAGE"

// sabotage gives a driver the flaw that the environment names.
func sabotage(d hypervisors.Driver) hypervisors.Driver {
	s := &saboteur{Driver: d}
	if flaw := flaws[os.Getenv(sabotageEnv)]; flaw != nil {
		flaw(s)
	}
	return s
}

// TestSuiteFindsFlaws runs the conformance suite against drivers with a flaw each: it must fail.
func TestSuiteFindsFlaws(t *testing.T) {
	if os.Getenv(sabotageEnv) != "" {
		t.Skip("this is the suite with a flaw")
	}
	for name := range flaws {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConformance$/^agent$", "-test.failfast")
			cmd.Env = append(os.Environ(), sabotageEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("the suite passes")
			}
			if !strings.Contains(string(out), "--- FAIL: TestConformance/agent/") || strings.Contains(string(out), "panic:") {
				t.Errorf("the suite does not fail properly: %v\n%s", err, out)
			}
		})
	}
}
