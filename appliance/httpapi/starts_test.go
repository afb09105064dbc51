package httpapi

import (
	"net/http"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
)

func TestIdempotencyKey(t *testing.T) {
	ts := ready(t)
	const key = "Idempotency-Key"
	backup := func(body string, header ...string) answer { return ts.do("POST", "/vms/vm_1/backup", body, header...) }
	id := func(a answer) string {
		t.Helper()
		a.want(t, http.StatusAccepted, "")
		var run server.Run
		a.decode(t, &run)
		if got, want := a.header.Get("Location"), "/api/v1/runs/"+run.ID; got != want {
			t.Errorf("Location %q, want %q", got, want)
		}
		return run.ID
	}
	first := id(backup(`{"repository":"repo_1","full":true}`, key, "key-00001"))
	if again := id(backup(`{ "full": true, "repository": "repo_1" }`, key, "key-00001")); again != first {
		t.Errorf("the same request again started %s, want %s", again, first)
	}
	if other := id(backup(`{"repository":"repo_1","full":true}`, key, "key-00002")); other == first {
		t.Error("another key did not start another run")
	}
	if other := id(backup(`{"repository":"repo_1","full":true}`)); other == first {
		t.Error("no key did not start another run")
	}
	backup(`{"repository":"repo_1"}`, key, "key-00001").want(t, 422, "/problems/invalid/idempotency-key")
	ts.do("POST", "/restore-points/rp_1/verify", nil, key, "key-00001").want(t, 422, "/problems/invalid/idempotency-key")
	backup(`{"repository":"repo_1"}`, key, "short").want(t, 422, "/problems/invalid/parameter")
	if got := len(ts.core.started); got != 3 {
		t.Errorf("%d runs were started, want 3", got)
	}
}

func TestPreferWait(t *testing.T) {
	ts := ready(t)
	ended := make(chan string, 1)
	go func() {
		id := <-ts.core.wake // somebody has looked at the run, which is under way
		ts.core.stream.PublishRun(someRun)
		ts.core.finish(id, catalog.Warning)
		ended <- id
	}()
	a := ts.do("POST", "/restore-points/rp_1/verify", nil, "Prefer", `respond-async, WAIT="60"; x=y`)
	id := <-ended
	a.want(t, http.StatusOK, "")
	var run server.Run
	a.decode(t, &run)
	if run.ID != id || run.State != server.StateWarning || a.header.Get("Location") != "/api/v1/runs/"+id {
		t.Errorf("run %+v, Location %q", run, a.header.Get("Location"))
	}
}

func TestPreferWaitOfRestore(t *testing.T) {
	ts := ready(t)
	ended := make(chan string, 1)
	go func() {
		id := <-ts.core.wake
		ts.core.finish(id, catalog.Succeeded)
		ended <- id
	}()
	a := ts.do("POST", "/restores", map[string]any{"restore_point": "rp_1", "mode": "in-place"}, "Prefer", "wait=60")
	id := <-ended
	a.want(t, http.StatusOK, "")
	var out server.RestoreOutcome
	a.decode(t, &out)
	if out.Run.ID != id || out.Run.State != server.StateSucceeded || out.Plan.VMName != "" {
		t.Errorf("outcome %+v", out)
	}
}

func TestPreferWaitEndsBeforeTheRun(t *testing.T) {
	ts := ready(t)
	a := ts.do("POST", "/repositories/repo_1/collect", map[string]any{}, "Prefer", "wait=1")
	a.want(t, http.StatusAccepted, "")
	var run server.Run
	a.decode(t, &run)
	if run.State != server.StateRunning {
		t.Errorf("state %q", run.State)
	}
}

func TestWaitEndsWithTheServer(t *testing.T) {
	ts := ready(t)
	stopped := make(chan error, 1)
	go func() {
		<-ts.core.wake
		stopped <- ts.stop()
	}()
	ts.do("POST", "/restore-points/rp_1/verify", nil, "Prefer", "wait=300").want(t, http.StatusAccepted, "")
	check(t, <-stopped)
}

func TestWaitOf(t *testing.T) {
	tests := map[string]time.Duration{
		"": 0, "wait=5": 5 * time.Second, "Wait=5": 5 * time.Second, "respond-async,wait=7": 7 * time.Second, "wait = 5": 5 * time.Second,
		`wait="6"`: 6 * time.Second, "wait=5;x=1": 5 * time.Second, "wait": 0, "wait=": 0, "wait=-1": 0, "wait=x": 0, "wait=1e3": 0,
		"wait=99999": maxWait, "wait=99999999999999999999": 0, "waiting=5": 0,
	}
	for prefer, want := range tests {
		if got := waitOf(prefer); got != want {
			t.Errorf("waitOf(%q) = %v, want %v", prefer, got, want)
		}
	}
}
