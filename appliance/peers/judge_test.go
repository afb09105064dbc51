package peers_test

import (
	"context"
	"fmt"
	"net"
	"net/rpc"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// judge has the in-memory platform on which the managers' processes work, and sees what they do to it. A VM is worked on by
// whoever began last; what another one does to it after that is wrong.
type judge struct {
	platform *memplatform.Platform
	driver   hypervisors.Driver

	mu    sync.Mutex
	at    map[string]work // by VM: who works on it
	made  map[string]int  // by task: how often what it makes came to be
	woken map[string]bool // processes that stood still for longer than the lease
	taken int             // how often a task went on with another process
	late  int             // what woken processes still did to a VM that others work on
	wrong []string        // what must not happen
}

type work struct{ Task, Process string }

// Call is what a manager says about a task.
type Call struct{ Process, Task, VM, Name string }

// Judge is what the processes may call.
type Judge struct{ j *judge }

// newJudge serves a judge on a socket in a directory.
func newJudge(t *testing.T, dir string) *judge {
	t.Helper()
	p, err := memplatform.New(memplatform.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	j := &judge{
		platform: p, driver: p.Driver(), at: map[string]work{}, made: map[string]int{}, woken: map[string]bool{},
	}
	server := rpc.NewServer()
	if err := server.Register(&Judge{j}); err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, judgeSocket))
	if err != nil {
		t.Fatal(err)
	}
	var open conns
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.add(c)
			wg.Go(func() { server.ServeConn(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		open.close()
		wg.Wait()
	})
	return j
}

// Begin is called before a task works on its VM.
func (s *Judge) Begin(c Call, _ *bool) error {
	j := s.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.made[c.Task] > 0 {
		j.wrong = append(j.wrong, fmt.Sprintf("%s begins again, and has made what it makes", c.Task))
	}
	if before := j.at[c.VM]; before.Task == c.Task && before.Process != c.Process {
		j.taken++
	}
	j.at[c.VM] = work{c.Task, c.Process}
	return nil
}

// Step is called for each thing that a task does to its VM.
func (s *Judge) Step(c Call, _ *bool) error {
	j := s.j
	j.mu.Lock()
	defer j.mu.Unlock()
	switch now := j.at[c.VM]; {
	case now == work{c.Task, c.Process}:
	case j.woken[c.Process]:
		j.late++
	default:
		j.wrong = append(j.wrong, fmt.Sprintf("%s of %s works on %s, where %s of %s has begun", c.Task, c.Process, c.VM, now.Task, now.Process))
	}
	return nil
}

// Mark makes a checkpoint on a VM, which is owed.
func (s *Judge) Mark(c Call, _ *bool) error { return s.j.platform.AddCheckpoint(c.VM, c.Name) }

// CleanUp removes what is owed.
func (s *Judge) CleanUp(o hypervisors.Owed, _ *bool) error {
	return s.j.driver.CleanUp(context.Background(), o)
}

// Leftovers lists what the platform has of ours.
func (s *Judge) Leftovers(_ bool, out *[]hypervisors.Owed) (err error) {
	*out, err = s.j.driver.Leftovers(context.Background())
	return err
}

// Made is called when the catalog has taken a task's result, which it does for who has the task, and nobody else.
func (s *Judge) Made(c Call, _ *bool) error {
	j := s.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.made[c.Task]++; j.made[c.Task] > 1 {
		j.wrong = append(j.wrong, fmt.Sprintf("%s was done %d times", c.Task, j.made[c.Task]))
	}
	if now := j.at[c.VM]; now != (work{c.Task, c.Process}) {
		j.wrong = append(j.wrong, fmt.Sprintf("%s was done by %s, but %s of %s has begun on %s", c.Task, c.Process, now.Task, now.Process, c.VM))
	}
	return nil
}

// wakes notes a process that stood still for longer than the lease.
func (j *judge) wakes(process string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.woken[process] = true
}

// conns is connections to be closed.
type conns struct {
	mu   sync.Mutex
	all  []net.Conn
	done bool
}

func (c *conns) add(n net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		_ = n.Close()
		return
	}
	c.all = append(c.all, n)
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	for _, n := range c.all {
		_ = n.Close()
	}
}
