package storage

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
)

// monitor speaks QMP with the daemon.
type monitor struct {
	nc   net.Conn
	gone chan struct{} // closed when the daemon hangs up

	mu      sync.Mutex
	next    int
	waiting map[int]chan reply
	watched map[string]*job // jobs and exports whose end somebody wants to know
}

type reply struct {
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	} `json:"data"`
}

var errDaemonGone = errors.New("the storage daemon is gone")

// newMonitor takes a connection on which the daemon has not said anything yet.
func newMonitor(ctx context.Context, nc net.Conn) (*monitor, error) {
	m := &monitor{nc: nc, gone: make(chan struct{}), waiting: map[int]chan reply{}, watched: map[string]*job{}}
	go m.listen()
	if err := m.do(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = nc.Close()
		<-m.gone
		return nil, err
	}
	return m, nil
}

// listen reads until the connection ends. The greeting is a message that nobody waits for.
func (m *monitor) listen() {
	defer close(m.gone)
	dec := json.NewDecoder(bufio.NewReader(m.nc))
	for {
		var r reply
		if dec.Decode(&r) != nil {
			return
		}
		m.mu.Lock()
		switch {
		case r.ID != nil:
			if c := m.waiting[*r.ID]; c != nil {
				delete(m.waiting, *r.ID)
				c <- r
			}
		case r.Event == "JOB_STATUS_CHANGE":
			m.tell(r.Data.ID, r.Data.Status)
		case r.Event == "BLOCK_EXPORT_DELETED":
			m.tell(r.Data.ID, exportDeleted)
		}
		m.mu.Unlock()
	}
}

// tell tells whoever watches something; m.mu is held.
func (m *monitor) tell(id, status string) {
	if j := m.watched[id]; j != nil {
		j.note(status)
	}
}

// exportDeleted is what becomes of an export, beside the statuses of jobs.
const exportDeleted = "deleted"

func (m *monitor) close() {
	_ = m.nc.Close()
	<-m.gone
}

type object = map[string]any

// do runs a command; out, if not nil, takes what it returns.
func (m *monitor) do(ctx context.Context, command string, arguments object, out any) error {
	c := make(chan reply, 1)
	m.mu.Lock()
	m.next++
	id := m.next
	m.waiting[id] = c
	msg := object{"execute": command, "id": id}
	if arguments != nil {
		msg["arguments"] = arguments
	}
	err := json.NewEncoder(m.nc).Encode(msg)
	m.mu.Unlock()
	if err != nil {
		return fault.Wrap(fault.Transient, command, "", errDaemonGone)
	}
	select {
	case r := <-c:
		return r.read(command, out)
	case <-ctx.Done():
		return ctx.Err()
	case <-m.gone:
	}
	select {
	case r := <-c: // the last thing that it said
		return r.read(command, out)
	default:
		return fault.Wrap(fault.Transient, command, "", errDaemonGone)
	}
}

func (r reply) read(command string, out any) error {
	if r.Error != nil {
		return fault.New(fault.Internal, command, "", "%s: %s", r.Error.Class, r.Error.Desc)
	}
	if out != nil {
		return json.Unmarshal(r.Return, out)
	}
	return nil
}

// job starts a job by a command and returns its statuses as they change.
func (m *monitor) job(ctx context.Context, id, command string, arguments object) (*job, error) {
	j := m.watch(id)
	if err := m.do(ctx, command, arguments, nil); err != nil {
		m.forget(id)
		return nil, err
	}
	return j, nil
}

// watch must be called before the job is started.
func (m *monitor) watch(id string) *job {
	j := &job{id: id, monitor: m, changed: make(chan struct{}, 1), seen: map[string]bool{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watched[id] = j
	return j
}

func (m *monitor) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.watched, id)
}

// job is a job of the daemon's that is not dismissed by itself, or an export that is to go.
type job struct {
	id      string
	monitor *monitor
	changed chan struct{}

	mu sync.Mutex
	// seen are the statuses it has had. A job that is held up by what is done to others changes to and fro without end.
	seen map[string]bool
}

func (j *job) note(status string) {
	j.mu.Lock()
	j.seen[status] = true
	j.mu.Unlock()
	select {
	case j.changed <- struct{}{}:
	default:
	}
}

func (j *job) had(status string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seen[status]
}

// until waits for a status; the job's own end is an error if another one was wanted.
func (j *job) until(ctx context.Context, want string) error {
	for {
		if j.had(want) {
			return nil
		}
		if j.had("concluded") {
			return cmpErr(j.end(ctx), fmt.Errorf("job %s ended before it was %s", j.id, want))
		}
		select {
		case <-j.changed:
		case <-j.monitor.gone:
			return fault.Wrap(fault.Transient, "wait for job", j.id, errDaemonGone)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// finish waits for the end of a job and returns its error.
func (j *job) finish(ctx context.Context) error {
	if err := j.until(ctx, "concluded"); err != nil {
		return err
	}
	return j.end(ctx)
}

// end takes a concluded job off the list.
func (j *job) end(ctx context.Context) error {
	defer j.monitor.forget(j.id)
	var jobs []struct{ ID, Error string }
	if err := j.monitor.do(ctx, "query-jobs", nil, &jobs); err != nil {
		return err
	}
	if err := j.monitor.do(ctx, "job-dismiss", object{"id": j.id}, nil); err != nil {
		return err
	}
	for _, it := range jobs {
		if it.ID == j.id && it.Error != "" {
			return fault.New(fault.Internal, "run job", j.id, "%s", it.Error)
		}
	}
	return nil
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}
