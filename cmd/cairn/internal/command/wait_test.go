package command

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

// backupRun is a run of a backup of web01 in some state.
func backupRun(id string, state client.State, scanned int64) client.Run {
	t := client.Task{
		ID: "task_" + id, RunID: "run_" + id, Kind: client.RunBackup, VMName: "web01", State: state, CreatedAt: noon.Add(-time.Minute), StartedAt: noon.Add(-50 * time.Second),
		Progress: client.Progress{BytesTotal: 100 << 20, BytesScanned: scanned << 20, BytesRead: scanned << 19, BytesNew: 1 << 20, BytesStored: 1 << 19, RateBytesPerSecond: 10 << 20, ETASeconds: 5},
	}
	switch state {
	case client.StateRunning:
		t.Phase = "transferring"
	case client.StateFailed:
		t.Error = client.Failure{Type: "/problems/transient", Detail: "the guest stopped", Meaning: "There is no restore point.", Advice: "Try again."}
	case client.StateWarning:
		t.Warnings = []string{"The guest agent did not answer."}
		t.RestorePointID = "rp_" + id
	case client.StateSucceeded:
		t.RestorePointID = "rp_" + id
	}
	r := client.Run{ID: "run_" + id, Kind: client.RunBackup, State: state, CreatedAt: t.CreatedAt, StartedAt: t.StartedAt}
	if state != client.StateRunning && state != client.StateQueued {
		t.EndedAt, r.EndedAt = noon.Add(-10*time.Second), noon.Add(-10*time.Second)
	}
	r.Tasks = []client.Task{t}
	return r
}

func TestBackupWait(t *testing.T) {
	const progress = "backup of web01  queued    0%  0 B of 100 MiB  10 MiB/s  5s left\n" +
		"backup of web01  transferring   30%  30 MiB of 100 MiB  10 MiB/s  5s left\n"
	tests := []struct {
		end            client.State
		code           int
		stdout, stderr string
	}{
		{client.StateSucceeded, 0, "web01  backup succeeded in 40s  restore point rp_1  50 MiB read of 100 MiB, 1 MiB new, 512 KiB stored\n", ""},
		{client.StateWarning, 3, "web01  backup warning in 40s  restore point rp_1  50 MiB read of 100 MiB, 1 MiB new, 512 KiB stored\n", "Warning: The guest agent did not answer.\n"},
		{client.StateFailed, 1, "web01  backup failed in 40s  50 MiB read of 100 MiB, 1 MiB new, 512 KiB stored\n", "Error: web01: the guest stopped\n  What it means: There is no restore point.\n  What to do:    Try again.\n"},
		{client.StateCancelled, 1, "web01  backup cancelled in 40s  50 MiB read of 100 MiB, 1 MiB new, 512 KiB stored\n", ""},
	}
	for _, tt := range tests {
		t.Run(string(tt.end), func(t *testing.T) {
			a := newAppliance(t)
			a.inventory()
			var asked atomic.Int32
			a.HandleFunc("POST /vms/vm_web/backup", func(w http.ResponseWriter, _ *http.Request) { reply(w, 202, backupRun("1", client.StateQueued, 0)) })
			a.HandleFunc("GET /runs/run_1", func(w http.ResponseWriter, _ *http.Request) {
				switch n := asked.Add(1); {
				case n == 1:
					reply(w, 200, backupRun("1", client.StateQueued, 0))
				case n == 3 || n == 4:
					refuse(w, 503, "transient", "the appliance is starting", "", "")
				case n < 6:
					reply(w, 200, backupRun("1", client.StateRunning, 30))
				default:
					reply(w, 200, backupRun("1", tt.end, 100))
				}
			})
			got := a.run(t, "backup", "start", "web01", "--wait", "--full", "--exclude-disk", "vdb", "--quiesce", "never")
			if got.code != tt.code {
				t.Errorf("exit code %d, want %d", got.code, tt.code)
			}
			if diff := cmp.Diff(got.stdout, tt.stdout); diff != "" {
				t.Errorf("stdout -got +want:\n%s", diff)
			}
			want := progress + "The appliance does not answer; trying again.\n" +
				"backup of web01  " + string(tt.end) + "  100%  100 MiB of 100 MiB  10 MiB/s\n" + tt.stderr
			if diff := cmp.Diff(got.stderr, want); diff != "" {
				t.Errorf("stderr -got +want:\n%s", diff)
			}
			wantBody := `POST /vms/vm_web/backup {"exclude_disks":["vdb"],"full":true,"quiesce":"never","repository":"repo_01"}`
			if !contains(a.seen(), wantBody) {
				t.Errorf("requests lack %s: %v", wantBody, a.seen())
			}
		})
	}
}

