package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// explained fails the test unless a failed run says what happened, what it means and what to do.
func explained(t *testing.T, run client.Run) {
	t.Helper()
	e := run.Tasks[0].Error
	t.Logf("the run says: %s | %s | %s", e.Detail, e.Meaning, e.Advice)
	if e.Detail == "" || e.Meaning == "" || e.Advice == "" {
		t.Errorf("run %s ended as %s and does not explain itself: %+v", run.ID, run.State, e)
	}
}

var smallVM = kvmlab.Spec{Name: "fault", Rate: 0.5, Disks: []kvmlab.Disk{{MiB: 64, Fill: 16 << 20}}}

func TestLibvirtdRestartedMidTransfer(t *testing.T) {
	s := newScene(t, kvmlab.Options{Private: true}, smallVM)
	p := s.pauseAt("backup.transfer-middle")
	run, err := s.startBackup(s.vmID, s.repo.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.reached()
	before := s.daemonPID()
	if err := s.lab.Daemon().Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.daemonPID() == before {
		t.Fatal("libvirtd is the same process as before")
	}
	p.release()
	ended := s.ended(run.ID, client.StateSucceeded, client.StateWarning, client.StateFailed)
	t.Logf("run ended as %s", ended.State)
	if ended.State == client.StateFailed {
		explained(t, ended)
	}
	s.wait("leftovers to go", func() bool { return len(s.leftovers()) == 0 })
	s.backup(s.vmID, s.repo.ID, nil)
	s.noLeftovers()
	s.verifyAll()
}

// daemonPID is the process id of the lab's private libvirtd.
func (s *scene) daemonPID() string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.lab.Dir(), "d", "libvirtd.pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func TestQEMUKilledMidTransfer(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	first := s.backup(s.vmID, s.repo.ID, nil)
	s.write(20)
	p := s.pauseAt("backup.transfer-middle")
	run, err := s.startBackup(s.vmID, s.repo.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.reached()
	if err := s.guest.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.release()
	explained(t, s.ended(run.ID, client.StateFailed))
	if points := s.points(); len(points) != 1 || points[0].ID != first.ID {
		t.Errorf("restore points %v, want only the first", points)
	}
	s.guestRuns()
	s.wait("leftovers to go", func() bool { return len(s.leftovers()) == 0 })
	second := s.backup(s.vmID, s.repo.ID, nil)
	if d := second.Disks[0]; d.Mode != "full" || d.FullReason == "" {
		t.Errorf("after QEMU was killed the disk was read as %s (%q); its bitmap is not to be trusted", d.Mode, d.FullReason)
	}
	t.Logf("full because: %s", second.Disks[0].FullReason)
	s.noLeftovers()
	s.verifyAll()
}

func TestConnectionCutMidTransfer(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	p := s.pauseAt("backup.transfer-middle")
	run, err := s.startBackup(s.vmID, s.repo.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.reached()
	s.virsh("domjobabort", s.guest.Name) // ends the export under the mover's hands
	p.release()
	ended := s.ended(run.ID, client.StateFailed)
	explained(t, ended)
	s.backup(s.vmID, s.repo.ID, nil)
	s.noLeftovers()
	s.verifyAll()
}

// tmpfs mounts a file system of a size, for running full.
func tmpfs(t *testing.T, dir string, mib int) (grow func(mib int)) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return func(mib int) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%dm,mode=755", mib)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRepositoryFull(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	dir := filepath.Join(t.TempDir(), "small")
	grow := tmpfs(t, dir, 8)
	small := s.repository("small", filepath.Join(dir, "r"))
	run, err := s.startBackup(s.vmID, small.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := s.ended(run.ID, client.StateFailed)
	explained(t, ended)
	if !strings.Contains(strings.ToLower(ended.Tasks[0].Error.Detail), "no space") {
		t.Errorf("the run failed, but not of a full disk: %s", ended.Tasks[0].Error.Detail)
	}
	if n := len(s.points()); n != 0 {
		t.Errorf("%d restore points of a failed backup", n)
	}
	s.noLeftovers()
	grow(128)
	s.backup(s.vmID, small.ID, nil)
	s.verifyAll()
	s.noLeftovers()
}

func TestWrongRepositoryKey(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	s.backup(s.vmID, s.repo.ID, nil)
	right, err := os.ReadFile(s.repo.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	other := s.repository("other", filepath.Join(t.TempDir(), "other")) // with a key of its own
	wrong, err := os.ReadFile(other.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(right, wrong) {
		t.Fatal("two repositories have the same key")
	}
	s.stop()
	s.replaceKey(wrong)
	s.start()
	run, err := s.startBackup(s.vmID, s.repo.ID, nil)
	var p *problem
	switch {
	case errors.As(err, &p):
		t.Logf("refused: %v", p)
		if p.status < 400 || p.Meaning == "" || p.Advice == "" {
			t.Errorf("the refusal does not explain itself: %v", p)
		}
	case err != nil:
		t.Fatal(err)
	default:
		explained(t, s.ended(run.ID, client.StateFailed))
	}
	s.noLeftovers()
	s.stop()
	s.replaceKey(right)
	s.start()
	s.backup(s.vmID, s.repo.ID, nil)
	if n := len(s.points()); n != 2 {
		t.Errorf("%d restore points, want 2: the one from before is lost", n)
	}
	s.verifyAll()
}

// replaceKey puts other content into the key file of the scene's repository.
func (s *scene) replaceKey(key []byte) {
	s.t.Helper()
	err := os.Remove(s.repo.KeyFile)
	if err == nil {
		err = os.WriteFile(s.repo.KeyFile, key, 0o400)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// smallPool makes a storage pool on a file system of its own.
func (s *scene) smallPool(mib int) (name, dir string, grow func(int)) {
	s.t.Helper()
	dir = filepath.Join(s.lab.Dir(), "small")
	grow = tmpfs(s.t, dir, mib)
	name = filepath.Base(s.lab.Dir()) + "-small"
	s.virsh("pool-define-as", name, "dir", "--target", dir)
	s.virsh("pool-start", name)
	s.t.Cleanup(func() {
		for _, verb := range []string{"pool-destroy", "pool-undefine"} {
			if _, err := s.lab.Virsh(context.Background(), verb, name); err != nil {
				s.t.Error(err)
			}
		}
	})
	return name, dir, grow
}

// A pool that is too small from the start is noticed before anything is made.
func TestPoolTooSmallForRestore(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	point := s.backup(s.vmID, s.repo.ID, nil)
	pool, dir, _ := s.smallPool(4)
	name := s.guest.Name + "-full"
	_, err := s.startRestore(map[string]any{"restore_point": point.ID, "mode": "new", "name": name, "datastore": pool})
	refused(t, "pool too small", err, 409, "conflict")
	s.nothingRestored(name, dir)
}

// A pool that somebody else fills while the restore writes: the run says so, nothing is left, and it can be repeated.
func TestPoolFullMidRestore(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	point := s.backup(s.vmID, s.repo.ID, nil)
	pool, dir, grow := s.smallPool(48)
	name := s.guest.Name + "-full"
	request := map[string]any{"restore_point": point.ID, "mode": "new", "name": name, "datastore": pool}
	p := s.pauseAt("restore.exports-open")
	run, err := s.startRestore(request)
	if err != nil {
		t.Fatal(err)
	}
	p.reached()
	filler := filepath.Join(dir, "filler")
	if err := exec.CommandContext(t.Context(), "dd", "if=/dev/zero", "of="+filler, "bs=64k").Run(); err == nil {
		t.Fatal("the pool did not run full")
	}
	p.release()
	ended := s.ended(run.ID, client.StateFailed)
	explained(t, ended)
	if !strings.Contains(strings.ToLower(ended.Tasks[0].Error.Detail), "no space") {
		t.Errorf("the run failed, but not of a full pool: %s", ended.Tasks[0].Error.Detail)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.nothingRestored(name, dir)
	grow(128)
	s.restore(request)
	s.remove(name)
}

func (s *scene) nothingRestored(name, dir string) {
	s.t.Helper()
	if _, err := s.lab.Find(s.t.Context(), name); err == nil {
		s.t.Errorf("VM %s exists after a failed restore", name)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		s.t.Errorf("left in the pool: %v", left)
	}
	s.noLeftovers()
}
