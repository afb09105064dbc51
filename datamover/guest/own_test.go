//go:build linux

package guest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
)

// TestPluggedDisksAreNotLookedAt has a disk of somebody else's plugged in for a transfer, as virtio-blk and as SCSI
// disk, that carries everything a mover looks for on its own.
func TestPluggedDisksAreNotLookedAt(t *testing.T) {
	id := stateOnDisk()
	for name, serial := range map[string]func(r root, dir string){
		"virtio-blk": func(r root, dir string) { write(t, r.path(dir+"/serial"), hypervisors.NewSerial()) },
		"scsi": func(r root, dir string) {
			s := hypervisors.NewSerial()
			write(t, r.path(dir+"/device/vpd_pg80"), "\x00\x80\x00"+string(rune(len(s)))+s)
		},
	} {
		r := root(t.TempDir())
		disk := func(name string) {
			gptDisk(t, r, name, id[:])
			write(t, r.path("sys/devices/"+name+"/size"), "100\n")
			write(t, r.path("sys/devices/"+name+"/"+name+"2/size"), "50\n")
			if err := os.Symlink(r.path("sys/devices/"+name), r.path("sys/class/block/"+name)); err != nil {
				t.Fatal(err)
			}
		}
		disk("sda")
		disk("sdb")
		serial(r, "sys/devices/sdb")
		if found, err := r.findState(); err != nil || cmp.Diff(found, []string{r.path("dev/sda2")}) != "" {
			t.Errorf("%s: state on %v, %v; want that of the machine's own disk", name, found, err)
		}
		want := []string{r.path("dev/sda"), r.path("dev/sda2")}
		if diff := cmp.Diff(want, r.blockDevices(own)); diff != "" {
			t.Errorf("%s: looked for seeds on (-want +got):\n%s", name, diff)
		}
	}
}

// TestConfigurationIsKept: what is attached to a mover that has its manager does not send it to another one.
func TestConfigurationIsKept(t *testing.T) {
	answers := []Config{{Name: "no manager yet"}, {Manager: "own:1"}, {Manager: "tenant:1"}}
	m := &machine{log: slog.New(slog.DiscardHandler), changed: make(chan struct{}, 1)}
	m.readConfig = func(context.Context) (Config, error) {
		if len(answers) == 0 {
			return Config{}, errors.New("read once more")
		}
		c := answers[0]
		answers = answers[1:]
		m.changed <- struct{}{}
		return c, nil
	}
	for range 2 {
		if got := m.configure(t.Context(), time.Minute); got.Manager != "own:1" {
			t.Errorf("the manager is %q, want own:1", got.Manager)
		}
	}
	if len(answers) != 1 {
		t.Errorf("%d answers are left, want 1", len(answers))
	}
}
