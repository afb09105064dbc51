package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/internal/locked"
)

// patience is far more than any single step takes here; it only bounds a test that hangs.
var patience = 3 * time.Minute

// Built once by TestMain, cairnd with the tag faultpoints.
var cairndBinary, moverBinary string

func TestMain(m *testing.M) {
	if os.Getenv("CAIRN_LAB") != "1" {
		os.Exit(m.Run()) // each test skips by itself
	}
	if os.Getenv("CAIRN_SOAK") == "1" {
		patience = 20 * time.Minute // whole Debian systems are started
	}
	os.Exit(runWithBinary(m))
}

func runWithBinary(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cairn-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cairndBinary = filepath.Join(dir, "cairnd")
	build := exec.Command("go", "build", "-tags", "faultpoints", "-o", cairndBinary, "github.com/cairn-backup/cairn/cmd/cairnd")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build cairnd: %v\n%s", err, out)
		return 1
	}
	moverBinary = filepath.Join(dir, "cairn-mover")
	build = exec.Command("go", "build", "-o", moverBinary, "github.com/cairn-backup/cairn/cmd/cairn-mover")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build cairn-mover: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv("CAIRN_LAB") != "1" {
		t.Skip("needs root, libvirt and QEMU: set CAIRN_LAB=1")
	}
}

// appliance is a cairnd process and a client of it. It survives kills: start may be called again on the same data.
type appliance struct {
	t     *testing.T
	data  string // its data directory
	token string

	cmd        *exec.Cmd
	exited     chan struct{}
	addr       string // of its API
	moversAddr string // where it listens for movers
	http       *http.Client
	log        *locked.Buffer
}

// newAppliance starts cairnd on an empty data directory and makes the first administrator.
func newAppliance(t *testing.T) *appliance {
	t.Helper()
	a := &appliance{t: t, data: t.TempDir(), log: &locked.Buffer{}}
	t.Cleanup(func() {
		a.stop()
		if t.Failed() {
			t.Logf("cairnd's log:\n%s", tail(a.log.String(), 6000))
		}
	})
	a.start()
	var setup []string // comes a few lines after the address
	a.wait("the set-up token", func() bool {
		setup = regexp.MustCompile(`(?i)set-?up token:?\s+(\S+)\n`).FindStringSubmatch(a.log.String())
		return setup != nil
	})
	var issued client.IssuedToken
	a.must(http.MethodPost, "/setup", map[string]any{"token": setup[1], "username": "admin", "password": "correct horse battery"}, &issued)
	a.token = issued.Secret
	return a
}

