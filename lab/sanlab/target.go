package sanlab

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/loopback"
)

// Target is a tgt daemon of this test, which serves LUNs over iSCSI on the loopback.
type Target struct {
	Port int

	t       testing.TB
	control string
	targets int
}

// StartTarget starts tgtd. The test is skipped without root or tgt, unless CAIRN_LAB is set.
func StartTarget(t testing.TB) *Target {
	t.Helper()
	require(t, os.Geteuid() == 0, "root")
	_, err := exec.LookPath("tgtd")
	require(t, err == nil, "tgtd")
	var b [2]byte
	_, _ = rand.Read(b[:])
	s := &Target{t: t, control: strconv.Itoa(1 + int(binary.LittleEndian.Uint16(b[:]))%30000), Port: FreePort(t)}
	cmd := exec.Command("tgtd", "--foreground", "--control-port", s.control, "--iscsi", fmt.Sprintf("portal=127.0.0.1:%d", s.Port))
	var words strings.Builder
	cmd.Stdout, cmd.Stderr = &words, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it ignores SIGTERM while it has targets
		<-ended
		if t.Failed() {
			t.Logf("tgtd: %s", words.String())
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := s.try("--mode", "sys", "--op", "show"); err == nil {
			return s
		}
		select {
		case <-ended:
			t.Fatalf("tgtd ended: %s", words.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatal("tgtd does not answer")
		}
	}
}

// FreePort returns a port of the loopback that nothing listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	port, err := loopback.Port()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func (s *Target) try(args ...string) (string, error) {
	out, err := exec.Command("tgtadm", append([]string{"--control-port", s.control, "--lld", "iscsi"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("tgtadm %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (s *Target) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// Export makes a target with one LUN in a file and returns its name and number. Two targets of the same file and id are
// two paths to one LUN.
func (s *Target) Export(file, id string) (iqn string, tid int) {
	s.t.Helper()
	s.targets++
	iqn = fmt.Sprintf("iqn.2026-01.test.cairn:target%d", s.targets)
	n := strconv.Itoa(s.targets)
	s.run("--mode", "target", "--op", "new", "--tid", n, "--targetname", iqn)
	s.run("--mode", "logicalunit", "--op", "new", "--tid", n, "--lun", "1", "--backing-store", file)
	s.run("--mode", "logicalunit", "--op", "update", "--tid", n, "--lun", "1", "--params", "scsi_id="+id+",scsi_sn="+id)
	s.run("--mode", "target", "--op", "bind", "--tid", n, "--initiator-address", "ALL")
	return iqn, s.targets
}

// CHAP lets nobody log in to a target but by this name and secret.
func (s *Target) CHAP(tid int, user, secret string) {
	s.t.Helper()
	s.run("--mode", "account", "--op", "new", "--user", user, "--password", secret)
	s.run("--mode", "account", "--op", "bind", "--tid", strconv.Itoa(tid), "--user", user)
}

// ReadOnly lets a target's LUN refuse all writes from now on, or accept them again.
func (s *Target) ReadOnly(tid int, refuse bool) {
	s.t.Helper()
	value := "readonly=0"
	if refuse {
		value = "readonly=1"
	}
	s.run("--mode", "logicalunit", "--op", "update", "--tid", strconv.Itoa(tid), "--lun", "1", "--params", value)
}
