//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/datamover/control"
)

// TestStatus: the unit restarts a mover that failed, and not one that the manager has dismissed.
func TestStatus(t *testing.T) {
	if got := status(fmt.Errorf("stay connected: %w", control.ErrDismissed)); got != dismissed {
		t.Errorf("dismissed: status %d", got)
	}
	if got := status(errors.New("no disk")); got == dismissed || got == 0 {
		t.Errorf("failed: status %d", got)
	}
	unit, err := os.ReadFile("../../images/systemd/cairn-mover.service")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("\nRestartPreventExitStatus=%d\n", dismissed); !strings.Contains(string(unit), want) || !strings.Contains(string(unit), "\nRestart=always\n") {
		t.Errorf("the unit has no %q", want)
	}
}
