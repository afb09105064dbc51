package images

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
)

// world is a mounted file system on one day. All its writes go through root, which does not follow links out of it.
type world struct {
	root    *os.Root
	dir     string
	rng     *rand.Rand
	machine string
	seed    uint64
	day     int
	content Content
	words   [][]byte
}

// openWorld returns the world of a day; the same arguments make the same decisions about the same files.
func openWorld(dir, machine string, c Content, seed uint64, day int) (*world, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(machine))
	w := &world{
		root: root, dir: dir, machine: machine, seed: seed, day: day, content: c,
		rng: rand.New(rand.NewPCG(seed^h.Sum64(), uint64(day))),
	}
	// One vocabulary for all machines and days of a seed: people write the same language.
	vocabulary := rand.New(rand.NewPCG(seed, 1<<40))
	w.words = make([][]byte, 8192)
	for i := range w.words {
		word := make([]byte, 2+vocabulary.IntN(9))
		for j := range word {
			word[j] = "eeeaaioutnrsldhcmpgbfyvkwxjqz"[vocabulary.IntN(29)]
		}
		w.words[i] = word
	}
	return w, nil
}

func (w *world) close() error { return w.root.Close() }

// between returns a number in [lo, hi).
func (w *world) between(lo, hi int) int { return lo + w.rng.IntN(hi-lo) }

// text returns words, the frequent ones more often; it compresses about as prose does.
func (w *world) text(n int) []byte {
	out := make([]byte, 0, n+16)
	for len(out) < n {
		f := w.rng.Float64()
		out = append(out, w.words[int(f*f*f*float64(len(w.words)))]...)
		if w.rng.IntN(12) == 0 {
			out = append(out, ".\n"...)
		} else {
			out = append(out, ' ')
		}
	}
	return out[:n]
}

// noise returns bytes that do not compress, as media have them.
func (w *world) noise(n int) []byte {
	out := make([]byte, (n+7)/8*8)
	for i := 0; i < len(out); i += 8 {
		v := w.rng.Uint64()
		for j := range 8 {
			out[i+j] = byte(v >> (8 * j))
		}
	}
	return out[:n]
}

// write makes a file, and its folder if it is not there.
func (w *world) write(name string, data []byte) error {
	if err := w.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return w.root.WriteFile(name, data, 0o644)
}

// replace writes a file as package managers and editors do: a new one that takes the old one's name.
func (w *world) replace(name string, data []byte, mode fs.FileMode) error {
	tmp := name + ".dpkg-new"
	if err := w.root.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	return w.root.Rename(tmp, name)
}

// appendTo adds to a file.
func (w *world) appendTo(name string, data []byte) (err error) {
	if err := w.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := w.root.OpenFile(name, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.Write(data)
	return err
}

// names lists a folder in the order of names, which is the same on every machine; none if it is not there.
func (w *world) names(folder string) ([]string, error) {
	entries, err := fs.ReadDir(w.root.FS(), folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, path.Join(folder, e.Name()))
	}
	return out, err
}

// pick returns n of the list, or all of it if it is shorter, in an order of its own.
func (w *world) pick(list []string, n int) []string {
	out := make([]string, 0, n)
	for _, i := range w.rng.Perm(len(list))[:min(n, len(list))] {
		out = append(out, list[i])
	}
	return out
}

// line returns one line of a log.
func (w *world) line(service string) []byte {
	var b bytes.Buffer
	second := w.rng.IntN(86400)
	fmt.Fprintf(&b, "2026-01-%02dT%02d:%02d:%02d.%06d %s %s[%d]: ", w.day%28+1, second/3600, second/60%60, second%60, w.rng.IntN(1e6), w.machine,
		service, w.between(300, 32000))
	fmt.Fprintf(&b, "10.%d.%d.%d request %08x took %d us: ", w.rng.IntN(4), w.rng.IntN(256), w.rng.IntN(256), w.rng.Uint32(), w.rng.IntN(90000))
	b.Write(w.text(w.between(20, 120)))
	b.WriteByte('\n')
	return b.Bytes()
}
