// Package systemd holds the units of Cairn's services; here is only their test.
package systemd

import (
	"os/exec"
	"testing"

	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// TestExposure lets systemd judge what each service is still allowed to do. 20 is an exposure of 2.0, the most we take.
func TestExposure(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil && !kvmlab.Wanted() {
		t.Skip("systemd-analyze is not installed")
	}
	for _, unit := range []string{"cairn-mover.service", "cairnd.service"} {
		out, err := exec.Command(tool, "security", "--offline=true", "--threshold=20", unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", unit, err, out)
		}
		// The judge must be able to say no: one unit cannot be below nothing.
		if err := exec.Command(tool, "security", "--offline=true", "--threshold=1", unit).Run(); err == nil {
			t.Errorf("%s: systemd-analyze takes a threshold that no service can be under", unit)
		}
	}
}
