package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
)

// follower reads an event stream.
type follower struct {
	t      *testing.T
	ts     *testServer
	resp   *http.Response
	lines  *bufio.Scanner
	cancel context.CancelFunc
}

// follow opens a stream and returns when the server has answered.
func (ts *testServer) follow(query string, header ...string) *follower {
	ts.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	resp, err := ts.client.Do(ts.request(ctx, "GET", "/events"+query, nil, header...))
	check(ts.t, err)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		ts.t.Fatalf("%s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	f := &follower{ts.t, ts, resp, bufio.NewScanner(resp.Body), cancel}
	ts.t.Cleanup(f.close)
	if got := f.comment(); got != "follow" {
		ts.t.Fatalf("the stream begins with %q", got)
	}
	return f
}

func (f *follower) close() {
	f.cancel()
	_ = f.resp.Body.Close() // it was cut off on purpose
}

// comment reads on to the next comment.
func (f *follower) comment() string {
	f.t.Helper()
	for f.lines.Scan() {
		if text, ok := strings.CutPrefix(f.lines.Text(), ": "); ok {
			return text
		}
	}
	f.t.Fatalf("the stream ended: %v", f.lines.Err())
	return ""
}

// event reads the next event and checks it against the document.
func (f *follower) event() server.StreamEvent {
	f.t.Helper()
	var id, topic string
	for f.lines.Scan() {
		name, text, _ := strings.Cut(f.lines.Text(), ": ")
		switch name {
		case "id":
			id = text
		case "event":
			topic = text
		case "data":
			schema, err := f.ts.contract.schema("/components/schemas/StreamEvent")
			check(f.t, err)
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
			check(f.t, err)
			if err := schema.Validate(v); err != nil {
				f.t.Errorf("event does not conform: %v", err)
			}
			var e server.StreamEvent
			check(f.t, json.Unmarshal([]byte(text), &e))
			if e.ID != id || e.Topic != topic {
				f.t.Errorf("event %q %q holds %q %q", id, topic, e.ID, e.Topic)
			}
			return e
		}
	}
	f.t.Fatalf("the stream ended: %v", f.lines.Err())
	return server.StreamEvent{}
}

func numbered(i int) catalog.Event {
	return catalog.Event{Seq: int64(i), RunID: "run_1", Time: someTime, Level: catalog.LevelInfo, Message: "m" + strconv.Itoa(i)}
}

func TestFollow(t *testing.T) {
	ts := ready(t)
	f := ts.follow("")
	ts.core.stream.PublishRun(someRun)
	ts.core.stream.PublishTask(someTask)
	ts.core.stream.PublishRunEvent(numbered(7))
	ts.core.stream.PublishInventory("conn_1")
	got := []server.StreamEvent{f.event(), f.event(), f.event(), f.event()}
	want := []server.StreamEvent{
		{Topic: "run", Run: runOf(someRun)},
		{Topic: "task", Task: taskOf(someTask)},
		{Topic: "run-event", RunEvent: runEventOf(numbered(7))},
		{Topic: "inventory", ConnectionID: "conn_1"},
	}
	for i := range got {
		if got[i].Time.IsZero() || i > 0 && got[i].ID <= got[i-1].ID {
			t.Errorf("event %d: id %q after %q, time %v", i, got[i].ID, got[max(i-1, 0)].ID, got[i].Time)
		}
		got[i].ID, got[i].Time = "", time.Time{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestFollowTopics(t *testing.T) {
	ts := ready(t)
	f := ts.follow("?topics=inventory,run-event")
	ts.core.stream.PublishRun(someRun)
	ts.core.stream.PublishRunEvent(numbered(1))
	ts.core.stream.PublishTask(someTask)
	ts.core.stream.PublishInventory("conn_1")
	if a, b := f.event().Topic, f.event().Topic; a != "run-event" || b != "inventory" {
		t.Errorf("topics %q and %q", a, b)
	}
}

// TestResume cuts a stream in the middle and goes on: nothing is lost, nothing comes twice.
func TestResume(t *testing.T) {
	ts := ready(t)
	f := ts.follow("")
	for i := range 5 {
		ts.core.stream.PublishRunEvent(numbered(i))
	}
	var last string
	for range 3 {
		last = f.event().ID
	}
	f.close()
	ts.core.stream.PublishRunEvent(numbered(5))
	f = ts.follow("", "Last-Event-ID", last)
	for _, want := range []string{"m3", "m4", "m5"} {
		if got := f.event().RunEvent.Message; got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	}
}

func TestResumeTooLate(t *testing.T) {
	ts := ready(t)
	ts.core.stream.PublishRunEvent(numbered(0))
	f := ts.follow("", "Last-Event-ID", strconv.FormatUint(ts.core.stream.first, 10))
	for i := range keptEvents + 1 {
		ts.core.stream.PublishRunEvent(numbered(i))
	}
	f.close()
	tests := map[string]string{
		"lost":               strconv.FormatUint(ts.core.stream.first, 10),
		"of an earlier life": "17",
		"of the future":      strconv.FormatUint(ts.core.stream.next+keptEvents, 10),
		"nonsense":           "abc",
	}
	for name, seen := range tests {
		f := ts.follow("", "Last-Event-ID", seen)
		reset := f.event()
		if reset.Topic != topicReset {
			t.Errorf("%s: first event is %q", name, reset.Topic)
		}
		// The reset is a place to go on from.
		f.close()
		f = ts.follow("", "Last-Event-ID", reset.ID)
		ts.core.stream.PublishInventory("conn_" + strconv.Itoa(len(name)))
		if e := f.event(); e.ConnectionID != "conn_"+strconv.Itoa(len(name)) {
			t.Errorf("%s: after the reset comes %+v", name, e)
		}
		f.close()
	}
}

// TestStreamPositions goes through the ring at its edges, without a network.
func TestStreamPositions(t *testing.T) {
	s := NewStream()
	publish := func(n int) {
		for i := range n {
			s.PublishRunEvent(numbered(i))
		}
	}
	publish(keptEvents)
	if events, _, reset, _ := s.from(s.first); reset || len(events) != keptEvents {
		t.Errorf("a full ring: %d events, reset %v", len(events), reset)
	}
	publish(1)
	if events, next, reset, _ := s.from(s.first); !reset || len(events) != 0 || next != s.next {
		t.Errorf("one too late: %d events, reset %v", len(events), reset)
	}
	if events, _, reset, _ := s.from(s.first + 1); reset || len(events) != keptEvents || events[0].id != s.first+1 {
		t.Errorf("just in time: %d events, reset %v", len(events), reset)
	}
	if at, reset := s.position(strconv.FormatUint(s.first, 10)); reset || at != s.first+1 {
		t.Errorf("position behind the last lost event: %d, reset %v", at, reset)
	}
	if at, reset := s.position(strconv.FormatUint(s.next-1, 10)); reset || at != s.next {
		t.Errorf("position behind the newest event: %d, reset %v", at, reset)
	}
}

func TestHeartbeat(t *testing.T) {
	ts := start(t, time.Millisecond)
	ts.becomeReady()
	f := ts.follow("")
	for range 2 {
		if got := f.comment(); got != "beat" {
			t.Errorf("comment %q", got)
		}
	}
}

func TestStreamEndsWithItsToken(t *testing.T) {
	ts := start(t, time.Millisecond)
	ts.becomeReady()
	f := ts.follow("")
	caller, err := ts.identity.Authenticate(t.Context(), ts.token)
	check(t, err)
	check(t, ts.identity.DeleteToken(t.Context(), caller, caller.TokenID))
	for f.lines.Scan() {
	}
	if err := f.lines.Err(); err != nil {
		t.Errorf("the stream did not end but broke: %v", err)
	}
}

// TestStreamEndsWithTheServer: Serve returns although somebody follows; goleak in TestMain sees to the goroutines.
func TestStreamEndsWithTheServer(t *testing.T) {
	ts := ready(t)
	f := ts.follow("")
	check(t, ts.stop())
	for f.lines.Scan() {
	}
	if err := f.lines.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestClientGoes: the handler notices and returns; the server can be closed without waiting for it.
func TestClientGoes(t *testing.T) {
	ts := ready(t)
	done := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ts.Handler().ServeHTTP(w, r)
		close(done)
	})
	ctx, cancel := context.WithCancel(t.Context())
	w := &goneWriter{header: http.Header{}, wrote: make(chan struct{}, 1)}
	go handler.ServeHTTP(w, ts.request(ctx, "GET", "/events", nil))
	<-w.wrote
	cancel()
	<-done
}

// goneWriter is the side of a client that reads nothing.
type goneWriter struct {
	header http.Header
	wrote  chan struct{}
}

func (g *goneWriter) Header() http.Header { return g.header }
func (g *goneWriter) WriteHeader(int)     {}
func (g *goneWriter) Flush()              {}
func (g *goneWriter) Write(p []byte) (int, error) {
	select {
	case g.wrote <- struct{}{}:
	default:
	}
	return len(p), nil
}
