// Package memory is a blob.Store in memory whose objects a test can alter at will.
//
// It is for tests: it proves nothing about durability. Its invariant: a Clone shares nothing that the one or the
// other changes, so that a thousand damaged repositories cost little more than one.
package memory

import (
	"bytes"
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// Store implements blob.Store.
type Store struct {
	mu      sync.Mutex
	objects map[string][]byte // never changed in place
	locked  bool
	place   string
}

// New returns an empty Store; place tells it apart from others.
func New(place string) *Store { return &Store{objects: map[string][]byte{}, place: "memory:" + place} }

// Clone returns a Store with the same objects.
func (s *Store) Clone() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Store{objects: maps.Clone(s.objects), place: s.place}
}

// Names returns the names under a prefix, sorted.
func (s *Store) Names(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name := range s.objects {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Content returns an object, which must not be changed; nil if there is none.
func (s *Store) Content(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[name]
}

// Set puts an object there, over what there is; nil removes it.
func (s *Store) Set(name string, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p == nil {
		delete(s.objects, name)
		return
	}
	s.objects[name] = p
}

func (s *Store) get(ctx context.Context, op, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.objects[name]
	if !ok {
		return nil, fault.New(fault.NotFound, op, name, "there is no such object")
	}
	return p, nil
}

// ReadAt implements blob.Store.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	object, err := s.get(ctx, "read object", name)
	if err != nil {
		return err
	}
	if off < 0 || off > int64(len(object))-int64(len(p)) {
		return fault.New(fault.Corrupt, "read object", name, "it ends before offset %d", off+int64(len(p)))
	}
	copy(p, object[off:])
	return nil
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, name string) (blob.Info, error) {
	p, err := s.get(ctx, "look at object", name)
	return blob.Info{Name: name, Size: int64(len(p))}, err
}

// List implements blob.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for _, name := range s.Names(prefix) {
			info, err := s.Stat(ctx, name)
			if fault.KindOf(err) == fault.NotFound {
				continue
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(blob.Info{}, err)
		}
	}
}

// Rename implements blob.Store.
func (s *Store) Rename(ctx context.Context, from, to string) error {
	p, err := s.get(ctx, "rename object", from)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.objects[to]; taken {
		return fault.New(fault.Exists, "rename object", from, "%s is there already", to)
	}
	delete(s.objects, from)
	s.objects[to] = p
	return nil
}

// Delete implements blob.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if _, err := s.get(ctx, "delete object", name); err != nil {
		return err
	}
	s.Set(name, nil)
	return nil
}

// Acquire implements blob.Store.
func (s *Store) Acquire(context.Context) (func() error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked {
		return nil, fault.New(fault.Conflict, "open repository", s.Location(), "in use")
	}
	s.locked = true
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.locked = false
		return nil
	}, nil
}

// Location implements blob.Store.
func (s *Store) Location() string { return s.place }

// Close implements blob.Store.
func (s *Store) Close() error { return nil }

// Create implements blob.Store.
func (s *Store) Create(ctx context.Context, name string) (blob.Writer, error) {
	return &writer{s: s, name: name}, ctx.Err()
}

type writer struct {
	s    *Store
	name string
	buf  bytes.Buffer
}

func (w *writer) Write(p []byte) (int, error) { return w.buf.Write(p) }

func (w *writer) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if _, taken := w.s.objects[w.name]; taken {
		return fault.New(fault.Exists, "commit object", w.name, "it is there already")
	}
	w.s.objects[w.name] = w.buf.Bytes()
	return nil
}

func (w *writer) Abort() error { return nil }
