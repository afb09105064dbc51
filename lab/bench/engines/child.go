// Package engines runs the engines that are compared: each step is one or more child processes, of which the kernel
// says what they used.
//
// It measures and judges nothing itself. Its invariant: an engine touches nothing outside its own directory, caches and
// configuration included, and works encrypted.
package engines

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Usage is what child processes used.
type Usage struct {
	Wall time.Duration
	CPU  time.Duration // user and system
	RSS  int64         // the largest of them at its peak, in bytes
}

// Plus is what both used, one after the other.
func (u Usage) Plus(v Usage) Usage {
	return Usage{Wall: u.Wall + v.Wall, CPU: u.CPU + v.CPU, RSS: max(u.RSS, v.RSS)}
}

// child is one call of an engine's program.
type child struct {
	dir  string
	env  []string
	args []string
}

// run waits for the child and returns what it printed and used. The kernel counts this process's size at the time of
// the fork into the child's peak, so this process has to be small.
func (c child) run(ctx context.Context) ([]byte, Usage, error) {
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}, c.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	u := Usage{Wall: time.Since(start)}
	if cmd.ProcessState != nil {
		if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			u.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano())
			u.RSS = r.Maxrss << 10
		}
	}
	if err != nil {
		text := bytes.TrimSpace(stderr.Bytes())
		return nil, u, fmt.Errorf("%s %v: %w: %s", filepath.Base(c.args[0]), c.args[1:], err, text[max(0, len(text)-1500):])
	}
	return stdout.Bytes(), u, nil
}

// all runs children one after the other and sums what they used.
func all(ctx context.Context, children ...child) (sum Usage, err error) {
	for _, c := range children {
		_, u, err := c.run(ctx)
		sum = sum.Plus(u)
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// treeBytes sums the sizes of the files below a directory.
func treeBytes(dir string) (n int64, err error) {
	err = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// Bare runs `cairn-lab bench bare`.
func Bare(ctx context.Context, program string, args []string) (Usage, error) {
	return all(ctx, child{args: append([]string{program, "bench", "bare"}, args...)})
}