// start starts cairnd with extra environment and waits until it answers.
func (a *appliance) start(env ...string) {
	a.t.Helper()
	a.cmd = exec.Command(cairndBinary, "--data", a.data, "--listen", "127.0.0.1:0", "--movers", "127.0.0.1:0")
	a.cmd.Env = append(os.Environ(), env...)
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := a.cmd.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	a.cmd.Stderr = a.log
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	address := make(chan [2]string, 1)
	go func() {
		scanner := bufio.NewScanner(stdout)
		listening := regexp.MustCompile(`^(API|movers): +(?:https://)?(127\.0\.0\.1:\d+)$`)
		var at [2]string
		for scanner.Scan() {
			fmt.Fprintln(a.log, scanner.Text())
			switch m := listening.FindStringSubmatch(scanner.Text()); {
			case m == nil:
			case m[1] == "API":
				at[0] = m[2]
			default:
				at[1] = m[2]
				address <- at
			}
		}
	}()
	a.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(a.cmd, a.exited)
	select {
	case at := <-address:
		a.addr, a.moversAddr = at[0], at[1]
	case <-a.exited:
		a.t.Fatalf("cairnd ended at once:\n%s", a.log.String())
	case <-time.After(patience):
		a.t.Fatalf("cairnd printed no address:\n%s", a.log.String())
	}
	a.http = &http.Client{Timeout: patience, Transport: &http.Transport{
		// The test speaks to the process it started itself, on loopback.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec
	}}
	a.wait("cairnd to be ready", func() bool {
		resp, err := a.http.Get("https://" + a.addr + "/api/v1/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// kill ends cairnd by SIGKILL and waits for its end.
func (a *appliance) kill() {
	_ = a.cmd.Process.Kill()
	<-a.exited
}

// stop ends cairnd gracefully.
func (a *appliance) stop() {
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.exited:
	case <-time.After(patience):
		a.t.Error("cairnd did not stop on SIGTERM")
		a.kill()
	}
	a.cmd = nil
}

// problem is an answer that is not a success.
type problem struct {
	client.Problem
	status int
}

func (p *problem) Error() string {
	b, _ := json.Marshal(p.Problem)
	return fmt.Sprintf("%d %s", p.status, b)
}

// call makes a request; out may be nil. An answer of 400 and above is a *problem.
func (a *appliance) call(method, path string, body, out any) error {
	a.t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			a.t.Fatal(err)
		}
		reader = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, "https://"+a.addr+"/api/v1"+path, reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if method == "DELETE" {
		req.Header.Set("If-Match", "*") // whatever it is by now
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		p := &problem{status: resp.StatusCode}
		if err := json.Unmarshal(raw, &p.Problem); err != nil {
			return fmt.Errorf("%s %s: %d is not problem+json: %q", method, path, resp.StatusCode, raw)
		}
		return p
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

func (a *appliance) must(method, path string, body, out any) {
	a.t.Helper()
	if err := a.call(method, path, body, out); err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// wait polls until done says so; when patience ends it does what is given for that, and fails the test.
func (a *appliance) wait(what string, done func() bool, inVain ...func()) {
	a.t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			for _, f := range inVain {
				f()
			}
			a.t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (a *appliance) connect(name, uri string) client.Connection {
	a.t.Helper()
	var c client.Connection
	a.must(http.MethodPost, "/connections", map[string]any{"name": name, "platform": "kvm", "address": uri}, &c)
	return c
}

func (a *appliance) repository(name, path string) client.Repository {
	a.t.Helper()
	var r client.Repository
	a.must(http.MethodPost, "/repositories", map[string]any{"name": name, "path": path}, &r)
	return r
}

// vm returns the VM of a name from the inventory, after reading it again.
func (a *appliance) vm(connection, name string) client.VM {
	a.t.Helper()
	a.must(http.MethodPost, "/connections/"+connection+"/refresh", nil, nil)
	var list client.VMList
	a.must(http.MethodGet, "/vms?connection="+connection+"&name="+name, nil, &list)
	for _, vm := range list.Items {
		if vm.Name == name {
			return vm
		}
	}
	a.t.Fatalf("VM %s is not in the inventory", name)
	return client.VM{}
}

func (a *appliance) startBackup(vm, repository string, more map[string]any) (client.Run, error) {
	a.t.Helper()
	body := map[string]any{"repository": repository}
	for k, v := range more {
		body[k] = v
	}
	var run client.Run
	err := a.call(http.MethodPost, "/vms/"+vm+"/backup", body, &run)
	return run, err
}

// backup runs a backup to its end, which must be a success (or a success with warnings).
func (a *appliance) backup(vm, repository string, more map[string]any) client.RestorePoint {
	a.t.Helper()
	run, err := a.startBackup(vm, repository, more)
	if err != nil {
		a.t.Fatalf("start backup: %v", err)
	}
	return a.point(a.ended(run.ID, client.StateSucceeded, client.StateWarning))
}

// point returns the restore point that a run made.
func (a *appliance) point(run client.Run) client.RestorePoint {
	a.t.Helper()
	var p client.RestorePoint
	a.must(http.MethodGet, "/restore-points/"+run.Tasks[0].RestorePointID, nil, &p)
	return p
}

func (a *appliance) run(id string) client.Run {
	a.t.Helper()
	var run client.Run
	a.must(http.MethodGet, "/runs/"+id, nil, &run)
	return run
}

func over(s client.State) bool {
	return s != client.StateQueued && s != client.StateRunning
}

// ended waits for a run's end, which must be one of the states wanted.
func (a *appliance) ended(id string, want ...client.State) client.Run {
	a.t.Helper()
	var run client.Run
	a.wait("run "+id+" to end", func() bool {
		run = a.run(id)
		return over(run.State)
	})
	for _, w := range want {
		if run.State == w {
			return run
		}
	}
	b, _ := json.MarshalIndent(run, "", "  ")
	a.t.Fatalf("run ended as %s, want %v:\n%s", run.State, want, b)
	return run
}

func (a *appliance) startRestore(body map[string]any) (client.Run, error) {
	a.t.Helper()
	var run client.Run
	err := a.call(http.MethodPost, "/restores", body, &run)
	return run, err
}

// plan says what a restore would make.
func (a *appliance) plan(body map[string]any) client.RestorePlan {
	a.t.Helper()
	var outcome client.RestoreOutcome
	a.must("POST", "/restores", dry(body), &outcome)
	return outcome.Plan
}

// dry is a request that changes nothing.
func dry(body map[string]any) map[string]any {
	out := maps.Clone(body)
	out["dry_run"] = true
	return out
}

func (a *appliance) restore(body map[string]any) client.Run {
	a.t.Helper()
	run, err := a.startRestore(body)
	if err != nil {
		a.t.Fatalf("start restore: %v", err)
	}
	return a.ended(run.ID, client.StateSucceeded, client.StateWarning)
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
