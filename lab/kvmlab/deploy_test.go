package kvmlab_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/datamover/guest"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/nocloud"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// manager is as much of an appliance as a mover enrols with.
func manager(t *testing.T) (f *fleet.Fleet, fingerprint, port string) {
	t.Helper()
	dir := t.TempDir()
	c, err := catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(dir, "c.db"), KeyFile: filepath.Join(dir, "key")})
	if err != nil {
		t.Fatal(err)
	}
	authority, err := identity.OpenAuthority(filepath.Join(dir, "tls"), []string{pb.ManagerName})
	if err != nil {
		t.Fatal(err)
	}
	f = fleet.New(fleet.Options{Catalog: c, Authority: authority, Log: slog.New(slog.DiscardHandler), Version: "test"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := f.Server(authority.TLSConfig())
	go func() { done <- f.Serve(ctx, l, server) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return f, authority.Fingerprint(), port
}

// TestDeployedMoverEnrols makes a mover VM of the real image. It finds its manager by the seed, enrols by itself, and
// is the VM to which disks can be plugged.
func TestDeployedMoverEnrols(t *testing.T) {
	l := kvmlab.New(t, kvmlab.Options{Private: true})
	ctx := t.Context()
	f, fingerprint, port := manager(t)
	_, token, err := f.IssueToken(ctx, fleet.NewToken{Name: "mover1", Life: time.Hour, By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	document, err := guest.Config{Manager: net.JoinHostPort("10.0.2.2", port), Fingerprint: fingerprint, Token: token, Name: "mover1"}.Document()
	if err != nil {
		t.Fatal(err)
	}
	d := openDriver(t, l)
	image, err := os.ReadFile(kvmlab.MoverImage(t, "mover"))
	if err != nil {
		t.Fatal(err)
	}
	owe := func(context.Context, hypervisors.Owed) error { return nil }
	vm, err := d.DeployMover(ctx, hypervisors.MoverRequest{
		Tag: "deploy", Name: "mover1", Image: bytes.NewReader(image), ImageBytes: int64(len(image)),
		Seed: nocloud.Seed("deploy", "mover1", document), Datastore: l.Pool(), Network: "user", MemoryBytes: 512 << 20, CPUs: 1, Owe: owe,
	})
	if err != nil {
		t.Fatal(err)
	}
	removed := false
	defer func() {
		if err := d.RemoveMover(context.WithoutCancel(ctx), vm.ID); err != nil && !removed {
			t.Error(err)
		}
	}()
	mover := online(ctx, t, f)
	if mover.Name != "mover1" || mover.Facts.MachineUUID != vm.ID || !slices.Contains(mover.Facts.Transports, string(hypervisors.TransportHotadd)) {
		t.Errorf("mover %q enrolled: %+v, want that in VM %s, with hotadd", mover.Name, mover.Facts, vm.ID)
	}

	keepsToItself(t, l, f, image)

	source, err := l.Run(ctx, kvmlab.Spec{Name: "source", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 8}}})
	if err != nil {
		t.Fatal(err)
	}
	frozen, err := d.Freeze(ctx, hypervisors.FreezeRequest{VM: source.UUID, Tag: "frozen", Quiesce: hypervisors.QuiesceNever, Owe: owe})
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.Attach(ctx, hypervisors.AttachRequest{
		Mover: mover.Facts.MachineUUID, Tag: "frozen", Export: frozen.Info().Disks[0].Export, Serial: hypervisors.NewSerial(), Owe: owe,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveMover(ctx, vm.ID); err == nil || !strings.Contains(err.Error(), "plugged into it") {
		t.Errorf("remove a mover at work: %v", err)
	}
	if err := a.Detach(ctx); err != nil {
		t.Error(err)
	}
	if err := frozen.Release(ctx); err != nil {
		t.Error(err)
	}
	if err := d.RemoveMover(ctx, vm.ID); err != nil {
		t.Error(err)
	}
	removed = true
	if left, err := d.Leftovers(ctx); err != nil || len(left) > 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
}

// keepsToItself restarts the mover's machine while disks are plugged in that have everything a mover looks for on its own: one is
// another mover's, one a seed that names another manager. Their serial numbers are as oVirt gives them, those of the disks. The
// mover comes back as who it was.
func keepsToItself(t *testing.T, l *kvmlab.Lab, f *fleet.Fleet, image []byte) {
	t.Helper()
	ctx := t.Context()
	before := online(ctx, t, f)
	document, err := guest.Config{Manager: "192.0.2.1:8441", Fingerprint: strings.Repeat("0", 64), Token: "theirs", Name: "theirs"}.Document()
	if err != nil {
		t.Fatal(err)
	}
	for i, content := range [][]byte{image, nocloud.Seed("theirs", "theirs", document)} {
		format := []string{"qcow2", "raw"}[i]
		file, doc := filepath.Join(l.PoolDir(), "another."+format), filepath.Join(l.Dir(), "another."+format+".xml")
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		xml := `<disk type='file' device='disk'><driver name='qemu' type='` + format + `'/><source file='` + file + `'/><target dev='sd` + []string{"y", "z"}[i] + `' bus='scsi'/>` +
			`<address type='drive' controller='0' bus='0' target='7' unit='` + strconv.Itoa(3+i) + `'/><serial>8b6f3f0e-7a51-4f3c-9d2e-0c8f4f1f0a0` + strconv.Itoa(i) + `</serial></disk>`
		if err := os.WriteFile(doc, []byte(xml), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Virsh(ctx, "attach-device", "cairn-mover1", doc, "--live"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := l.Virsh(context.WithoutCancel(ctx), "detach-device", "cairn-mover1", doc, "--live"); err != nil {
				t.Error(err)
			}
		}()
	}
	if _, err := l.Virsh(ctx, "reset", "cairn-mover1"); err != nil {
		t.Fatal(err)
	}
	for after := online(ctx, t, f); !after.Since.After(before.Since); after = online(ctx, t, f) {
		if after.ID != before.ID {
			t.Fatalf("mover %s has come in place of %s", after.ID, before.ID)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the mover did not come back")
		}
	}
}

// online waits for the first mover that is.
func online(ctx context.Context, t *testing.T, f *fleet.Fleet) fleet.Info {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		all, err := f.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.State == fleet.Online {
				return m
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("no mover is online: %+v", all)
		}
	}
}
