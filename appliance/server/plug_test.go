package server

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TestFallBack has transports fail, with and without another one allowed. There is the built-in mover only, which has NBD.
func TestFallBack(t *testing.T) {
	dir := t.TempDir()
	c, err := catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(dir, "c.db"), KeyFile: filepath.Join(dir, "key")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	authority, err := identity.OpenAuthority(filepath.Join(dir, "tls"), []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	m := newMover(fleet.New(fleet.Options{Catalog: c, Authority: authority, Log: log}), c, log)
	broken := fault.New(fault.Transient, "read disk", "vda", "the host does not answer")
	for name, tt := range map[string]struct {
		asked    string
		fallback bool
		fails    error
		works    int    // how often the work is begun
		err      string // "" is success
		warned   string
	}{
		"works":                        {"", true, nil, 1, "", ""},
		"fails":                        {"", false, broken, 1, "does not answer", ""},
		"fails, and is the only one":   {"", true, broken, 1, "nbd: it has failed: read disk vda: the host does not answer", "could not go by nbd"},
		"fails, and was asked for":     {"network", true, broken, 1, "nbd: it has failed", "could not go by nbd"},
		"asked for what there is not":  {"hotadd", false, nil, 0, "hotadd: no mover VM; nbd: hotadd was asked for", ""},
		"may be another":               {"hotadd", true, nil, 1, "", "cannot go by hotadd, which was asked for"},
		"is damaged in the repository": {"", true, fault.New(fault.Corrupt, "", "", "a chunk is damaged"), 1, "a chunk is damaged", ""},
		"is still plugged in":          {"", true, errors.Join(errStillPlugged, broken), 1, "still plugged", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var warnings []string
			o := order{
				id: "x", disk: "vda", fallback: tt.fallback, plugs: jobs.Plugs{None: "no mover VM"},
				wish: fleet.Wish{Transport: tt.asked, Export: hypervisors.Export{Transport: hypervisors.TransportNBD, Network: "unix", Address: "/x"}},
				tell: func(context.Context, string, ...string) {}, progress: func(catalog.DiskProgress) {},
				warn: func(_ context.Context, message string, _ ...string) { warnings = append(warnings, message) },
			}
			works := 0
			err := m.do(t.Context(), o, func(agent.Mover, string, hypervisors.Export, func(catalog.DiskProgress)) error {
				works++
				return tt.fails
			})
			if works != tt.works || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%d works, %v; want %d, %q", works, err, tt.works, tt.err)
			}
			got := strings.Join(warnings, "\n")
			if (got == "") != (tt.warned == "") || !strings.Contains(got, tt.warned) || len(warnings) > 1 {
				t.Errorf("warnings %q, want %q", got, tt.warned)
			}
		})
	}
}

// stuck is a disk that a mover does not let go of.
type stuck struct{ hypervisors.Attached }

// Detach implements hypervisors.Attached.
func (stuck) Detach(context.Context) error { return errors.New("the guest does not answer") }

// TestUnplugThatFails is told, does not spoil a transfer that has succeeded, and keeps one that has not from being begun
// again on a disk that a mover may still work on.
func TestUnplugThatFails(t *testing.T) {
	told := 0
	o := order{disk: "vda", tell: func(context.Context, string, ...string) { told++ }}
	if err := o.unplug(t.Context(), stuck{}, "m1", nil); err != nil || told != 1 {
		t.Errorf("after a transfer that has succeeded: %v, told %d times", err, told)
	}
	broken := errors.New("broken")
	if err := o.unplug(t.Context(), stuck{}, "m1", broken); !errors.Is(err, broken) || !errors.Is(err, errStillPlugged) || told != 2 {
		t.Errorf("after one that has failed: %v, told %d times", err, told)
	}
}

// TestOpensWhereTheDiskIsNow gives a mover the export as it is when the transfer begins: plugging the disk in may have
// moved it.
func TestOpensWhereTheDiskIsNow(t *testing.T) {
	was := hypervisors.Export{Transport: hypervisors.TransportNBD, Address: "before"}
	for want, now := range map[string]func() hypervisors.Export{
		"before": nil,
		"after": func() hypervisors.Export {
			return hypervisors.Export{Transport: hypervisors.TransportNBD, Address: "after"}
		},
	} {
		e, _, err := order{wish: fleet.Wish{Export: was}, now: now}.open(t.Context(), fleet.Choice{Transport: hypervisors.TransportNBD})
		if err != nil || e.Address != want {
			t.Errorf("opened at %q, %v; want %q", e.Address, err, want)
		}
	}
}
