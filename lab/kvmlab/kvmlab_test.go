package kvmlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestGuestWritesAndChecks(t *testing.T) {
	l := New(t, Options{})
	ctx := t.Context()
	vm, err := l.Define(ctx, Spec{Name: "writer", Rate: -1, Disks: []Disk{{MiB: 64, Fill: 4 << 20}, {MiB: 32, Raw: true}, {MiB: 1, Kind: CDROM}, {MiB: 8, Kind: Unused}}})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := vm.Write(ctx, 5)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("five rounds written %v after the start", time.Since(began).Round(time.Millisecond))
	if st.Round != 5 || len(st.Boot) != 0 {
		t.Errorf("after 5 rounds on blank disks: round %d, boot %v", st.Round, st.Boot)
	}
	before, err := vm.Hashes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if st, err = vm.Write(ctx, 1); err != nil {
		t.Fatal(err)
	}
	after, err := vm.Hashes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for target, same := range map[string]bool{"vda": false, "vdb": false, "sda": true, "vdc": true} {
		if got := before[target] == after[target]; got != same || after[target] == "" {
			t.Errorf("%s: same after a round = %v, want %v (%s)", target, got, same, after[target])
		}
	}
	if st, err = vm.Check(ctx); err != nil || len(st.Now) != 1 || st.Now[0].Disks != 2 || st.Now[0].Round != 6 {
		t.Errorf("Check = %+v, %v; want round 6 on two disks", st, err)
	}
	if err := vm.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if st, err = vm.Status(ctx); err != nil || len(st.Boot) != 1 || st.Boot[0].Round != 6 {
		t.Errorf("after a crash: %+v, %v; want round 6 verified", st, err)
	}
	if _, err := vm.WaitSerial(ctx, regexp.MustCompile(`CAIRN-GUEST verified .*round=6 `)); err != nil {
		t.Error(err)
	}
}

func TestGuestRefusesDamagedDisk(t *testing.T) {
	l := New(t, Options{})
	ctx := t.Context()
	vm, err := l.Run(ctx, Spec{Name: "damaged", Rate: -1, Disks: []Disk{{MiB: 64, Raw: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Write(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if err := vm.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	disks, err := vm.Disks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(disks["vda"])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), "CAIRNBLK")
	b[at+1000] ^= 1
	if err := os.WriteFile(disks["vda"], b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Status(ctx); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("Status of a guest with a damaged disk = %v, want a checksum error", err)
	}
	if _, err := vm.Write(ctx, 1); err == nil {
		t.Error("the guest wrote to a damaged disk")
	}
}

func TestAgentFreezesFileSystem(t *testing.T) {
	l := New(t, Options{})
	ctx := t.Context()
	vm, err := l.Run(ctx, Spec{Name: "agent", Agent: true, Rate: 5, Disks: []Disk{{MiB: 64, Kind: FileSystem, Raw: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.WaitAgent(ctx); err != nil {
		t.Fatal(err)
	}
	dirty := func() bool {
		t.Helper()
		var needs bool
		err := vm.Paused(ctx, func() error {
			disks, err := vm.Disks(ctx)
			if err != nil {
				return err
			}
			f, err := os.Open(disks["vda"])
			if err != nil {
				return err
			}
			defer f.Close()
			needs, err = NeedsRecovery(f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return needs
	}
	if !dirty() {
		t.Error("the file system of a running guest is clean")
	}
	if _, err := l.Virsh(ctx, "domfsfreeze", vm.Name); err != nil {
		t.Fatal(err)
	}
	if dirty() {
		t.Error("the file system is not clean although the agent froze it")
	}
	if _, err := l.Virsh(ctx, "domfsthaw", vm.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.WaitSerial(ctx, regexp.MustCompile(`CAIRN-GUEST hook thaw`)); err != nil {
		t.Error(err)
	}
	if st, err := vm.Check(ctx); err != nil {
		t.Errorf("Check = %+v, %v", st, err)
	}
}

func TestUEFIGuestShutsDownByItsButton(t *testing.T) {
	l := New(t, Options{})
	ctx := t.Context()
	vm, err := l.Run(ctx, Spec{Name: "uefi", UEFI: true, NIC: true})
	if err != nil {
		t.Fatal(err)
	}
	if xml, err := vm.XML(ctx); err != nil || !strings.Contains(xml, "<nvram") {
		t.Errorf("no NVRAM in the description (%v):\n%s", err, xml)
	}
	if _, err := l.Virsh(ctx, "shutdown", vm.Name, "--mode", "acpi"); err != nil {
		t.Fatal(err)
	}
	if err := vm.WaitState(ctx, "shut off"); err != nil {
		t.Error(err)
	}
}

func TestPrivateLibvirtdDiesAlone(t *testing.T) {
	l := New(t, Options{Private: true})
	ctx := t.Context()
	vm, err := l.Run(ctx, Spec{Name: "private", Rate: -1})
	if err != nil {
		t.Fatal(err)
	}
	before, err := vm.PID()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := virsh(ctx, SystemURI, "list", "--all", "--name"); err == nil && strings.Contains(out, vm.Name) {
		t.Errorf("the machine's own libvirtd knows %s", vm.Name)
	}
	if err := l.Daemon().Signal(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.State(ctx); err == nil {
		t.Error("virsh works without its libvirtd")
	}
	if err := l.Daemon().Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Write(ctx, 2); err != nil {
		t.Error(err)
	}
	if after, err := vm.PID(); err != nil || after != before {
		t.Errorf("QEMU is %d after the restart (%v), was %d", after, err, before)
	}
}

// TestEndedProcessesVanish ends QEMU and libvirtd and looks whether somebody fetches their exit status, which libvirt
// waits for; also that of a QEMU that was started before its libvirtd was killed.
func TestEndedProcessesVanish(t *testing.T) {
	l := New(t, Options{Private: true})
	ctx := t.Context()
	vm, err := l.Define(ctx, Spec{Name: "ended", Rate: -1})
	if err != nil {
		t.Fatal(err)
	}
	start := func() int {
		t.Helper()
		began := time.Now()
		if err := vm.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("started in %v", time.Since(began).Round(time.Millisecond))
		pid, err := vm.PID()
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	vanished := func(pid int, what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err := poll(ctx, 10*time.Millisecond, what+" to vanish", func() (bool, error) {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if errors.Is(err, fs.ErrNotExist) {
				return true, nil
			}
			return false, fmt.Errorf("it is still there: %s (%w)", stat, err)
		})
		if err != nil {
			t.Error(err)
		}
	}
	destroy := func(pid int) {
		t.Helper()
		began := time.Now()
		_, err := l.Virsh(ctx, "destroy", vm.Name)
		if err != nil && !strings.Contains(err.Error(), "domain is not running") { // a new libvirtd may end what it finds
			t.Fatal(err)
		}
		t.Logf("destroyed in %v", time.Since(began).Round(time.Millisecond))
		vanished(pid, "QEMU")
	}

	destroy(start())
	qemu, daemon := start(), l.Daemon().pid("libvirtd")
	if err := l.Daemon().Signal(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	vanished(daemon, "libvirtd")
	if err := l.Daemon().Start(ctx); err != nil {
		t.Fatal(err)
	}
	destroy(qemu)
	ended := map[string]int{"virtlogd": l.Daemon().pid("virtlogd"), "libvirtd": l.Daemon().pid("libvirtd")}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, pid := range ended {
		vanished(pid, name)
	}
}
