package store

import (
	"io"
	"testing"
)

// BenchmarkVerify proves one restore point, all of it in whole chunks.
func BenchmarkVerify(b *testing.B) {
	r := benchRepo(b)
	p := benchWrite(b, r, benchDisk())
	cpu := cpuSeconds()
	for b.Loop() {
		if _, err := r.Verify(b.Context(), p.ID, nil); err != nil {
			b.Fatal(err)
		}
	}
	report(b, cpu, benchBytes)
}

// BenchmarkSweep reads all packs of it.
func BenchmarkSweep(b *testing.B) {
	r := benchRepo(b)
	benchWrite(b, r, benchDisk())
	cpu := cpuSeconds()
	for b.Loop() {
		if _, err := r.Sweep(b.Context(), SweepOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	report(b, cpu, benchBytes)
}

// BenchmarkStream restores it to nowhere.
func BenchmarkStream(b *testing.B) {
	r := benchRepo(b)
	p := benchWrite(b, r, benchDisk())
	cpu := cpuSeconds()
	for b.Loop() {
		i, err := r.OpenImage(b.Context(), p.Images[0].Ref)
		if err != nil {
			b.Fatal(err)
		}
		err = i.Stream(b.Context(), 2, func(_ int64, p []byte) error {
			_, err := io.Discard.Write(p)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		i.Close()
	}
	report(b, cpu, benchBytes)
}
