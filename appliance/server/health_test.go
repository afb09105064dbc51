package server

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
)

// TestHealthAsksTheApplianceOfTheSameConfiguration starts cairnd as a process would, and asks it as a container's health check does.
func TestHealthAsksTheApplianceOfTheSameConfiguration(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, []string{"--data", dir, "--listen", "127.0.0.1:0", "--movers", "none"}, env(), in, io.Discard, nil)
		_ = in.Close()
	}()
	port := ""
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if _, after, ok := strings.Cut(sc.Text(), "https://127.0.0.1:"); ok {
			port = after
		}
		if strings.HasPrefix(sc.Text(), "set-up token") {
			break // the last line: from now on it answers
		}
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if port == "" {
		t.Fatalf("cairnd does not say where it listens: %v", <-ended)
	}
	var said bytes.Buffer
	ask := func() error {
		return Run(t.Context(), []string{"health", "--data", dir, "--listen", "0.0.0.0:" + port}, env(), &said, io.Discard, nil)
	}
	if err := ask(); err != nil || said.String() != "ready\n" {
		t.Errorf("it says %q, %v", said.String(), err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := ask(); fault.KindOf(err) != fault.Transient {
		t.Errorf("a stopped appliance: %v", err)
	}
	err := Run(t.Context(), []string{"health", "--data", t.TempDir()}, env(), &said, io.Discard, nil)
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.NotFound || meaning == "" || advice == "" {
		t.Errorf("a data directory of nobody: %v", err)
	}
}
