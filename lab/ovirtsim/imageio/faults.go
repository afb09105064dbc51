package imageio

import (
	"net/http"
	"strings"
	"sync/atomic"
)

// Fault goes wrong at requests that match it.
type Fault struct {
	Method string // "" is any
	Path   string // what the path must end with: "/extents", "/checksum"; "" is any
	Skip   int    // so many matching requests go well first
	Times  int    // so many then fail; 0 is all
	// What goes wrong, the first that is set:
	Crash     bool // connections break and what was not flushed is lost, before the request is carried out
	Drop      bool // the connection breaks before the request is carried out
	DropAfter int  // bytes of the answer's body, then the connection breaks
	Forget    bool // the request is carried out, and the connection breaks instead of the answer
	Status    int  // the answer, with the daemon's own text; the request is not carried out
	// Do is called before anything else goes wrong, if not nil.
	Do func()
}

// Injected is a fault that is in place.
type Injected struct {
	fault   Fault
	matched atomic.Int64
	fired   atomic.Int64
	removed atomic.Bool
}

// Fired returns how often the fault came.
func (i *Injected) Fired() int { return int(i.fired.Load()) }

// Remove takes the fault away.
func (i *Injected) Remove() { i.removed.Store(true) }

// Inject puts a fault in place. Of several that match the one that was injected first comes.
func (s *Server) Inject(f Fault) *Injected {
	i := &Injected{fault: f}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, i)
	return i
}

// due returns the fault of a request, nil if it goes well.
func (s *Server) due(r *http.Request) *Injected {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.faults {
		f := i.fault
		if i.removed.Load() || f.Method != "" && f.Method != r.Method || !strings.HasSuffix(r.URL.Path, f.Path) {
			continue
		}
		n := int(i.matched.Add(1)) - f.Skip
		if n <= 0 || f.Times > 0 && n > f.Times {
			continue
		}
		i.fired.Add(1)
		return i
	}
	return nil
}
