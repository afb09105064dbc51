package pattern

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// disk is a Device that remembers every write in order, so that a test can look at any instant.
type disk struct {
	data []byte
	log  *[]write
	me   int
}

type write struct {
	disk int
	off  int64
	data []byte
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.data[off:]), nil }

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	*d.log = append(*d.log, write{d.me, off, append([]byte(nil), p...)})
	return copy(d.data[off:], p), nil
}
func (d *disk) Size() int64 { return int64(len(d.data)) }
func (d *disk) Sync() error { return nil }

func newDisks(sizes ...int) ([]Device, *[]write) {
	log := new([]write)
	var out []Device
	for i, n := range sizes {
		out = append(out, &disk{data: make([]byte, n), log: log, me: i})
	}
	return out, log
}

const area = 1 << 20

// TestEveryInstantIsAccepted replays every prefix of the writes, the last one torn at a random block.
func TestEveryInstantIsAccepted(t *testing.T) {
	seed := uint64(20261121)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	devs, log := newDisks(4<<20, 2<<20)
	w, err := Format(ID{1, 2, 3}, area, devs...)
	if err != nil {
		t.Fatal(err)
	}
	formatted := len(*log)
	for range 40 {
		if err := w.WriteRound(); err != nil {
			t.Fatal(err)
		}
	}
	at, _ := newDisks(4<<20, 2<<20)
	for i, wr := range *log {
		if i >= formatted {
			torn := rng.IntN(len(wr.data)/BlockBytes+1) * BlockBytes
			copy(at[wr.disk].(*disk).data[wr.off:], wr.data[:torn])
			if _, err := Check(at...); err != nil {
				t.Fatalf("write %d torn at %d: %v", i, torn, err)
			}
		}
		copy(at[wr.disk].(*disk).data[wr.off:], wr.data)
	}
	rep, err := Check(at[1], at[0])
	if err != nil || rep.Round != 40 || rep.Disks != 2 {
		t.Errorf("Check = %+v, %v; want round 40 on 2 disks", rep, err)
	}
}

func TestDamageIsFound(t *testing.T) {
	tests := []struct {
		name   string
		damage func(devs []Device, log []write)
		want   string
	}{
		{"one bit", func(d []Device, log []write) {
			flip(d, log[len(log)-4].disk, log[len(log)-4].off+100)
		}, "checksum"},
		{"an older block", func(d []Device, log []write) { lose(d, log) }, "want round"},
		{"zeros", func(d []Device, log []write) {
			w := log[len(log)-4]
			clear(d[w.disk].(*disk).data[w.off : w.off+BlockBytes])
		}, "zeros, want round"},
		{"one disk older", func(d []Device, log []write) {
			data := d[0].(*disk).data
			clear(data)
			for _, w := range log[:len(log)/2] {
				if w.disk == 0 {
					copy(data[w.off:], w.data)
				}
			}
		}, "not frozen at one instant"},
		{"disks exchanged", func(d []Device, log []write) {
			a, b := d[0].(*disk), d[1].(*disk)
			copy(b.data, a.data)
		}, "twice"},
		{"something where nothing was written", func(d []Device, log []write) {
			data := d[0].(*disk).data
			l, _ := NewLayout(int64(len(data)), area)
			for run := range l.runs() {
				if off := l.offset(run); data[off] == 0 {
					data[off+7] = 1
					return
				}
			}
			panic("no free run")
		}, "no block of the pattern"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			devs, log := newDisks(8<<20, 8<<20)
			w, err := Format(ID{9}, area, devs...)
			if err != nil {
				t.Fatal(err)
			}
			for range 12 {
				if err := w.WriteRound(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Check(devs...); err != nil {
				t.Fatalf("before the damage: %v", err)
			}
			tt.damage(devs, *log)
			if _, err := Check(devs...); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func flip(d []Device, n int, off int64) { d[n].(*disk).data[off] ^= 1 }

// lose puts the state before a round back to a run that the round wrote over.
func lose(d []Device, log []write) {
	old := map[[2]int64][]byte{}
	for _, w := range log {
		k := [2]int64{int64(w.disk), w.off}
		if before, ok := old[k]; ok && w.off >= superBytes {
			copy(d[w.disk].(*disk).data[w.off:], before)
			return
		}
		old[k] = w.data
	}
	panic("no run was written twice")
}

func TestOpenContinues(t *testing.T) {
	devs, _ := newDisks(4<<20, 4<<20)
	if _, err := Open(devs...); !errors.Is(err, ErrBlank) {
		t.Fatalf("Open of blank disks = %v, want ErrBlank", err)
	}
	w, err := Format(ID{5}, area, devs...)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := w.WriteRound(); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(devs[1], devs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := again.WriteRound(); err != nil {
		t.Fatal(err)
	}
	if rep, err := Check(devs...); err != nil || rep.Round != 4 {
		t.Errorf("Check = %+v, %v; want round 4", rep, err)
	}
}
