package imageiotransport

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
)

// BenchmarkRead reads a disk in segments of 1 MiB by eight goroutines, as a transfer does, from the simulator's daemon on the same machine.
func BenchmarkRead(b *testing.B) {
	dir := nbdtest.Certificates(b)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		b.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		b.Fatal(err)
	}
	s := newSim(b, cert, string(pem))
	for i := range int64(size / block) {
		s.fill(byte(i), i)
	}
	d := openSource(b, Options{}, export(s))
	b.SetBytes(12 * mib)
	for b.Loop() {
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				p := make([]byte, mib)
				for off := worker * mib; off < 12*mib; off += 8 * mib {
					if _, err := d.ReadAt(p, int64(off)); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
}
