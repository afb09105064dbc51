package httpapi

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
)

// keptEvents is how many events a subscriber may lag behind, and how many a broken connection can be resumed over:
// at 20 progress events a second this is three and a half minutes.
const keptEvents = 4096

// Stream passes on what happens to everybody who follows /events, and keeps the last events so that a broken
// connection can be resumed. Publishing never blocks: who reads too slowly is told to read the lists again.
// Ids begin at the start time in microseconds, so that those of an earlier process are recognised as too old.
type Stream struct {
	mu     sync.Mutex
	ring   [keptEvents]streamed
	first  uint64        // id of the oldest event that was ever published here
	next   uint64        // id of the next event
	change chan struct{} // closed and replaced at each event
}

type streamed struct {
	id    uint64
	topic server.Topic
	event server.StreamEvent
}

// NewStream makes an empty stream.
func NewStream() *Stream {
	first := uint64(time.Now().UnixMicro())
	return &Stream{first: first, next: first, change: make(chan struct{})}
}

// PublishRun tells that a run was made or has changed its state. Who waits for a run is woken by nothing else, so it
// is called after each change of a run's state is durable.
func (s *Stream) PublishRun(r RunInfo) {
	s.publish(server.TopicRun, server.StreamEvent{Run: runOf(r)})
}

// PublishTask tells that a task has changed, or its progress.
func (s *Stream) PublishTask(t catalog.Task) {
	s.publish(server.TopicTask, server.StreamEvent{Task: taskOf(t)})
}

// PublishRunEvent tells of a new line in the list of a run.
func (s *Stream) PublishRunEvent(e catalog.Event) {
	s.publish(server.TopicRunEvent, server.StreamEvent{RunEvent: runEventOf(e)})
}

// PublishInventory tells that the inventory of a connection has changed.
func (s *Stream) PublishInventory(connection string) {
	s.publish(server.TopicInventory, server.StreamEvent{ConnectionID: connection})
}

func (s *Stream) publish(topic server.Topic, e server.StreamEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.ID, e.Topic, e.Time = strconv.FormatUint(s.next, 10), string(topic), time.Now().UTC()
	s.ring[s.next%keptEvents] = streamed{id: s.next, topic: topic, event: e}
	s.next++
	close(s.change)
	s.change = make(chan struct{})
}

// position returns where a subscriber starts: behind the event it has seen, or at the end when it has seen none.
// reset is set when what came in between is not known any more.
func (s *Stream) position(seen string) (at uint64, reset bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen == "" {
		return s.next, false
	}
	last, err := strconv.ParseUint(seen, 10, 64)
	if err != nil || last >= s.next || last+1 < s.oldest() {
		return s.next, true
	}
	return last + 1, false
}

// oldest is the id of the oldest event still kept. s.mu is held.
func (s *Stream) oldest() uint64 {
	if s.next-s.first > keptEvents {
		return s.next - keptEvents
	}
	return s.first
}

// from returns the events from at on, where to go on, and what to wait for when there are none. reset is set when
// events were lost.
func (s *Stream) from(at uint64) (events []streamed, next uint64, reset bool, change <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at < s.oldest() {
		return nil, s.next, true, s.change
	}
	for ; at < s.next; at++ {
		events = append(events, s.ring[at%keptEvents])
	}
	return events, s.next, false, s.change
}

// waitRun returns nil when the run has ended, ctx is done or stop is closed, and an error when the run cannot be read.
func (s *Stream) waitRun(
	ctx context.Context, stop <-chan struct{}, id string, get func(context.Context, string) (RunInfo, error),
) error {
	for ctx.Err() == nil {
		// Taken before the run is read, so that a change after the reading is not missed.
		at, _ := s.position("")
		run, err := get(ctx, id)
		if ctx.Err() != nil {
			break
		}
		if err != nil || run.State.Final() {
			return err
		}
		if !s.waitFor(ctx, stop, at, id) {
			break
		}
	}
	return nil
}

// waitFor returns true when something about the run happens at or after position at, false when waiting shall end.
func (s *Stream) waitFor(ctx context.Context, stop <-chan struct{}, at uint64, run string) bool {
	for {
		events, next, reset, change := s.from(at)
		if reset || slices.ContainsFunc(events, func(e streamed) bool { return e.event.Run.ID == run }) {
			return true
		}
		at = next
		select {
		case <-ctx.Done():
			return false
		case <-stop:
			return false
		case <-change:
		}
	}
}

// frame writes one event in the form of server-sent events.
func frame(topic string, e server.StreamEvent) ([]byte, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("id: " + e.ID + "\nevent: " + topic + "\ndata: ")
	b.Write(data)
	b.WriteString("\n\n")
	return []byte(b.String()), nil
}