func contains(lines []string, want string) bool {
	for _, l := range lines {
		if l == want {
			return true
		}
	}
	return false
}

func TestBackupWithoutWaiting(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	a.HandleFunc("POST /vms/{id}/backup", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") == "vm_db1" {
			refuse(w, 409, "conflict", "back up db: a task for this VM is under way", "", "Wait for it.")
			return
		}
		reply(w, 202, backupRun("1", client.StateQueued, 0))
	})
	got := a.run(t, "backup", "start", "web01", "-o", "name")
	if got.code != 0 || got.stdout != "run_1\n" || !strings.Contains(got.stderr, "cairn run watch run_1") {
		t.Errorf("%+v", got)
	}
	got = a.run(t, "backup", "start", "web01", "lab/db")
	if got.code != 6 || !strings.Contains(got.stdout, "run_1") || !strings.Contains(got.stderr, "cairn run watch run_1") || !strings.Contains(got.stderr, "under way") {
		t.Errorf("%+v", got)
	}
	// A VM that cannot be backed up does not keep those after it from it, nor from being waited for.
	for state, want := range map[client.State]int{client.StateSucceeded: 6, client.StateWarning: 6, client.StateFailed: 1} {
		b := newAppliance(t)
		b.inventory()
		b.get("/runs/run_1", backupRun("1", state, 100))
		b.HandleFunc("POST /vms/{id}/backup", func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("id") == "vm_db1" {
				refuse(w, 409, "conflict", "back up db: a task for this VM is under way", "", "Wait for it.")
				return
			}
			reply(w, 202, backupRun("1", client.StateQueued, 0))
		})
		got = b.run(t, "backup", "start", "lab/db", "web01", "--wait")
		if got.code != want || !strings.Contains(got.stdout, "web01  backup") || strings.Count(got.stderr, "under way") != 1 {
			t.Errorf("%s: want exit code %d, got %+v", state, want, got)
		}
	}
}

// A watcher that is interrupted leaves the run alone and says how to go on.
func TestInterruptedWait(t *testing.T) {
	a := newAppliance(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int32
	a.HandleFunc("GET /runs/run_1", func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 3 {
			cancel()
		}
		reply(w, 200, backupRun("1", client.StateRunning, 30))
	})
	a.get("/runs/run_1/events", client.RunEventList{Items: events})
	got := runContext(ctx, t, env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token}, "", "run", "watch", "run_1")
	if got.code != 130 || !strings.Contains(got.stderr, "Run run_1 goes on.") || !strings.Contains(got.stderr, "cairn run cancel run_1") {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(got.stderr, "no space left on device"); n != 1 {
		t.Errorf("an event was shown %d times:\n%s", n, got.stderr)
	}
}

func TestCancelWait(t *testing.T) {
	a := newAppliance(t)
	a.HandleFunc("POST /runs/{id}/cancel", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 202, backupRun(strings.TrimPrefix(r.PathValue("id"), "run_"), client.StateRunning, 30))
	})
	a.get("/runs/run_1", backupRun("1", client.StateCancelled, 30))
	a.get("/runs/run_2", backupRun("2", client.StateSucceeded, 100))
	for id, want := range map[string]int{"run_1": 0, "run_2": 6} {
		if got := a.run(t, "run", "cancel", id, "--wait"); got.code != want {
			t.Errorf("%s: exit code %d, want %d: %s", id, got.code, want, got.stderr)
		}
	}
}

