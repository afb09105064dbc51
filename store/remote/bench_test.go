package remote

import (
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/store"
)

// peak returns the most memory this process has had, in MiB.
func peak(b testing.TB) float64 {
	b.Helper()
	p, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(p)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	return 0
}

// BenchmarkWrite writes 256 MiB of new data in this process, over loopback, and with the directory mounted. Mover and
// owner share the processors and the memory that is told.
func BenchmarkWrite(b *testing.B) {
	d := make([]byte, 256<<20)
	for _, way := range []string{"local", "wire", "mounted"} {
		b.Run(way, func(b *testing.B) {
			rnd := mathrand.New(mathrand.NewPCG(21, 21))
			b.SetBytes(int64(len(d)))
			for range b.N {
				b.StopTimer()
				for at := 0; at < len(d); at += 8 {
					v := rnd.Uint64()
					for i := range 4 {
						d[at+i], d[at+4+i] = byte(v>>(8*i)), byte(v>>60)
					}
				}
				g := benchRig(b)
				s, err := g.repo.Begin(b.Context(), store.SessionOptions{Series: "vm"})
				if err != nil {
					b.Fatal(err)
				}
				runtime.GC()
				b.StartTimer()
				var ref store.ImageRef
				if way == "local" {
					w, beginErr := s.NewImage(b.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
					if err = beginErr; err == nil {
						err = put(b.Context(), w, d, nil, 4)
					}
					if err == nil {
						ref, err = w.Finish(b.Context())
					}
				} else {
					o := ClientOptions{Ticket: g.desk.issue(Access{Session: s, Image: "sda"})}
					if way == "mounted" {
						o.Files = g.b
					}
					conn := g.dial(g.addr)
					c, openErr := Open(b.Context(), conn, o)
					if openErr != nil {
						b.Fatal(openErr)
					}
					w, beginErr := c.NewImage(b.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
					if err = beginErr; err == nil {
						err = put(b.Context(), w, d, nil, 4)
					}
					if err == nil {
						ref, err = w.Finish(b.Context())
					}
					_ = c.Close()
				}
				if err == nil {
					_, err = s.Publish(b.Context(), store.Manifest{Images: []store.NamedImage{{Name: "sda", Ref: ref}}})
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				g.grpc.Stop()
				if err := g.repo.Close(); err != nil {
					b.Fatal(err)
				}
				if err := os.RemoveAll(filepath.Dir(g.dir)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(peak(b)-float64(len(d)>>20), "MiB-beside-the-disk")
		})
	}
}
