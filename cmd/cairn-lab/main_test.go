package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/lab/kvmlab"
)

func lab(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := Run(t.Context(), args, &out); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return strings.TrimSpace(out.String())
}

func TestUpAndDown(t *testing.T) {
	if !kvmlab.Wanted() {
		t.Skip("needs root, libvirt and QEMU; set CAIRN_LAB=1")
	}
	base, err := os.MkdirTemp("/var/tmp", "cairn-lab-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	dir := "--dir=" + filepath.Join(base, "lab")
	defer func() { _ = Run(t.Context(), []string{"kvm", "down", "--keep-libvirtd", dir}, &bytes.Buffer{}) }()

	name := lab(t, "kvm", "up", dir)
	if !strings.HasPrefix(name, "lab-demo-") || strings.ContainsAny(name, " \n") {
		t.Errorf("up prints %q, want the VM's name and nothing else", name)
	}
	if again := lab(t, "kvm", "up", dir); again != name {
		t.Errorf("a second up prints %q, want %q", again, name)
	}
	lab(t, "kvm", "rate", dir, "--rate=0")
	before := lab(t, "kvm", "hash", dir)
	if again := lab(t, "kvm", "hash", dir); again != before || strings.Count(before, "\n") != 1 {
		t.Errorf("hashes of two disks at rest: %q, then %q", before, again)
	}
	lab(t, "kvm", "write", dir, "--rounds=2")
	if after := lab(t, "kvm", "hash", dir, "--vm="+name); after == before {
		t.Error("the guest wrote two rounds and the disks are as before")
	}
	if out := lab(t, "kvm", "check", dir); !strings.Contains(out, "verified now: ") {
		t.Errorf("check prints %q", out)
	}
	if out := lab(t, "kvm", "status", dir); !strings.HasPrefix(out, name+": running, round ") {
		t.Errorf("status prints %q", out)
	}
	for range 2 {
		lab(t, "kvm", "down", "--keep-libvirtd", dir)
	}
	if out := lab(t, "kvm", "status", dir); !strings.HasPrefix(out, "no lab in ") {
		t.Errorf("status after down prints %q", out)
	}
}

func TestCommandsWithoutALab(t *testing.T) {
	for _, args := range [][]string{{"kvm", "write"}, {"kvm", "check"}, {"kvm", "hash"}, {"kvm", "rate"}} {
		var out bytes.Buffer
		err := Run(t.Context(), append(args, "--dir="+t.TempDir()), &out)
		if err == nil || !strings.Contains(err.Error(), "there is no lab in") {
			t.Errorf("%v without a lab: %v", args, err)
		}
	}
}
