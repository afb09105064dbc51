package kvmlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// run runs a program and returns what it printed; its error carries what it complained about.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		words := strings.TrimSpace(bad.String() + out.String())
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, words)
	}
	return out.String(), nil
}

// Virsh runs virsh on the lab's connection and returns what it printed.
func (l *Lab) Virsh(ctx context.Context, args ...string) (string, error) {
	return virsh(ctx, l.daemon.URI, args...)
}

func virsh(ctx context.Context, uri string, args ...string) (string, error) {
	out, err := run(ctx, "virsh", append([]string{"-q", "-c", uri}, args...)...)
	return strings.TrimSpace(out), err
}

// poll calls try until it says that it is done, every step, until ctx ends.
func poll(ctx context.Context, step time.Duration, what string, try func() (bool, error)) error {
	var last error
	for {
		done, err := try()
		if done {
			return err
		}
		last = err
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for %s: %w", what, ctx.Err()), last)
		case <-time.After(step):
		}
	}
}
