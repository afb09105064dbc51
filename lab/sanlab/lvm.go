package sanlab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// LVM is real lvm2 on files of this machine, which it sees as loop devices. Nothing is activated: the metadata is
// lvm2's, and a machine without device-mapper can make it.
type LVM struct {
	Files   []string // what the devices lie in
	Devices []string // /dev/loopN

	t   testing.TB
	dir string
}

// NewLVM attaches files of the given sizes. The test is skipped without root or lvm2, unless CAIRN_LAB is set.
func NewLVM(t testing.TB, sizes ...int64) *LVM {
	t.Helper()
	require(t, os.Geteuid() == 0, "root")
	for _, name := range []string{"lvm", "losetup"} {
		_, err := exec.LookPath(name)
		require(t, err == nil, name)
	}
	l := &LVM{t: t, dir: t.TempDir()}
	for i, size := range sizes {
		file := filepath.Join(l.dir, fmt.Sprintf("device%d", i))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		l.attach(file)
	}
	l.configure()
	return l
}

// require skips or fails a test that needs something the machine does not have.
func require(t testing.TB, have bool, what string) {
	t.Helper()
	switch {
	case have:
	case os.Getenv("CAIRN_LAB") != "":
		t.Fatal("needs " + what)
	default:
		t.Skip("needs " + what)
	}
}

func (l *LVM) attach(file string) {
	l.t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		l.t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	l.t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			l.t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	l.Files, l.Devices = append(l.Files, file), append(l.Devices, dev)
}

// configure lets lvm2 see these devices and no others, and keep its files in the test's directory.
func (l *LVM) configure() {
	var filter strings.Builder
	for _, d := range l.Devices {
		fmt.Fprintf(&filter, "\"a|^%s$|\",", d)
	}
	conf := fmt.Sprintf(`global { activation=0 use_lvmpolld=0 event_activation=0 locking_dir="%s/lock" }
devices { use_devicesfile=0 hints="none" dir="/dev" global_filter=[%s"r|.*|"] }
backup { backup=0 archive=0 }
`, l.dir, filter.String())
	if err := os.WriteFile(filepath.Join(l.dir, "lvm.conf"), []byte(conf), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// Try runs an LVM command, "lvcreate" with its arguments, and returns what it printed.
func (l *LVM) Try(args ...string) (string, error) {
	var out, problems bytes.Buffer
	cmd := exec.Command("lvm", args...)
	cmd.Env = append(os.Environ(), "LVM_SYSTEM_DIR="+l.dir, "LVM_SUPPRESS_FD_WARNINGS=1")
	cmd.Stdout, cmd.Stderr = &out, &problems
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("lvm %s: %w: %s", strings.Join(args, " "), err, problems.Bytes())
	}
	return out.String(), err
}

// Run is Try for what must work.
func (l *LVM) Run(args ...string) string {
	l.t.Helper()
	out, err := l.Try(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}
