package file

import (
	"errors"
	"sync"
)

// maxOpen bounds the files kept open for reading.
const maxOpen = 64

// readers keeps recently read files open: a restore reads the same few packs thousands of times.
type readers struct {
	fs   FS
	mu   sync.Mutex
	open map[string]*handle
	tick uint64
}

type handle struct {
	f    File
	refs int
	used uint64
	gone bool // no longer in the map; the last user closes it
}

func (r *readers) readAt(name string, p []byte, off int64) (int, error) {
	h, err := r.get(name)
	if err != nil {
		return 0, err
	}
	n, err := h.f.ReadAt(p, off)
	return n, errors.Join(err, r.put(h))
}

func (r *readers) get(name string) (*handle, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick++
	if h := r.open[name]; h != nil {
		h.refs++
		h.used = r.tick
		return h, nil
	}
	f, err := r.fs.Open(name)
	if err != nil {
		return nil, err
	}
	if r.open == nil {
		r.open = map[string]*handle{}
	}
	if len(r.open) >= maxOpen {
		r.evict()
	}
	h := &handle{f: f, refs: 1, used: r.tick}
	r.open[name] = h
	return h, nil
}

// evict drops the file not used for longest; it closes at once if nobody reads it.
func (r *readers) evict() {
	var oldest string
	for name, h := range r.open {
		if oldest == "" || h.used < r.open[oldest].used {
			oldest = name
		}
	}
	r.drop(oldest)
}

func (r *readers) drop(name string) {
	h := r.open[name]
	if h == nil {
		return
	}
	delete(r.open, name)
	h.gone = true
	if h.refs == 0 {
		_ = h.f.Close()
	}
}

func (r *readers) put(h *handle) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.refs--
	if h.gone && h.refs == 0 {
		return h.f.Close()
	}
	return nil
}

// forget closes a file that is about to be moved or removed.
func (r *readers) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(name)
}

func (r *readers) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.open {
		r.drop(name)
	}
	return nil
}
