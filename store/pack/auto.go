package pack

import (
	"runtime"
	"sync"
	"time"
)

const (
	autoFrames = 64   // frames between two choices
	autoToS2   = 0.60 // of all processors' time zstd takes: more is the bottleneck, given hashing and sealing beside it
	autoToZstd = 0.35 // of all processors' time zstd would take: less leaves them idle
	// autoZstdCost is nanoseconds a byte, until it has been measured here.
	autoZstdCost = 1e9 / 217e6
)

// auto chooses zstd while something else is slower than it, and S2 while the processors are.
type auto struct {
	cores float64

	mu    sync.Mutex
	codec Codec
	cost  float64   // of zstd, nanoseconds a byte
	since time.Time // of what follows
	load  autoLoad
}

// autoLoad is what was compressed between two choices.
type autoLoad struct {
	frames int
	bytes  int64
	busy   time.Duration // summed over goroutines
}

func newAuto() *auto {
	return &auto{cores: float64(runtime.GOMAXPROCS(0)), codec: Zstd, cost: autoZstdCost}
}

func (a *auto) pick() Codec {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.codec
}

// done counts a frame of n bytes that was compressed from start to end, and chooses anew now and then.
func (a *auto) done(codec Codec, n int, start, end time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if codec != a.codec {
		return // begun before the last choice
	}
	if a.load.frames == 0 {
		a.since = start
	}
	a.load.frames++
	a.load.bytes += int64(n)
	a.load.busy += end.Sub(start)
	if a.load.frames < autoFrames {
		return
	}
	if codec == Zstd && a.load.bytes > 0 {
		a.cost += (float64(a.load.busy)/float64(a.load.bytes) - a.cost) / 2
	}
	a.codec = choose(codec, a.load, end.Sub(a.since), a.cores, a.cost)
	a.load = autoLoad{}
}

// choose returns the codec to go on with.
func choose(now Codec, l autoLoad, wall time.Duration, cores, zstdCost float64) Codec {
	all := float64(wall) * cores
	if all <= 0 {
		return now
	}
	if now == Zstd && float64(l.busy)/all > autoToS2 {
		return S2
	}
	if now == S2 && float64(l.bytes)*zstdCost/all < autoToZstd {
		return Zstd
	}
	return now
}