func TestRunListStopsAtItsLimit(t *testing.T) {
	a := newAppliance(t)
	a.HandleFunc("GET /runs", func(w http.ResponseWriter, r *http.Request) {
		next := r.URL.Query().Get("page_token") + "x"
		reply(w, 200, client.RunList{Items: []client.Run{backupRun(next, client.StateSucceeded, 1)}, Next: next})
	})
	got := a.run(t, "run", "list", "--limit", "3", "-o", "name", "--state", "succeeded", "--kind", "backup")
	if want := "run_x\nrun_xx\nrun_xxx\n"; got.stdout != want {
		t.Errorf("got %q, want %q", got.stdout, want)
	}
	if want := "GET /runs?state=succeeded&kind=backup&limit=3"; a.seen()[0] != want {
		t.Errorf("got %s, want %s", a.seen()[0], want)
	}
}

// A run about a repository as a whole is listed with its name, or its id for somebody who may not list repositories.
func TestRunListNamesRepositories(t *testing.T) {
	run := client.Run{ID: "run_s", Kind: "sweep", State: client.StateSucceeded, Tasks: []client.Task{{ID: "task_s", RepositoryID: mainRepo.ID}}}
	for status, want := range map[int]string{200: mainRepo.Name, 403: mainRepo.ID} {
		a := newAppliance(t)
		a.get("/runs", client.RunList{Items: []client.Run{run, backupRun("1", client.StateSucceeded, 100)}})
		a.HandleFunc("GET /repositories", func(w http.ResponseWriter, _ *http.Request) {
			if status == 200 {
				reply(w, 200, client.RepositoryList{Items: []client.Repository{mainRepo}})
				return
			}
			reply(w, status, client.Problem{Type: "/problems/denied", Title: "Denied", Status: status})
		})
		got := a.run(t, "run", "list")
		lines := strings.Split(got.stdout, "\n")
		if got.code != 0 || !strings.Contains(lines[0], "SUBJECT") || !slices.Contains(strings.Fields(lines[1]), want) {
			t.Errorf("status %d: %+v, want %q", status, got, want)
		}
		if vm := backupRun("1", client.StateSucceeded, 100).Tasks[0].VMName; !strings.Contains(lines[2], vm) {
			t.Errorf("status %d: %q does not name VM %s", status, lines[2], vm)
		}
	}
}

func TestEventWatch(t *testing.T) {
	a := newAppliance(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int32
	a.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		if last := r.Header.Get("Last-Event-ID"); n == 3 && last != "e2" || n == 1 && last != "" {
			t.Errorf("connection %d has Last-Event-ID %q", n, last)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		switch n {
		case 1:
			fmt.Fprintf(w, ": hello\n\nid: e1\nevent: run\ndata: {\"id\":\"e1\",\"topic\":\"run\",\"time\":\"2026-11-21T11:00:00Z\",\ndata: \"run\":{\"id\":\"run_1\",\"kind\":\"backup\",\"state\":\"running\",\"tasks\":[{\"vm_name\":\"web01\"}]}}\n\n")
			fmt.Fprintf(w, "id: e2\nevent: inventory\ndata: {\"id\":\"e2\",\"topic\":\"inventory\",\"time\":\"2026-11-21T11:00:01Z\",\"connection_id\":\"conn_01\"}\n\nid: e3\ndata: {\"half")
		case 2:
			refuse(w, 503, "transient", "starting", "", "")
		case 3:
			fmt.Fprintf(w, "id: e3\ndata: {\"id\":\"e3\",\"topic\":\"reset\",\"time\":\"2026-11-21T11:00:02Z\"}\n\n")
		default:
			cancel()
		}
	})
	e := env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token}
	got := runContext(ctx, t, e, "", "event", "watch", "--topic", "run,inventory")
	want := "11:00:00  run        run_1  backup of web01 running\n11:00:01  inventory  inventory of conn_01 changed\n11:00:02  reset      reset\n"
	if diff := cmp.Diff(got.stdout, want); diff != "" || got.code != 130 {
		t.Errorf("exit code %d, -got +want:\n%s\n%s", got.code, diff, got.stderr)
	}
	if want := "GET /events?topics=run%2Cinventory"; a.seen()[0] != want && a.seen()[0] != "GET /events?topics=run,inventory" {
		t.Errorf("got %s, want %s", a.seen()[0], want)
	}
}

