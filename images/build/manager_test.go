package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api/client"
)

// programs compiles commands as `make build` does, and returns their directory.
func programs(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-trimpath", "-o", dir + "/"}
	for _, n := range names {
		args = append(args, "github.com/cairn-backup/cairn/cmd/"+n)
	}
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return dir
}

// cli is the program cairn with a configuration of its own.
type cli struct{ program, config string }

func newCLI(t *testing.T, bin string) cli {
	return cli{program: filepath.Join(bin, "cairn"), config: filepath.Join(t.TempDir(), "config.yaml")}
}

// run runs cairn and decodes what it prints as JSON into result, where there is one.
func (c cli) run(t *testing.T, result any, args ...string) {
	t.Helper()
	if result != nil {
		args = append(args, "-o", "json")
	}
	cmd := exec.CommandContext(t.Context(), c.program, args...)
	cmd.Env = append(os.Environ(), "CAIRN_CONFIG="+c.config)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("cairn %s: %v: %s", strings.Join(args, " "), err, said.String())
	}
	if result == nil {
		return
	}
	if err := json.Unmarshal(out.Bytes(), result); err != nil {
		t.Fatalf("cairn %s: %v in %s", strings.Join(args, " "), err, out.String())
	}
}

// setUp makes the first administrator of an appliance, from what it prints at its first start.
func (c cli) setUp(t *testing.T, address, fingerprint, token string) {
	t.Helper()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("correct horse battery staple"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.run(t, nil, "setup", address, "--ca-fingerprint", fingerprint, "--token", token, "--user", "admin", "--password-file", password)
}

// manager is a real cairnd on this machine, set up, that guests reach at 10.0.2.2.
type manager struct {
	cli
	movers string // host:port for guests
}

// startManager starts one that ends with the test.
func startManager(t *testing.T) *manager {
	t.Helper()
	bin := programs(t, "cairnd", "cairn")
	m := &manager{cli: newCLI(t, bin)}
	log, err := os.Create(filepath.Join(t.TempDir(), "cairnd.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "cairnd"), "--data", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0", "--movers", "127.0.0.1:0")
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it has ended when it failed
		err := cmd.Wait()
		if err != nil || t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("cairnd (%v): %s", err, said)
		}
		_ = log.Close()
	})
	printed := map[string]string{}
	sc := bufio.NewScanner(out)
	for printed["set-up token"] == "" && sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		printed[key] = strings.TrimSpace(value)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // cairnd must never wait for a reader
	_, port, err := net.SplitHostPort(printed["movers"])
	if err != nil {
		t.Fatalf("cairnd printed %v", printed)
	}
	m.movers = net.JoinHostPort("10.0.2.2", port)
	m.setUp(t, printed["API"], printed["CA fingerprint"], printed["set-up token"])
	return m
}

// document returns the configuration of a new mover, with a token of its own.
func (m *manager) document(t *testing.T, name string) (document string, token client.MoverToken) {
	t.Helper()
	m.run(t, &token, "mover", "token", "--name", name)
	return fmt.Sprintf("#cloud-config\ncairn:\n  manager: %s\n  fingerprint: %s\n  token: %s\n  name: %s\n", m.movers, token.Fingerprint, token.Token, name), token
}

// awaitMover waits until a mover is in a state.
func (m *manager) awaitMover(t *testing.T, v *vm, name string, state client.MoverState) client.Mover {
	t.Helper()
	var all []client.Mover
	for end := time.Now().Add(bootTimeout); time.Now().Before(end); time.Sleep(time.Second) {
		m.run(t, &all, "mover", "list")
		for _, one := range all {
			if one.Name == name && one.State == state {
				return one
			}
		}
	}
	t.Fatalf("mover %s does not become %s: %+v; its machine said:\n%s", name, state, all, v.said())
	return client.Mover{}
}
