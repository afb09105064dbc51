package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/datamover/transfer"
	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// repository makes and opens a repository in a directory.
func repository(t *testing.T) *store.Repository {
	t.Helper()
	dir := t.TempDir()
	key, err := store.NewKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := file.Create(filepath.Join(dir, "repository"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Create(t.Context(), b, key, store.CreateOptions{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	r, err := store.Open(t.Context(), b, key, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// bench is a repository with a mover.
type bench struct {
	t          *testing.T
	repository *store.Repository
	access     agent.Access
	mover      *agent.Local
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, repository: repository(t)}
	b.mover = agent.NewLocal(func(_ context.Context, ticket string) (agent.Access, error) {
		if ticket != "good" {
			return agent.Access{}, fault.New(fault.Denied, "use ticket", "", "it is not known")
		}
		return b.access, nil
	})
	b.mover.Transports[hypervisors.TransportNBD] = nbdtransport.Options{Backoff: time.Millisecond, Attempts: 3}
	return b
}

// backup makes a restore point of one disk.
func (b *bench) backup(e hypervisors.Export, parent *store.ImageRef) agent.BackupResult {
	b.t.Helper()
	s, err := b.repository.Begin(b.t.Context(), store.SessionOptions{Series: "test/vm", Writer: "test"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.access = agent.Access{Session: agent.SessionOf(s)}
	res, err := b.mover.Backup(b.t.Context(), agent.BackupTask{ID: "tr_1", Disk: "vda", Ticket: "good", Export: e, Parent: parent}, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := s.Publish(b.t.Context(), store.Manifest{Series: "test/vm", Time: time.Now(), Images: []store.NamedImage{{Name: "vda", Ref: res.Image}}}); err != nil {
		b.t.Fatal(err)
	}
	return res
}

// content reads an image.
func (b *bench) content(ref store.ImageRef) []byte {
	b.t.Helper()
	i, err := b.repository.OpenImage(b.t.Context(), ref)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = i.Close() }()
	p := make([]byte, i.Size())
	if n, err := i.ReadAt(p, 0); n != len(p) || err != nil && !errors.Is(err, io.EOF) {
		b.t.Fatalf("read image: %d, %v", n, err)
	}
	return p
}

func nbdcopy(t *testing.T, p *nbdtest.Process) []byte {
	t.Helper()
	f := filepath.Join(t.TempDir(), "copy")
	nbdtest.Run(t, "nbdcopy", nbdtest.URI(p.Network, p.Address, "d"), f)
	b, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func export(p *nbdtest.Process, dirty string) hypervisors.Export {
	return hypervisors.Export{Transport: hypervisors.TransportNBD, Network: p.Network, Address: p.Address, Name: "d", DirtyContext: dirty}
}

func TestFullIncrementalRestore(t *testing.T) {
	nbdtest.Require(t, "qemu-img", "qemu-io", "qemu-nbd", "nbdcopy")
	b := newBench(t)
	f := filepath.Join(t.TempDir(), "disk.qcow2")
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", f, "40M")
	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "-c", "write -P 2 20M 4M", f)
	nbdtest.Run(t, "qemu-img", "bitmap", "--add", f, "b")
	p := nbdtest.QemuNBD(t, "-x", "d", "-f", "qcow2", "-r", "-B", "b", f)
	// without a parent nothing may be skipped as unchanged, although the export tracks changes
	full := b.backup(export(p, "qemu:dirty-bitmap:b"), nil)
	want := nbdcopy(t, p)
	if full.BytesRead != 8*mib || !bytes.Equal(b.content(full.Image), want) {
		t.Errorf("full: %d bytes read, image equal: %v", full.BytesRead, bytes.Equal(b.content(full.Image), want))
	}
	p.Kill()

	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 64k", "-c", "write -z 21M 1M", "-c", "write -P 4 39M 1M", f)
	p = nbdtest.QemuNBD(t, "-x", "d", "-f", "qcow2", "-r", "-B", "b", f)
	inc := b.backup(export(p, "qemu:dirty-bitmap:b"), &full.Image)
	want = nbdcopy(t, p)
	if inc.BytesRead != mib+64<<10 || !bytes.Equal(b.content(inc.Image), want) {
		t.Errorf("incremental: %d bytes read, image equal: %v", inc.BytesRead, bytes.Equal(b.content(inc.Image), want))
	}
	if inc.Stats.BytesWritten != 2*mib+64<<10 {
		t.Errorf("incremental: the store was given %d bytes, want 1 MiB of zeros and the changed data", inc.Stats.BytesWritten)
	}

	raw := filepath.Join(t.TempDir(), "restored")
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "raw", raw, "40M")
	target := nbdtest.QemuNBD(t, "-x", "d", "-f", "raw", raw)
	b.access = agent.Access{Repository: agent.RepositoryOf(b.repository)}
	var reports []transfer.Progress
	res, err := b.mover.Restore(t.Context(), agent.RestoreTask{ID: "tr_2", Disk: "vda", Ticket: "good", Image: inc.Image, Export: export(target, ""), Verify: true},
		func(p transfer.Progress) { reports = append(reports, p) })
	if err != nil || !res.Verified {
		t.Fatalf("Restore = %+v, %v", res, err)
	}
	got, err := os.ReadFile(raw)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the restored disk differs, %v", err)
	}
	if len(reports) < 2 || !reports[len(reports)-1].Verifying || reports[len(reports)-1].BytesScanned != 40*mib {
		t.Errorf("reports %+v", reports)
	}
}

func TestTicketsAndExportsAreChecked(t *testing.T) {
	b := newBench(t)
	p := nbdtest.NBDKit(t, "memory", "1M")
	s, err := b.repository.Begin(t.Context(), store.SessionOptions{Series: "test/vm", Writer: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Abort(context.WithoutCancel(t.Context())) }()
	san := export(p, "")
	san.Transport = "san"
	tests := map[string]struct {
		access agent.Access
		ticket string
		export hypervisors.Export
		want   [2]fault.Kind // backup, restore
	}{
		"unknown ticket":    {agent.Access{Session: agent.SessionOf(s), Repository: agent.RepositoryOf(b.repository)}, "bad", export(p, ""), [2]fault.Kind{fault.Denied, fault.Denied}},
		"the other right":   {agent.Access{}, "good", export(p, ""), [2]fault.Kind{fault.Denied, fault.Denied}},
		"unknown transport": {agent.Access{Session: agent.SessionOf(s), Repository: agent.RepositoryOf(b.repository)}, "good", san, [2]fault.Kind{fault.Unsupported, fault.Unsupported}},
	}
	for name, tt := range tests {
		b.access = tt.access
		if _, err := b.mover.Backup(t.Context(), agent.BackupTask{Ticket: tt.ticket, Export: tt.export}, nil); fault.KindOf(err) != tt.want[0] {
			t.Errorf("%s: Backup = %v, want %v", name, err, tt.want[0])
		}
		image := store.ImageRef{SizeBytes: mib, Root: store.Hash{1}}
		if _, err := b.mover.Restore(t.Context(), agent.RestoreTask{Ticket: tt.ticket, Export: tt.export, Image: image}, nil); fault.KindOf(err) != tt.want[1] {
			t.Errorf("%s: Restore = %v, want %v", name, err, tt.want[1])
		}
	}
}

func TestCancelThoughTheSourceHangs(t *testing.T) {
	b := newBench(t)
	p := nbdtest.NBDKit(t, "--filter=delay", "random", "8M", "seed=1", "rdelay=3600")
	s, err := b.repository.Begin(t.Context(), store.SessionOptions{Series: "test/vm", Writer: "test"})
	if err != nil {
		t.Fatal(err)
	}
	b.access = agent.Access{Session: agent.SessionOf(s)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := export(p, "")
	e.Name = ""
	_, err = b.mover.Backup(ctx, agent.BackupTask{Ticket: "good", Export: e}, func(transfer.Progress) { cancel() })
	if fault.KindOf(err) != fault.Canceled {
		t.Errorf("Backup = %v, want Canceled", err)
	}
	if err := s.Abort(t.Context()); err != nil {
		t.Errorf("Abort after the cancellation: %v", err)
	}
}

func TestTasksCanBeSent(t *testing.T) {
	task := agent.BackupTask{
		ID: "tr_1", Disk: "vda", Ticket: "t", Parent: &store.ImageRef{SizeBytes: 5, Root: store.Hash{1, 2}}, Limit: 7,
		Export: hypervisors.Export{
			Transport: hypervisors.TransportNBD, Network: "tcp", Address: "h:1", Name: "d", DirtyContext: "qemu:dirty-bitmap:b", SizeBytes: 5,
			TLS:    &hypervisors.TLS{CAFile: "a", CertFile: "b", KeyFile: "c", ServerName: "d"},
			Serial: "cairn-1", Extents: hypervisors.ExtentMap{1, 16, 0},
		},
	}
	b, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	var back agent.BackupTask
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(task, back); diff != "" {
		t.Errorf("the task changes on its way (-want +got):\n%s", diff)
	}
}
