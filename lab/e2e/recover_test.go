package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// The appliance is destroyed, database, keys and configuration, and is brought back by one command from the repository and a copy
// of its key: the disks of a restore are those that were frozen, bit for bit, and the next backup goes on incrementally.
func TestDestroyedApplianceIsRecovered(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "lost", Rate: -1, Disks: []kvmlab.Disk{{MiB: 64, Fill: 8 << 20}, {MiB: 32}}})
	place, key := filepath.Join(t.TempDir(), "vault"), filepath.Join(t.TempDir(), "vault.key")
	vault := s.repository("vault", place)
	s.write(10)
	want, err := s.guest.Hashes(t.Context()) // it writes only when told to
	if err != nil {
		t.Fatal(err)
	}
	point := s.backup(s.vmID, vault.ID, nil)
	command(t, "cp", vault.KeyFile, key)

	// The last change is acknowledged and the process killed at once, started again, and then everything is gone.
	var rule client.Policy
	s.must("POST", "/policies", map[string]any{"name": "gold", "filter": "name = " + s.guest.Name, "schedule": "22:00", "repository": vault.ID}, &rule)
	s.kill()
	s.start()
	s.wait("the configuration to be saved", func() bool {
		out, err := s.recoverInto(s.data, "--repository", place, "--key", key, "--list")
		return err == nil && strings.Contains(out, "1 policies")
	})
	s.kill()
	if out, err := s.recoverInto(s.data, "--repository", place, "--key", key); err == nil || !strings.Contains(out, "not empty") {
		t.Errorf("into a data directory that is in use: %v\n%s", err, out)
	}
	if err := os.RemoveAll(s.data); err != nil {
		t.Fatal(err)
	}
	out, err := s.recoverInto(s.data, "--repository", place, "--key", key)
	if err != nil {
		t.Fatalf("recover: %v\n%s", err, out)
	}
	t.Logf("cairnd recover printed:\n%s", out)

	s.start()
	var app client.Appliance
	s.must("GET", "/appliance", nil, &app) // with the token of before
	if app.State != client.ApplianceHeld || app.Incarnation != 2 {
		t.Errorf("appliance = %+v, want held, the second incarnation", app)
	}
	var again client.Policy
	s.must("GET", "/policies/"+rule.ID, nil, &again)
	if again.Name != rule.Name || again.Filter != rule.Filter {
		t.Errorf("policy = %+v, was %+v", again, rule)
	}
	name := s.guest.Name + "-new"
	s.restore(map[string]any{"restore_point": point.ID, "mode": "new", "name": name})
	restored, err := s.lab.Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	disks, err := restored.Disks(t.Context())
	if err != nil || len(disks) != len(want) {
		t.Fatalf("restored disks %v, %v; want %d", disks, err, len(want))
	}
	for target, image := range disks {
		got, err := s.lab.HashImage(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		if got != want[target] {
			t.Errorf("%s is not what was frozen", target)
		}
	}
	s.remove(name)
	s.must("POST", "/appliance/resume", nil, &app)
	if app.State != client.ApplianceActive {
		t.Errorf("appliance is %s after it was resumed", app.State)
	}
	s.write(3)
	if next := s.backup(s.vmID, vault.ID, nil); next.Disks[0].Mode != "incremental" {
		t.Errorf("the next backup read %s: %s", next.Disks[0].Mode, next.Disks[0].FullReason)
	}
	s.noLeftovers()
}

// recoverInto runs `cairnd recover`.
func (s *scene) recoverInto(data string, args ...string) (string, error) {
	s.t.Helper()
	out, err := exec.CommandContext(s.t.Context(), cairndBinary, append([]string{"recover", "--data", data}, args...)...).CombinedOutput()
	return string(out), err
}
