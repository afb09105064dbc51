package storage

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestManyImagesAreOpen opens more than the 100 that QEMU's NBD server takes unless it is told otherwise.
func TestManyImagesAreOpen(t *testing.T) {
	s := start(t)
	v := newVM(t, s, "a", Cow)
	v.write('x', 3)
	for i := range 110 {
		m, err := s.OpenVolume(t.Context(), "a-v1")
		if err != nil {
			t.Fatalf("image %d: %v", i+1, err)
		}
		p := make([]byte, 16)
		if _, err := m.ReadAt(p, 3*block); err != nil || !bytes.Equal(p, v.want[3*block:3*block+16]) {
			t.Fatalf("image %d: %v", i+1, err)
		}
	}
}

// TestAJobThatIsHeldUp has more changes of status than anybody has looked at.
func TestAJobThatIsHeldUp(t *testing.T) {
	m := &monitor{gone: make(chan struct{}), watched: map[string]*job{}}
	j := m.watch("1")
	for range 1000 {
		m.tell("1", "paused")
		m.tell("1", "running")
	}
	m.tell("1", "ready")
	m.tell("2", "concluded") // nobody watches that one
	if err := j.until(t.Context(), "ready"); err != nil {
		t.Error(err)
	}
	m.tell("1", "concluded")
	if err := j.until(t.Context(), "concluded"); err != nil {
		t.Error(err)
	}
	close(m.gone)
	if err := m.watch("3").until(t.Context(), "ready"); err == nil {
		t.Error("a job is ready although the daemon is gone")
	}
}

// TestTheDaemonDoesNotWaitForClients: in a socket that blocks, a thread that was woken for a client which another one has got waits for
// the next, and with it all that the daemon does.
func TestTheDaemonDoesNotWaitForClients(t *testing.T) {
	s := start(t)
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/3", s.daemon.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	for line := range strings.Lines(string(p)) {
		if n, _ := fmt.Sscanf(line, "flags: %o", &flags); n == 1 {
			break
		}
	}
	if flags&syscall.O_NONBLOCK == 0 {
		t.Errorf("the daemon's socket blocks: %s", p)
	}
}
