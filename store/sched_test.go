package store

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
)

// sched lets one of several goroutines run at a time, and changes from one to another at the calls of the backend. Which
// one comes next only its random numbers decide, so a run can be had again. A goroutine that waits for a lock that
// another holds is left waiting; what it does when it gets the lock may overlap with the other until their next calls.
type sched struct {
	rnd   *rand.Rand
	event chan struct{} // something parked or ended

	mu      sync.Mutex
	parked  []*waiter
	live    map[int]bool    // tasks that have not ended
	ids     map[string]bool // of their goroutines
	running int             // the task that was let go on last
	dead    bool            // nobody waits any more
	seq     int
	trace   []string
	blocked int // times that a task was found waiting for a lock
}

type waiter struct {
	task, seq int
	what      string
	grant     chan struct{}
}

type taskKey struct{}

func newSched(seed uint64) *sched {
	return &sched{rnd: rand.New(rand.NewPCG(seed, 5)), event: make(chan struct{}, 1), live: map[int]bool{}, ids: map[string]bool{}}
}

// run runs tasks to their end, or until stop answers true before some step.
func (s *sched) run(tasks []func(context.Context), stop func(step int) bool) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for n := range tasks {
		s.live[n] = true
	}
	for n, task := range tasks {
		ctx := context.WithValue(context.Background(), taskKey{}, n)
		wg.Go(func() {
			defer s.end(n)
			s.enlist()
			s.yield(ctx, "begin")
			task(ctx)
		})
	}
	s.assemble(len(tasks))
	for step := 0; ; step++ {
		s.settle()
		s.mu.Lock()
		if len(s.live) == 0 {
			s.mu.Unlock()
			return nil
		}
		if len(s.parked) == 0 {
			s.mu.Unlock()
			select {
			case <-s.event: // it was waiting for something that is no task
				continue
			case <-time.After(time.Minute):
				return fmt.Errorf("all wait for each other:\n%s", stacks())
			}
		}
		if stop(step) {
			s.release()
			s.mu.Unlock()
			return nil
		}
		slices.SortFunc(s.parked, func(a, b *waiter) int { return cmp.Or(cmp.Compare(a.task, b.task), cmp.Compare(a.seq, b.seq)) })
		i := s.rnd.IntN(len(s.parked))
		w := s.parked[i]
		s.parked = slices.Delete(s.parked, i, i+1)
		s.running = w.task
		s.trace = append(s.trace, strconv.Itoa(w.task)+" "+w.what)
		s.mu.Unlock()
		close(w.grant)
	}
}

// assemble waits until all tasks wait for their first turn.
func (s *sched) assemble(n int) {
	for {
		s.mu.Lock()
		here := len(s.parked)
		s.mu.Unlock()
		if here == n {
			return
		}
		<-s.event
	}
}

// release lets everybody go.
func (s *sched) release() {
	s.dead = true
	for _, w := range s.parked {
		close(w.grant)
	}
	s.parked = nil
}

func (s *sched) enlist() {
	var buf [64]byte
	id := goroutineID(buf[:runtime.Stack(buf[:], false)])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[id] = true
}

func (s *sched) end(n int) {
	s.mu.Lock()
	delete(s.live, n)
	s.mu.Unlock()
	s.signal()
}

func (s *sched) signal() {
	select {
	case s.event <- struct{}{}:
	default:
	}
}

// yield waits for the caller's turn. Calls that belong to no task pass.
func (s *sched) yield(ctx context.Context, what string) {
	task, ok := ctx.Value(taskKey{}).(int)
	s.mu.Lock()
	if !ok || s.dead {
		s.mu.Unlock()
		return
	}
	s.seq++
	w := &waiter{task: task, seq: s.seq, what: what, grant: make(chan struct{})}
	s.parked = append(s.parked, w)
	s.mu.Unlock()
	s.signal()
	<-w.grant
}

// settle returns when no task runs: each waits for its turn, or for a lock.
func (s *sched) settle() {
	for {
		waiting, came := s.state()
		if waiting == 0 {
			return
		}
		if !came {
			select {
			case <-s.event:
				continue
			case <-time.After(100 * time.Microsecond): // it may wait for a lock: look
			}
		}
		if s.quiet() {
			s.blocked++
			return
		}
		runtime.Gosched()
	}
}

// state returns how many tasks are not waiting for their turn, and whether the one that ran last is.
func (s *sched) state() (waiting int, came bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	here := map[int]bool{}
	for _, w := range s.parked {
		here[w.task] = true
	}
	for n := range s.live {
		if !here[n] {
			waiting++
		}
	}
	return waiting, here[s.running] || !s.live[s.running]
}

func goroutineID(stack []byte) string {
	fields := bytes.Fields(stack)
	if len(fields) < 2 {
		return ""
	}
	return string(fields[1])
}

func stacks() []byte {
	buf := make([]byte, 256<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return buf[:n]
		}
		buf = make([]byte, 2*len(buf))
	}
}

// quiet looks at the tasks' goroutines and those they have started: all must be waiting.
func (s *sched) quiet() bool {
	all := stacks()
	s.mu.Lock()
	defer s.mu.Unlock()
	for g := range bytes.SplitSeq(all, []byte("\n\n")) {
		mine := s.ids[goroutineID(g)]
		if i := bytes.LastIndex(g, []byte(" in goroutine ")); i >= 0 && !mine {
			mine = s.ids[string(bytes.TrimSpace(bytes.SplitN(g[i+len(" in goroutine "):], []byte("\n"), 2)[0]))]
		}
		if !mine {
			continue
		}
		_, state, _ := bytes.Cut(g, []byte("["))
		if !idle(state) {
			return false
		}
	}
	return true
}

func idle(state []byte) bool {
	for _, name := range []string{"chan ", "select", "sync.", "semacquire"} {
		if bytes.HasPrefix(state, []byte(name)) {
			return true
		}
	}
	return false
}

// turns is a backend at whose calls tasks take turns.
func (s *sched) turns(b blob.Store) blob.Store {
	return &blobtest.Faulty{
		Store: b,
		Do: func(ctx context.Context, c blobtest.Call) error {
			if c.Op != "write" { // nobody else sees it
				s.yield(ctx, c.Op+" "+folderOf(c.Name))
			}
			return nil
		},
		Done: func(ctx context.Context, c blobtest.Call) { s.yield(ctx, "after "+c.Op+" "+folderOf(c.Name)) },
	}
}

func folderOf(name string) string {
	folder, _, _ := strings.Cut(name, "/")
	return folder
}
