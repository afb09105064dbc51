package ovirt

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/datamover/transport/hotadd"
	imageiotransport "github.com/cairn-backup/cairn/datamover/transport/imageio"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/hypervisortest"
	"github.com/cairn-backup/cairn/internal/nocloud"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// contentOf reads what a disk holds now, past the driver.
func contentOf(t testing.TB, e *ovirtsim.Engine, disk string) []byte {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	volume, err := e.ActiveVolume(ctx, disk)
	if err != nil {
		t.Fatal(err)
	}
	p, err := e.ReadVolume(ctx, volume)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func openSource(ctx context.Context, x hypervisors.Export) (hypervisors.FrozenDisk, error) {
	return imageiotransport.Options{}.OpenSource(ctx, x)
}

func fixtureOf(t *testing.T, e *ovirtsim.Engine, d *Driver) hypervisortest.Fixture {
	write := func(t testing.TB) {
		if err := e.Write(context.WithoutCancel(t.Context()), webID, 3); err != nil {
			t.Error(err)
		}
	}
	guest, err := e.Guest(t.Context(), moverID)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.qcow2")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", file, "64M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return hypervisortest.Fixture{
		MoverImage: hypervisors.MoverRequest{
			Image: bytes.NewReader(image), ImageBytes: int64(len(image)), Seed: nocloud.Seed("i", "n", []byte("cairn: {}\n")),
			Datastore: "data1", Network: "Default/ovirtmgmt/ovirtmgmt", MemoryBytes: 256 << 20, CPUs: 1,
		},
		Driver: d, Running: webID, Stopped: archiveID, Mover: moverID, NoSuchVM: noSuchID, Agent: true, OwnSerials: true, Write: write,
		Background: func(t testing.TB) func() {
			ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					if err := e.Write(context.WithoutCancel(ctx), webID, 1); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			return func() { cancel(); <-done }
		},
		Content: func(t testing.TB, _, disk string) []byte { return contentOf(t, e, disk) },
		Remove: func(t testing.TB, vm string) {
			if err := d.conn.Remove(context.WithoutCancel(t.Context()), "remove VM", vm, "/vms/"+vm); err != nil {
				t.Error(err)
			}
		},
		RemoveDisk: func(t testing.TB, disk string) {
			if err := d.conn.Remove(context.WithoutCancel(t.Context()), "remove disk", disk, "/disks/"+disk); err != nil {
				t.Error(err)
			}
		},
		OpenSource: func(ctx context.Context, x hypervisors.Export) (hypervisors.FrozenDisk, error) {
			if x.Transport == hypervisors.TransportHotadd {
				return hotadd.Options{System: guest}.OpenSource(ctx, x)
			}
			return openSource(ctx, x)
		},
		OpenTarget: func(ctx context.Context, x hypervisors.Export) (hypervisors.TargetDisk, error) {
			if x.Transport == hypervisors.TransportHotadd {
				return hotadd.Options{System: guest}.OpenTarget(ctx, x)
			}
			return imageiotransport.Options{}.OpenTarget(ctx, x)
		},
	}
}

// TestConformance runs the driver suite against the simulated engine.
func TestConformance(t *testing.T) {
	site := testSite(true)
	site.DuplicateMACs = true // the suite keeps the addresses of a VM that is still there
	e := startEngine(t, ovirtsim.Config{Site: site})
	d := openDriver(t, e)
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Fixture { return fixtureOf(t, e, d) })
}
