package pack

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

// TestAutoFollowsTheBottleneck plays loads against the choice: frames of 256 KiB on two processors, compressed by
// zstd in 1 ms, by S2 in 0.4 ms, by two goroutines that wait outside for a given time after each.
func TestAutoFollowsTheBottleneck(t *testing.T) {
	a := newAuto()
	a.cores = 2
	now := time.Unix(0, 0)
	play := func(frames int, wait time.Duration) Codec {
		for range frames / 2 {
			codec := a.pick()
			took := time.Millisecond
			if codec == S2 {
				took = 400 * time.Microsecond
			}
			for range 2 {
				a.done(codec, 256<<10, now, now.Add(took))
			}
			now = now.Add(took + wait)
		}
		return a.pick()
	}
	for _, tt := range []struct {
		name string
		wait time.Duration
		want Codec
	}{
		{"a slow source", 20 * time.Millisecond, Zstd},
		{"nothing to wait for", 100 * time.Microsecond, S2},
		{"still nothing", 100 * time.Microsecond, S2},
		{"in between: it stays", 1500 * time.Microsecond, S2},
		{"a slow network", 8 * time.Millisecond, Zstd},
		{"in between: it stays", time.Millisecond, Zstd},
		{"a fast one again", 0, S2},
	} {
		if got := play(4*autoFrames, tt.wait); got != tt.want {
			t.Errorf("%s: codec %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestCodecs(t *testing.T) {
	text := bytes.Repeat([]byte("the same words again and again, "), 4096)
	noise := make([]byte, 128<<10)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	reader, err := NewCoder(Off)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, tt := range []struct {
		name string
		want Codec // of what shrinks
	}{{"", Zstd}, {"standard", Zstd}, {"high", Zstd}, {"fast", S2}, {"none", None}, {"auto", Zstd}} {
		how, err := ParseCompression(tt.name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := NewCoder(how)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, in := range []struct {
			plain []byte
			want  Codec
		}{{text, tt.want}, {noise, None}, {nil, None}} {
			out, got, err := c.Encode(make([]byte, 0, 1<<20), make([]byte, 0, 1<<20), in.plain)
			if err != nil || got != in.want {
				t.Errorf("%q: %d bytes are coded by %d, %v; want %d", tt.name, len(in.plain), got, err, in.want)
				continue
			}
			if in.want != None && len(out) > len(in.plain)/2 {
				t.Errorf("%q: %d bytes of %d", tt.name, len(out), len(in.plain))
			}
			back, err := reader.Decode(nil, out, got, len(in.plain))
			if err != nil || !bytes.Equal(back, in.plain) {
				t.Errorf("%q: what any reader decodes differs, %v", tt.name, err)
			}
		}
	}
	for _, name := range []string{"gzip", "zstd", "HIGH"} {
		if _, err := ParseCompression(name); err == nil {
			t.Errorf("%q is a compression", name)
		}
	}
}

// TestAutoSwitchesWhileCompressing drives a Coder as fast as it goes: the processors are the bottleneck.
func TestAutoSwitchesWhileCompressing(t *testing.T) {
	c, err := NewCoder(Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.auto.cores = 1
	rnd := rand.New(rand.NewPCG(3, 4))
	plain := make([]byte, 256<<10)
	words := []string{"unit ", "mount ", "service ", "target ", "wanted-by ", "after ", "exec-start "}
	for at := 0; at < len(plain); {
		at += copy(plain[at:], words[rnd.IntN(len(words))])
	}
	seen := map[Codec]int{}
	dst, scratch := make([]byte, 0, 1<<20), make([]byte, 0, 1<<20+decodeSlack)
	for range 3 * autoFrames {
		_, codec, err := c.Encode(dst, scratch, plain)
		if err != nil {
			t.Fatal(err)
		}
		seen[codec]++
	}
	if seen[Zstd] != autoFrames || seen[S2] != 2*autoFrames {
		t.Errorf("frames by codec: %v", seen)
	}
}