func TestWatchListsWhatIsNew(t *testing.T) {
	a := newAppliance(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int32
	a.HandleFunc("GET /tasks", func(w http.ResponseWriter, _ *http.Request) {
		n := asked.Add(1)
		if n == 6 {
			cancel()
		}
		list := client.TaskList{Items: []client.Task{runningRun.Tasks[0]}}
		if n >= 4 {
			list.Items[0].State = client.StateSucceeded
		}
		reply(w, 200, list)
	})
	e := env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token}
	got := runContext(ctx, t, e, "", "task", "list", "--watch")
	if n := strings.Count(got.stdout, "TASK"); n != 2 || got.code != 130 {
		t.Errorf("listed %d times, exit code %d:\n%s", n, got.code, got.stdout)
	}
}

// TestWatchOfWhatHasNoneOfItsOwn redraws when something has changed, and ends with the token.
func TestWatchOfWhatHasNoneOfItsOwn(t *testing.T) {
	a := newAppliance(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int32
	a.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) {
		n := asked.Add(1)
		if n == 6 {
			cancel()
		}
		list := client.ConnectionList{Items: []client.Connection{{ID: "conn_1", Name: "lab"}}}
		if n >= 4 {
			list.Items[0].Name = "site"
		}
		reply(w, 200, list)
	})
	e := env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token}
	got := runContext(ctx, t, e, "", "connection", "list", "-w")
	if n := strings.Count(got.stdout, "NAME"); n != 2 || got.code != 130 || !strings.Contains(got.stdout, "site") {
		t.Errorf("listed %d times, exit code %d:\n%s", n, got.code, got.stdout)
	}
}

// TestWatchBearsAnApplianceThatIsStartedAnew goes on when it answers again, and ends with an error that would stay.
func TestWatchBearsAnApplianceThatIsStartedAnew(t *testing.T) {
	a := newAppliance(t)
	var asked atomic.Int32
	a.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) {
		switch n := asked.Add(1); n {
		case 1, 4:
			reply(w, 200, client.ConnectionList{Items: []client.Connection{{ID: "conn_1", Name: fmt.Sprintf("lab%d", n)}}})
		case 2, 3, 5:
			refuse(w, 503, "transient", "the appliance is starting", "", "")
		default:
			refuse(w, 403, "denied", "the token was removed", "", "")
		}
	})
	got := a.run(t, "connection", "list", "--watch")
	if got.code != 4 || !strings.Contains(got.stdout, "lab1") || !strings.Contains(got.stdout, "lab4") {
		t.Errorf("exit code %d:\n%s", got.code, got.stdout)
	}
	if n := strings.Count(got.stderr, "The appliance does not answer; trying again.\n"); n != 2 || !strings.Contains(got.stderr, "the token was removed") {
		t.Errorf("said %d times that it tries again:\n%s", n, got.stderr)
	}
}

// TestWatchNeedsAnApplianceToBeginWith does not try again what has never worked.
func TestWatchNeedsAnApplianceToBeginWith(t *testing.T) {
	a := newAppliance(t)
	a.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, 503, "transient", "the appliance is starting", "", "")
	})
	got := a.run(t, "connection", "list", "--watch")
	if n := len(a.seen()); got.code != 1 || n != 1 {
		t.Errorf("exit code %d after %d requests:\n%s", got.code, n, got.stderr)
	}
}

func TestHelpPages(t *testing.T) {
	for _, page := range []string{"", "backup start", "restore start", "restore many", "rescue", "rescue export", "rescue scrub", "rescue verify", "login", "repository", "repository create", "repository set", "repository verify", "repository heal",
		"repository space", "repository damage", "repository collect", "repository scrub", "repository rebuild", "repository grow", "key", "key add", "key paper", "key drill"} {
		got := run(t, env{}, "", append(strings.Fields(page), "--help")...)
		if got.code != 0 {
			t.Errorf("%s: exit code %d", page, got.code)
		}
		compare(t, filepath.Join("testdata", "help", "cairn_"+strings.ReplaceAll(page, " ", "_")+".txt"), got.stdout)
	}
}
