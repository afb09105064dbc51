package agent_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/ovirtsim/imageio"
	"github.com/cairn-backup/cairn/store"
)

// imageHost serves NBD exports as a host of oVirt's does.
type imageHost struct {
	t      *testing.T
	server *imageio.Server
	url    string
	ca     string
}

func newImageHost(t *testing.T) *imageHost {
	t.Helper()
	dir := nbdtest.Certificates(t)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &imageHost{t: t, server: imageio.NewServer(imageio.Options{Certificate: cert}), url: "https://" + l.Addr().String() + "/images/", ca: string(pem)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.server.Serve(l) })
	t.Cleanup(func() {
		if err := h.server.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return h
}

// serve makes a ticket for an export that is called "d".
func (h *imageHost) serve(ticket string, p *nbdtest.Process, dirty string, write bool) (hypervisors.Export, imageio.Backend) {
	h.t.Helper()
	b, err := imageio.OpenNBD(h.t.Context(), p.Address, "d", dirty)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = b.Close() })
	if err := h.server.AddTicket(imageio.Ticket{ID: ticket, Backend: b, SizeBytes: b.Size(), Write: write, Dirty: dirty != ""}); err != nil {
		h.t.Fatal(err)
	}
	e := hypervisors.Export{
		Transport: hypervisors.TransportImageio, Name: "vda", SizeBytes: b.Size(), Writable: write, DirtyContext: dirty,
		Imageio: &hypervisors.Imageio{TransferURL: hypervisors.TicketURL(h.url + ticket), CA: h.ca, Checksum: true},
	}
	return e, b
}

// TestImageTransfers backs a disk up as a whole and incrementally by image transfers, restores it by one, and refuses a backup whose
// checksum is not the host's.
func TestImageTransfers(t *testing.T) {
	nbdtest.Require(t, "qemu-img", "qemu-io", "qemu-nbd", "nbdcopy")
	b, h := newBench(t), newImageHost(t)
	f := filepath.Join(t.TempDir(), "disk.qcow2")
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", f, "40M")
	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "-c", "write -P 2 20M 4M", f)
	nbdtest.Run(t, "qemu-img", "bitmap", "--add", f, "b")
	p := nbdtest.QemuNBD(t, "-x", "d", "-f", "qcow2", "-r", f)
	e, backend := h.serve("full", p, "", false)
	full := b.backup(e, nil)
	if full.BytesRead != 8*mib || !bytes.Equal(b.content(full.Image), nbdcopy(t, p)) {
		t.Errorf("full: %d bytes read, or the image differs", full.BytesRead)
	}
	if h.server.Stats().Requests["checksum"] != 1 {
		t.Errorf("requests %v, want one for a checksum", h.server.Stats().Requests)
	}
	_ = backend.Close()
	p.Kill()

	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 64k", "-c", "write -z 21M 1M", "-c", "write -P 4 39M 1M", f)
	p = nbdtest.QemuNBD(t, "-x", "d", "-f", "qcow2", "-r", "-B", "b", f)
	e, _ = h.serve("incremental", p, "qemu:dirty-bitmap:b", false)
	inc := b.backup(e, &full.Image)
	want := nbdcopy(t, p)
	if inc.BytesRead != mib+64<<10 || !bytes.Equal(b.content(inc.Image), want) {
		t.Errorf("incremental: %d bytes read, or the image differs", inc.BytesRead)
	}

	raw := filepath.Join(t.TempDir(), "restored")
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "raw", raw, "40M")
	e, _ = h.serve("upload", nbdtest.QemuNBD(t, "-x", "d", "-f", "raw", raw), "", true)
	b.access = agent.Access{Repository: agent.RepositoryOf(b.repository)}
	res, err := b.mover.Restore(t.Context(), agent.RestoreTask{ID: "tr_2", Disk: "vda", Ticket: "good", Image: inc.Image, Export: e, Verify: true}, nil)
	if err != nil || !res.Verified {
		t.Fatalf("Restore = %+v, %v", res, err)
	}
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the restored disk differs, %v", err)
	}
	if err := errors.Join(h.server.AwaitHungUp(t.Context()), h.server.RemoveTicket(t.Context(), "upload")); err != nil {
		t.Error(err)
	}
}

func TestChecksumThatDiffers(t *testing.T) {
	nbdtest.Require(t, "qemu-img", "qemu-io", "qemu-nbd")
	b, h := newBench(t), newImageHost(t)
	f := filepath.Join(t.TempDir(), "disk.raw")
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "raw", f, "8M")
	nbdtest.Run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 1M 2M", f)
	p := nbdtest.QemuNBD(t, "-x", "d", "-f", "raw", f)
	e, backend := h.serve("t", p, "", false)
	// The host reads its storage differently the second time.
	changed := h.server.Inject(imageio.Fault{Path: "/checksum", Do: func() {
		if err := backend.Write(t.Context(), []byte{2}, 2*mib); err != nil {
			t.Error(err)
		}
	}})
	s, err := b.repository.Begin(t.Context(), store.SessionOptions{Series: "test/vm", Writer: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Abort(t.Context()) }()
	b.access = agent.Access{Session: agent.SessionOf(s)}
	_, err = b.mover.Backup(t.Context(), agent.BackupTask{ID: "tr_1", Disk: "vda", Ticket: "good", Export: e}, nil)
	if fault.KindOf(err) != fault.Corrupt || changed.Fired() != 1 {
		t.Errorf("%v, the host was asked %d times", err, changed.Fired())
	}
}
