// Package kvmlab makes small real virtual machines on libvirt and QEMU for tests, demos and training.
//
// It is no driver: it speaks to libvirt through virsh and knows nothing of backups. VMs boot Debian's cloud kernel,
// taken from its package without installing it, with an initramfs whose only program (lab/kvmlab/guest) writes
// checkable content (lab/kvmlab/pattern) to the VM's disks and answers commands. Its invariant: everything a Lab
// makes lies in its directory or carries its random name, and Close removes all of it, also VMs that others restored
// into the directory.
package kvmlab

import (
	"os"
	"testing"
)

// Wanted says whether tests may use libvirt and QEMU: CAIRN_LAB=1.
func Wanted() bool { return os.Getenv("CAIRN_LAB") == "1" }

// New returns a lab for a test and closes it at the end. Without CAIRN_LAB=1 the test is skipped.
func New(t testing.TB, o Options) *Lab {
	t.Helper()
	if !Wanted() {
		t.Skip("needs root, libvirt and QEMU; set CAIRN_LAB=1")
	}
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}
