package remote

import (
	"crypto/x509"
	"encoding/pem"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/store"
)

// TestMoverMemory has a process of its own write a disk that is larger than what a mover may take, by eight workers.
func TestMoverMemory(t *testing.T) {
	const limit = 512 // MiB
	g := newRig(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	size := 640
	if os.Getenv("CAIRN_SOAK") != "" {
		size = 16 << 10
	}
	s := g.begin()
	cmd := exec.Command(os.Args[0], "-test.run=^TestMemoryProcess$", "-test.v")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_MEMORY="+g.addr, "CAIRN_TEST_CA="+ca, "CAIRN_TEST_MIB="+strconv.Itoa(size),
		"CAIRN_TEST_TICKET="+g.desk.issue(Access{Session: s, Image: "sda"}))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, rest, ok := strings.Cut(string(out), "peak MiB ")
	peak, err := strconv.Atoi(strings.Fields(rest + " x")[0])
	if !ok || err != nil {
		t.Fatalf("no figure in %q", out)
	}
	t.Logf("the mover took at most %d MiB for %d MiB of new data", peak, size)
	if peak > limit {
		t.Errorf("the mover took %d MiB, may take %d", peak, limit)
	}
	if err := s.Abort(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestMemoryProcess is the mover of TestMoverMemory.
func TestMemoryProcess(t *testing.T) {
	addr := os.Getenv("CAIRN_TEST_MEMORY")
	if addr == "" {
		t.Skip("no mover is wanted")
	}
	ca, err := os.ReadFile(os.Getenv("CAIRN_TEST_CA"))
	if err != nil {
		t.Fatal(err)
	}
	g := &rig{t: t, roots: x509.NewCertPool()}
	g.roots.AppendCertsFromPEM(ca)
	mib, err := strconv.Atoi(os.Getenv("CAIRN_TEST_MIB"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), g.dial(addr), ClientOptions{Ticket: os.Getenv("CAIRN_TEST_TICKET")})
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(mib) << 20})
	if err != nil {
		t.Fatal(err)
	}
	todo := make(chan int, mib)
	for n := range mib {
		todo <- n
	}
	close(todo)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p := make([]byte, segment)
			for n := range todo {
				x := uint64(n)<<32 | 1
				for at := 0; at < len(p); at += 8 {
					x = bits.RotateLeft64(x*0x9e3779b97f4a7c15, 23) ^ uint64(at)
					for i := range 8 {
						p[at+i] = byte(x >> (8 * i))
					}
				}
				if err := w.Write(t.Context(), int64(n)*segment, p); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if _, err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("peak MiB %d ", int(peak(t)))
}
