package kvmlab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
)

// GuestStatus is what the guest says of itself.
type GuestStatus struct {
	ID     string           `json:"id"`
	Error  string           `json:"error"`  // why the guest stopped writing, such as a disk that failed its check
	Round  uint64           `json:"round"`  // rounds written so far
	Boot   []pattern.Report `json:"boot"`   // what the check at boot found; empty for disks that were blank
	Now    []pattern.Report `json:"now"`    // what Check found
	Uptime string           `json:"uptime"` // seconds
	// Why a mover could not open a disk: kind, text and explanation of the error.
	Kind, Fault, Meaning, Advice string
}

// guestTimeout is how long a guest may take to boot and answer on a busy machine.
const guestTimeout = 3 * time.Minute

// Status waits until the guest is up and returns what it says. A content that failed its check is an error.
func (v *VM) Status(ctx context.Context) (GuestStatus, error) { return v.command(ctx, "status") }

// Write makes the guest write rounds now and returns when they are durable.
func (v *VM) Write(ctx context.Context, rounds int) (GuestStatus, error) {
	return v.command(ctx, fmt.Sprintf("write %d", rounds))
}

// SetRate sets how many rounds a second the guest writes by itself; 0 stops it.
func (v *VM) SetRate(ctx context.Context, rate float64) error {
	_, err := v.command(ctx, fmt.Sprintf("rate %g", rate))
	return err
}

// Check makes the guest read its disks back and compare.
func (v *VM) Check(ctx context.Context) (GuestStatus, error) { return v.command(ctx, "check") }

// command sends one line over the virtio port and waits for the answer.
func (v *VM) command(ctx context.Context, words string) (GuestStatus, error) {
	var st GuestStatus
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	path, err := v.port(ctx, "cairn.lab.0")
	if err != nil {
		return st, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return st, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	id := randomHex(4)
	if _, err := fmt.Fprintf(conn, "%s %s\n", id, words); err != nil {
		return st, err
	}
	for in := bufio.NewScanner(conn); in.Scan(); {
		if json.Unmarshal(in.Bytes(), &st) != nil || st.ID != id {
			st = GuestStatus{} // the rest of an earlier answer
			continue
		}
		if st.Error != "" {
			return st, fmt.Errorf("guest of %s: %s", v.Name, st.Error)
		}
		return st, nil
	}
	return st, errors.Join(fmt.Errorf("guest of %s gave no answer to %q; it printed:\n%s", v.Name, words, v.printed()), ctx.Err())
}

// port returns the host's end of one of the guest's virtio ports.
func (v *VM) port(ctx context.Context, name string) (string, error) {
	d, err := v.describe(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range d.Channels {
		if c.Target.Name == name && c.Source.Path != "" {
			return v.lab.daemon.host(c.Source.Path), nil
		}
	}
	return "", fmt.Errorf("VM %s has no port to its guest; it is off, or no guest of the lab", v.Name)
}

// printed returns the end of what the guest printed.
func (v *VM) printed() string {
	b, err := os.ReadFile(v.Serial)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// WaitSerial waits until a line of the guest's console matches and returns it.
func (v *VM) WaitSerial(ctx context.Context, re *regexp.Regexp) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	var found string
	err := poll(ctx, 50*time.Millisecond, fmt.Sprintf("a line like %q", re), func() (bool, error) {
		b, err := os.ReadFile(v.Serial)
		for line := range strings.Lines(string(b)) {
			if re.MatchString(line) {
				found = strings.TrimSpace(line)
				return true, nil
			}
		}
		return false, err
	})
	return found, err
}
