package kvmlab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
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
	// Another process that opens a lab may have come first, and be at it still.
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	err = poll(ctx, 50*time.Millisecond, dead.Dir()+" to be removed", func() (bool, error) {
		_, err := os.Stat(dead.Dir())
		return errors.Is(err, fs.ErrNotExist), nil
	})
	if err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(qemu) + "/cmdline"); err == nil && strings.Contains(string(b), vm.Name) {
		t.Errorf("QEMU of %s still runs", vm.Name)
	}
}
