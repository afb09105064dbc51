package kvmlab

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestDeadLabIsRemoved leaves a lab as a test does that was killed while its libvirtd hung.
func TestDeadLabIsRemoved(t *testing.T) {
	if !Wanted() {
		t.Skip("needs root, libvirt and QEMU; set CAIRN_LAB=1")
	}
	ctx := t.Context()
	dead, err := Open(ctx, Options{Private: true})
	if err != nil {
		t.Fatal(err)
	}
	vm, err := dead.Define(ctx, Spec{Name: "dead", Rate: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	qemu, err := vm.PID()
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Daemon().Signal(ctx, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	dead.Leave()
	New(t, Options{Private: true})
	if _, err := os.Stat(dead.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dead.Dir(), err)
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(qemu) + "/cmdline"); err == nil && strings.Contains(string(b), vm.Name) {
		t.Errorf("QEMU of %s still runs", vm.Name)
	}
}
