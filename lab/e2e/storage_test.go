package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/internal/loopback"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// nfsServer exports a directory by NFS 4, to everybody as root, on a loopback port which it returns.
func nfsServer(t *testing.T, dir string) int {
	t.Helper()
	port, err := loopback.Port()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	config, log := filepath.Join(home, "ganesha.conf"), &locked.Buffer{}
	text := fmt.Sprintf(`
NFS_CORE_PARAM { NFS_Port = %d; Bind_addr = 127.0.0.1; Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; }
NFSV4 { Graceless = true; RecoveryRoot = %q; Minor_Versions = 1, 2; }
EXPORT { Export_Id = 1; Path = %q; Pseudo = "/repo"; Access_Type = RW; Squash = All_Squash; Anonymous_Uid = 0; Anonymous_Gid = 0;
	SecType = sys; Transports = TCP; FSAL { Name = VFS; } }
`, port, home, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ganesha.nfsd", "-F", "-f", config, "-p", filepath.Join(home, "pid"), "-L", "STDERR", "-N", "NIV_WARN")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { _ = cmd.Wait(); close(gone) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
		if t.Failed() {
			t.Logf("the NFS server's log:\n%s", tail(log.String(), 4000))
		}
	})
	for {
		select {
		case <-gone:
			t.Fatalf("the NFS server ended: %s", log)
		case <-time.After(50 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			c.Close()
			return port
		}
	}
}

// TestMoverVMWithStorage: a Debian mover's VM that is told of the repository's storage mounts it, and neither the disks nor what
// is stored of them goes over the LAN to the manager.
func TestMoverVMWithStorage(t *testing.T) {
	if os.Getenv("CAIRN_SOAK") != "1" {
		t.Skip("makes an image of a whole Debian system and starts it; set CAIRN_SOAK=1")
	}
	s := newScene(t, kvmlab.Options{Private: true}, kvmlab.Spec{Name: "store", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 24, Fill: 8 << 20}}})
	m := s.deployed("m2", kvmlab.MoverImage(t, "mover-debian"), map[string]any{
		"storage": []string{fmt.Sprintf("nfs://10.0.2.2:%d/repo", nfsServer(t, s.repo.Path))}, "memory_bytes": 1 << 30,
	})
	dir := t.TempDir()
	for round, mode := range []string{"full", "incremental"} {
		s.write(10)
		ended, lan := s.backUpFrozen(m, dir, round, nil)
		s.through(ended, "m2", "hotadd")
		point := s.point(ended)
		t.Logf("%s: read %d bytes, stored %d; LAN: %v", mode, point.ReadBytes, point.StoredBytes, lan)
		if got := ended.Tasks[0].Transfers[0].Mode; got != mode || point.StoredBytes < 256<<10 {
			t.Errorf("round %d was %s and stored %d bytes; want %s", round, got, point.StoredBytes, mode)
		}
		if lan.up+lan.down > point.StoredBytes/4 {
			t.Errorf("%d bytes went over the LAN for %d stored", lan.up+lan.down, point.StoredBytes)
		}
		name := fmt.Sprintf("%s-s%d", s.guest.Name, round)
		restored := s.restore(map[string]any{"restore_point": point.ID, "mode": "new", "name": name})
		s.through(restored, "m2", "hotadd")
		for target, raw := range s.restoredDisks(name) {
			sameContent(t, fmt.Sprintf("%s %s", mode, target), raw, frozenFile(dir, round, target))
		}
		s.remove(name)
	}
	s.must("DELETE", "/movers/"+s.movers()["m2"].ID, nil, nil)
	s.noLeftovers()
	s.verifyAll()
}
