package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/appliance/httpapi"
)

// appliance is a cairnd in a process of its own, and the way to ask it.
type appliance struct {
	cmd    *exec.Cmd
	http   *http.Client
	url    string
	token  string
	stderr *strings.Builder
	asked  time.Time
}

// pace waits as long as the appliance lets a token ask that asks for long, so that no request is refused on a machine that is quick.
func (a *appliance) pace(ctx context.Context) error {
	wait := time.NewTimer(time.Until(a.asked.Add(time.Second / time.Duration(httpapi.DefaultRate.PerSecond))))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
	}
	a.asked = time.Now()
	return nil
}

const adminName, adminPassword = "admin", "correct horse battery"

// begin starts a program that serves, with the arguments given, and sets it up if it is new or else logs in.
func begin(ctx context.Context, data string, command []string) (_ *appliance, err error) {
	a := &appliance{cmd: exec.CommandContext(ctx, command[0], command[1:]...), stderr: &strings.Builder{}}
	a.cmd.Cancel = func() error { return a.cmd.Process.Signal(syscall.SIGTERM) }
	a.cmd.Stderr = a.stderr
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.end())
		}
	}()
	printed := make(chan [2]string)
	go func() { // until the process ends
		defer close(printed)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			label, text, _ := strings.Cut(lines.Text(), ":")
			printed <- [2]string{label, strings.TrimSpace(text)}
		}
	}()
	defer func() {
		go func() { // whatever else it prints
			for range printed {
			}
		}()
	}()
	for line := range printed {
		if line[0] == "API" {
			a.url = line[1] + api.BasePath
		}
		if line[0] == "CA fingerprint" {
			break
		}
	}
	pem, err := os.ReadFile(filepath.Join(data, "tls", "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("the appliance did not start: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	a.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}}
	var issued struct{ Secret string }
	err = a.call(ctx, "POST", "/login", map[string]string{"username": adminName, "password": adminPassword}, http.StatusOK, &issued)
	if err != nil {
		request := map[string]string{"token": setUpToken(printed), "username": adminName, "password": adminPassword}
		err = a.call(ctx, "POST", "/setup", request, http.StatusCreated, &issued)
	}
	a.token = issued.Secret
	return a, err
}

// setUpToken is what a new appliance prints last.
func setUpToken(printed <-chan [2]string) string {
	for line := range printed {
		if line[0] == "set-up token" {
			return line[1]
		}
	}
	return ""
}

// end stops the process and waits for it.
func (a *appliance) end() error {
	if a.http != nil {
		a.http.CloseIdleConnections()
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	if err := a.cmd.Wait(); err != nil {
		return fmt.Errorf("appliance: %w\n%s", err, a.stderr)
	}
	return nil
}

// call sends a request and reads the answer, which must have the status; v nil drops the body.
func (a *appliance) call(ctx context.Context, method, path string, body any, status int, v any) error {
	resp, err := a.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != status {
		return fmt.Errorf("%s %s: %s %s", method, path, resp.Status, answer)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(answer, v)
}

func (a *appliance) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = strings.NewReader(string(b))
	}
	url := a.url + path
	if path == "/metrics" { // the one that is not below the others
		url = strings.TrimSuffix(a.url, api.BasePath) + path
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	return a.http.Do(req)
}

// memory is the resident memory of the process, from its status file: RssAnon, as cached files are not its own.
func (a *appliance) memory() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, errors.New("the process does not say what memory it has")
}
