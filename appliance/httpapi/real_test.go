package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/server"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// real is a whole cairnd over a platform in memory, and the generated client.
type real struct {
	t        *testing.T
	ctx      context.Context
	platform *memplatform.Platform
	vm       hypervisors.VM
	token    string
	url      string
	plain    *http.Client // answers are not compared with the document
	checked  *http.Client // they are
	*client.ClientWithResponses
}

// newReal starts cairnd, reads what it prints, and sets it up as an admin would.
func newReal(t *testing.T) *real {
	t.Helper()
	p, err := memplatform.New(memplatform.Options{})
	check(t, err)
	t.Cleanup(func() { check(t, p.Close()) })
	data := filepath.Join(t.TempDir(), "data")
	printed := runCairnd(t, p, data)
	pem, err := os.ReadFile(filepath.Join(data, "tls", "ca.crt"))
	check(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	r := &real{t: t, ctx: t.Context(), platform: p, url: printed["API"], plain: &http.Client{Transport: transport}}
	r.checked = &http.Client{Transport: httpapi.Conforming(t, transport)}
	r.vm = p.AddVM(memplatform.VMSpec{Name: "web", Disks: []int64{1 << 20, 1 << 19}, CDROM: true})
	r.ClientWithResponses, err = client.NewClientWithResponses(printed["API"]+api.BasePath,
		client.WithHTTPClient(r.checked), client.WithRequestEditorFn(r.authorize))
	check(t, err)
	issued, err := r.SetUpWithResponse(r.ctx, client.SetUpRequest{
		Token: printed["set-up token"], Username: "admin", Password: "correct horse battery",
	})
	check(t, err)
	r.token = got(t, issued.JSON201, issued.HTTPResponse, issued.ApplicationProblemJSONDefault).Secret
	return r
}

func (r *real) authorize(_ context.Context, request *http.Request) error {
	if r.token != "" {
		request.Header.Set("Authorization", "Bearer "+r.token)
	}
	return nil
}

// runCairnd runs cairnd until the test ends and returns what it printed, by label.
func runCairnd(t *testing.T, p *memplatform.Platform, data string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() {
		args := []string{"--data", data, "--listen", "127.0.0.1:0", "--movers", "127.0.0.1:0", "--requests", "100000"}
		err := server.Run(ctx, args, func(string) string { return "" }, stdout, io.Discard, map[hypervisors.Platform]server.OpenDriver{
			memplatform.PlatformName: func(context.Context, server.Target) (hypervisors.Driver, error) { return p.Driver(), nil },
		})
		_ = stdout.CloseWithError(err)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		check(t, <-done)
	})
	printed := map[string]string{}
	for lines := bufio.NewScanner(out); printed["set-up token"] == "" && lines.Scan(); {
		label, text, _ := strings.Cut(lines.Text(), ":")
		printed[label] = strings.TrimSpace(text)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until cairnd ends
	if printed["API"] == "" || printed["set-up token"] == "" {
		t.Fatalf("cairnd printed %v", printed)
	}
	return printed
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// got fails the test unless the answer is there, and says what came instead.
func got[T any](t *testing.T, v *T, resp *http.Response, problem *client.Problem) T {
	t.Helper()
	if v == nil {
		t.Fatalf("%s %s: %s %+v", resp.Request.Method, resp.Request.URL.Path, resp.Status, problem)
	}
	return *v
}

// wait is long enough for every run of these tests; how long it takes does not decide them.
var wait = "wait=120"

// whatever is an If-Match for what nobody else changes.
var whatever = "*"

// backup backs the VM up and returns the restore point.
func (r *real) backup(vm, repository string) client.RestorePoint {
	r.t.Helper()
	b, err := r.StartBackupWithResponse(r.ctx, vm, &client.StartBackupParams{Prefer: &wait}, client.BackupRequest{Repository: repository})
	check(r.t, err)
	run := r.succeeded(got(r.t, b.JSON200, b.HTTPResponse, b.ApplicationProblemJSONDefault))
	p, err := r.GetRestorePointWithResponse(r.ctx, run.Tasks[0].RestorePointID)
	check(r.t, err)
	return got(r.t, p.JSON200, p.HTTPResponse, p.ApplicationProblemJSONDefault)
}

func (r *real) succeeded(run client.Run) client.Run {
	r.t.Helper()
	if (run.State != client.StateSucceeded && run.State != client.StateWarning) || len(run.Tasks) != 1 {
		r.t.Fatalf("run %+v", run)
	}
	return run
}

// TestFromSetUpToCollect goes the whole way of an admin; every answer is compared with the document.
func TestFromSetUpToCollect(t *testing.T) {
	r := newReal(t)
	made, err := r.CreateConnectionWithResponse(r.ctx, nil, client.CreateConnectionRequest{Name: "lab", Platform: string(memplatform.PlatformName), Address: "here"})
	check(t, err)
	conn := got(t, made.JSON201, made.HTTPResponse, made.ApplicationProblemJSONDefault)
	built, err := r.CreateRepositoryWithResponse(r.ctx, nil, client.CreateRepositoryRequest{Name: "main", Path: filepath.Join(t.TempDir(), "repo")})
	check(t, err)
	repo := got(t, built.JSON201, built.HTTPResponse, built.ApplicationProblemJSONDefault)

	list, err := r.ListVMsWithResponse(r.ctx, &client.ListVMsParams{Connection: &conn.ID})
	check(t, err)
	vms := got(t, list.JSON200, list.HTTPResponse, list.ApplicationProblemJSONDefault)
	if len(vms.Items) != 1 || vms.Items[0].Name != "web" || vms.Items[0].PlatformID != r.vm.ID || vms.Items[0].Disks != 2 {
		t.Fatalf("VMs %+v", vms)
	}
	vm := vms.Items[0].ID

	content := bytes.Repeat([]byte("frozen here. "), 6000)
	check(t, r.platform.Write(r.vm.ID, "disk0", content, 4096))
	full := r.backup(vm, repo.ID)
	check(t, r.platform.Write(r.vm.ID, "disk1", content[:65536], 0))
	next := r.backup(vm, repo.ID)
	if full.Kind != "full" || next.Kind != "incremental" || next.ReadBytes >= full.ReadBytes+65536*2 || len(next.Disks) != 2 {
		t.Errorf("restore points %+v and %+v", full, next)
	}
	if next.Description.CPUs != r.vm.CPUs || len(next.Skipped) != 1 || next.Skipped[0].Disk != "cdrom0" {
		t.Errorf("description %+v, skipped %+v", next.Description, next.Skipped)
	}

	r.restoreAndCompare(next, content)
	r.verifyPruneCollect(full, next, repo.ID)

	shown, err := r.GetVMWithResponse(r.ctx, vm)
	check(t, err)
	if v := got(t, shown.JSON200, shown.HTTPResponse, shown.ApplicationProblemJSONDefault); v.LastRestorePointID != next.ID {
		t.Errorf("last restore point %q, want %q", v.LastRestorePointID, next.ID)
	}
}

func (r *real) restoreAndCompare(p client.RestorePoint, content []byte) {
	r.t.Helper()
	request := client.RestoreRequest{RestorePoint: p.ID, Mode: client.RestoreNew, Name: "web2", DryRun: true}
	plan, err := r.StartRestoreWithResponse(r.ctx, nil, request)
	check(r.t, err)
	planned := got(r.t, plan.JSON200, plan.HTTPResponse, plan.ApplicationProblemJSONDefault)
	if planned.Plan.VMName != "web2" || len(planned.Plan.Disks) != 2 || planned.Run.ID != "" {
		r.t.Errorf("plan %+v", planned)
	}
	request.DryRun = false
	done, err := r.StartRestoreWithResponse(r.ctx, &client.StartRestoreParams{Prefer: &wait}, request)
	check(r.t, err)
	run := r.succeeded(got(r.t, done.JSON200, done.HTTPResponse, done.ApplicationProblemJSONDefault).Run)
	restored, err := r.platform.Content(run.Tasks[0].Result.VMPlatformID, "disk0")
	check(r.t, err)
	if !bytes.Equal(restored[4096:4096+len(content)], content) {
		r.t.Error("the restored disk is not what was frozen")
	}
	events, err := r.ListRunEventsWithResponse(r.ctx, run.ID, nil)
	check(r.t, err)
	if list := got(r.t, events.JSON200, events.HTTPResponse, events.ApplicationProblemJSONDefault); len(list.Items) == 0 {
		r.t.Error("the run has no events")
	}
}

func (r *real) verifyPruneCollect(full, next client.RestorePoint, repository string) {
	r.t.Helper()
	verified, err := r.StartVerifyWithResponse(r.ctx, next.ID, &client.StartVerifyParams{Prefer: &wait})
	check(r.t, err)
	r.succeeded(got(r.t, verified.JSON200, verified.HTTPResponse, verified.ApplicationProblemJSONDefault))
	pruned, err := r.PruneRestorePointWithResponse(r.ctx, full.ID, &client.PruneRestorePointParams{IfMatch: &whatever})
	check(r.t, err)
	if pruned.StatusCode() != http.StatusNoContent {
		r.t.Errorf("prune: %s %s", pruned.Status(), pruned.Body)
	}
	collected, err := r.StartCollectWithResponse(r.ctx, repository, &client.StartCollectParams{Prefer: &wait}, client.CollectRequest{})
	check(r.t, err)
	r.succeeded(got(r.t, collected.JSON200, collected.HTTPResponse, collected.ApplicationProblemJSONDefault))
	points, err := r.ListRestorePointsWithResponse(r.ctx, nil)
	check(r.t, err)
	list := got(r.t, points.JSON200, points.HTTPResponse, points.ApplicationProblemJSONDefault)
	if len(list.Items) != 1 || list.Items[0].ID != next.ID || list.Items[0].VerifiedAt.IsZero() {
		r.t.Errorf("restore points %+v", list.Items)
	}
}

// TestRealRefusals: what a person gets wrong answers with a stable type, and changes nothing.
func TestRealRefusals(t *testing.T) {
	r := newReal(t)
	conn := client.CreateConnectionRequest{Name: "lab", Platform: string(memplatform.PlatformName), Address: "here"}
	first, err := r.CreateConnectionWithResponse(r.ctx, nil, conn)
	check(t, err)
	got(t, first.JSON201, first.HTTPResponse, first.ApplicationProblemJSONDefault)
	repo := client.CreateRepositoryRequest{Name: "main", Path: filepath.Join(t.TempDir(), "repo")}
	built, err := r.CreateRepositoryWithResponse(r.ctx, nil, repo)
	check(t, err)
	kept := got(t, built.JSON201, built.HTTPResponse, built.ApplicationProblemJSONDefault)
	vms, err := r.ListVMsWithResponse(r.ctx, nil)
	check(t, err)
	vm := vms.JSON200.Items[0].ID

	tests := map[string]struct {
		do   func() (*http.Response, *client.Problem, error)
		want string
	}{
		"connection twice": {func() (*http.Response, *client.Problem, error) {
			x, err := r.CreateConnectionWithResponse(r.ctx, nil, conn)
			return x.HTTPResponse, x.ApplicationProblemJSONDefault, err
		}, "409 /problems/exists"},
		"unknown platform": {func() (*http.Response, *client.Problem, error) {
			x, err := r.CreateConnectionWithResponse(r.ctx, nil, client.CreateConnectionRequest{Name: "x", Platform: "zos", Address: "x"})
			return x.HTTPResponse, x.ApplicationProblemJSONDefault, err
		}, "422 /problems/invalid"},
		"repository where one is": {func() (*http.Response, *client.Problem, error) {
			x, err := r.CreateRepositoryWithResponse(r.ctx, nil, client.CreateRepositoryRequest{Name: "other", Path: repo.Path})
			return x.HTTPResponse, x.ApplicationProblemJSONDefault, err
		}, "409 /problems/exists"},
		"backup into nothing": {func() (*http.Response, *client.Problem, error) {
			x, err := r.StartBackupWithResponse(r.ctx, vm, nil, client.BackupRequest{Repository: "repo_nothing"})
			return x.HTTPResponse, x.ApplicationProblemJSONDefault, err
		}, "404 /problems/not-found"},
		"backup of nothing": {func() (*http.Response, *client.Problem, error) {
			x, err := r.StartBackupWithResponse(r.ctx, "vm_nothing", nil, client.BackupRequest{Repository: kept.ID})
			return x.HTTPResponse, x.ApplicationProblemJSONDefault, err
		}, "404 /problems/not-found"},
		"restore of nothing": {func() (*http.Response, *client.Problem, error) {
			x, err := r.StartRestoreWithResponse(r.ctx, nil, client.RestoreRequest{RestorePoint: "rp_nothing", Mode: client.RestoreInPlace})
			return x.HTTPResponse, x.ApplicationProblemJSONDefault, err
		}, "404 /problems/not-found"},
		"cancel of nothing": {func() (*http.Response, *client.Problem, error) {
			x, err := r.CancelRunWithResponse(r.ctx, "run_nothing")
			return x.HTTPResponse, x.ApplicationProblemJSONDefault, err
		}, "404 /problems/not-found"},
	}
	for name, tt := range tests {
		resp, p, err := tt.do()
		check(t, err)
		if p == nil {
			t.Errorf("%s: %s and no problem", name, resp.Status)
			continue
		}
		if got := resp.Status[:4] + p.Type; got != tt.want || strings.TrimSpace(p.Detail) == "" {
			t.Errorf("%s: %s %q, want %s", name, got, p.Detail, tt.want)
		}
	}

	point := r.backup(vm, kept.ID)
	running, err := r.StartRestoreWithResponse(r.ctx, nil, client.RestoreRequest{RestorePoint: point.ID, Mode: client.RestoreInPlace})
	check(t, err)
	if p := running.ApplicationProblemJSONDefault; p == nil || p.Type != "/problems/conflict" || p.Advice == "" {
		t.Errorf("restore onto a running VM: %s %+v", running.Status(), p)
	}
	runs, err := r.ListRunsWithResponse(r.ctx, nil)
	check(t, err)
	if n := len(got(t, runs.JSON200, runs.HTTPResponse, runs.ApplicationProblemJSONDefault).Items); n != 1 {
		t.Errorf("%d runs were made, want that of the backup only", n)
	}
}

// lab connects the platform, makes a repository and returns both with the VM.
func (r *real) lab() (vm, repository string) {
	r.t.Helper()
	made, err := r.CreateConnectionWithResponse(r.ctx, nil, client.CreateConnectionRequest{Name: "lab", Platform: string(memplatform.PlatformName), Address: "here"})
	check(r.t, err)
	got(r.t, made.JSON201, made.HTTPResponse, made.ApplicationProblemJSONDefault)
	built, err := r.CreateRepositoryWithResponse(r.ctx, nil, client.CreateRepositoryRequest{Name: "main", Path: filepath.Join(r.t.TempDir(), "repo")})
	check(r.t, err)
	repo := got(r.t, built.JSON201, built.HTTPResponse, built.ApplicationProblemJSONDefault)
	vms, err := r.ListVMsWithResponse(r.ctx, nil)
	check(r.t, err)
	return got(r.t, vms.JSON200, vms.HTTPResponse, vms.ApplicationProblemJSONDefault).Items[0].ID, repo.ID
}

// TestRealEvents: who follows sees the run begin and end, and its task in between.
func TestRealEvents(t *testing.T) {
	r := newReal(t)
	vm, repo := r.lab()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	topics := []client.Topic{client.TopicRun, client.TopicTask, client.TopicRunEvent}
	stream, err := r.StreamEvents(ctx, &client.StreamEventsParams{Topics: &topics})
	check(t, err)
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() || lines.Text() != ": follow" {
		t.Fatalf("the stream begins with %q, %v", lines.Text(), lines.Err())
	}
	started, err := r.StartBackupWithResponse(r.ctx, vm, nil, client.BackupRequest{Repository: repo})
	check(t, err)
	run := got(t, started.JSON202, started.HTTPResponse, started.ApplicationProblemJSONDefault)
	var tasks, events int
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e client.StreamEvent
		check(t, json.Unmarshal([]byte(data), &e))
		if e.Task.RunID == run.ID {
			tasks++
		}
		if e.RunEvent.RunID == run.ID {
			events++
		}
		if e.Run.ID == run.ID && e.Run.State != client.StateQueued && e.Run.State != client.StateRunning {
			r.succeeded(e.Run)
			break
		}
	}
	check(t, lines.Err())
	if tasks == 0 || events == 0 {
		t.Errorf("%d events of the task and %d lines of the run were seen", tasks, events)
	}
}

// TestRealIdempotency: a request that is repeated, also after it has ended, starts one run.
func TestRealIdempotency(t *testing.T) {
	r := newReal(t)
	vm, repo := r.lab()
	key := "nightly-2026-03-04"
	params := &client.StartBackupParams{Prefer: &wait, IdempotencyKey: &key}
	var ids []string
	for range 3 {
		b, err := r.StartBackupWithResponse(r.ctx, vm, params, client.BackupRequest{Repository: repo})
		check(t, err)
		ids = append(ids, got(t, b.JSON200, b.HTTPResponse, b.ApplicationProblemJSONDefault).ID)
	}
	if ids[0] != ids[1] || ids[0] != ids[2] {
		t.Errorf("runs %v", ids)
	}
	other, err := r.StartBackupWithResponse(r.ctx, vm, params, client.BackupRequest{Repository: repo, Full: true})
	check(t, err)
	if p := other.ApplicationProblemJSONDefault; p == nil || p.Type != "/problems/invalid/idempotency-key" {
		t.Errorf("another body with the same key: %s", other.Status())
	}
}
