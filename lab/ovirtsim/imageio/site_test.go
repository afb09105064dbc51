package imageio_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	imageiotransport "github.com/cairn-backup/cairn/datamover/transport/imageio"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/lab/ovirtsim/imageio"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

const (
	diskBytes = 24 << 20
	block     = 64 << 10
)

// host is a daemon on a site's storage, with the product's own client.
type host struct {
	t      *testing.T
	site   *storage.Site
	server *imageio.Server
	url    string
	ca     string
	last   int // ticket
}

func newHost(t *testing.T) *host {
	t.Helper()
	nbdtest.Require(t, "qemu-storage-daemon", "qemu-img")
	dir, err := os.MkdirTemp("", "site")
	ok(t, err)
	site, err := storage.Start(t.Context(), dir)
	ok(t, err)
	certs := nbdtest.Certificates(t)
	cert, err := tls.LoadX509KeyPair(filepath.Join(certs, "server-cert.pem"), filepath.Join(certs, "server-key.pem"))
	ok(t, err)
	pem, err := os.ReadFile(filepath.Join(certs, "ca-cert.pem"))
	ok(t, err)
	h := &host{t: t, site: site, server: imageio.NewServer(imageio.Options{Certificate: cert}), ca: string(pem)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	h.url = "https://" + l.Addr().String() + "/images/"
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.server.Serve(l) })
	t.Cleanup(func() {
		if err := errors.Join(h.server.Close(), site.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return h
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// transfer serves an NBD export by a ticket; end ends both and looks that the client has left nothing open.
func (h *host) transfer(e *storage.Export) (_ hypervisors.Export, end func()) {
	h.t.Helper()
	b, err := imageio.OpenNBD(h.t.Context(), e.Socket, e.Name, e.DirtyContext)
	ok(h.t, err)
	h.last++
	id := fmt.Sprintf("ticket-%d", h.last)
	ok(h.t, h.server.AddTicket(imageio.Ticket{ID: id, Backend: b, SizeBytes: e.SizeBytes, Write: e.Writable, Dirty: e.DirtyContext != ""}))
	out := hypervisors.Export{
		Transport: hypervisors.TransportImageio, Name: "disk", SizeBytes: e.SizeBytes, Writable: e.Writable,
		Imageio: &hypervisors.Imageio{TransferURL: hypervisors.TicketURL(h.url + id), CA: h.ca, Checksum: true},
	}
	if e.DirtyContext != "" {
		out.DirtyContext = "dirty"
	}
	return out, func() {
		h.t.Helper()
		ok(h.t, h.server.AwaitHungUp(h.t.Context()))
		ok(h.t, errors.Join(h.server.RemoveTicket(h.t.Context(), id), b.Close(), e.Close(h.t.Context())))
	}
}

// pull brings a copy of a disk up to date, and returns how many bytes it had to read.
func (h *host) pull(e hypervisors.Export, onto []byte) (read int64) {
	h.t.Helper()
	d, err := imageiotransport.Options{}.OpenSource(h.t.Context(), e)
	ok(h.t, err)
	for x, err := range d.Extents(h.t.Context()) {
		ok(h.t, err)
		part := onto[x.Offset : x.Offset+x.Length]
		switch x.State {
		case hypervisors.Zero:
			clear(part)
		case hypervisors.Data:
			_, err := d.ReadAt(part, x.Offset)
			ok(h.t, err)
			read += x.Length
		case hypervisors.Unchanged:
		}
	}
	ok(h.t, errors.Join(d.Confirm(h.t.Context()), d.Close()))
	return read
}

// TestBackupsOfABusyDisk makes a full and 20 incremental backups by image transfers while the guest goes on writing, with snapshots
// and merges in between, and uploads the last one to a new disk.
func TestBackupsOfABusyDisk(t *testing.T) {
	seed := seeded.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	h := newHost(t)
	ok(t, h.site.CreateDisk(t.Context(), storage.DiskSpec{ID: "d", Volume: "v0", SizeBytes: diskBytes, Format: storage.Cow}))
	guest, err := h.site.Guest(t.Context(), "d")
	ok(t, err)
	truth := make([]byte, diskBytes)
	change := func(times int) {
		for range times {
			off := rnd.Int64N(diskBytes - 3*block)
			part := truth[off : off+1+rnd.Int64N(3*block)]
			if rnd.IntN(4) == 0 {
				clear(part)
				ok(t, guest.Zero(t.Context(), off, int64(len(part))))
				continue
			}
			for i := range part {
				part[i] = byte(rnd.Uint32())
			}
			_, err := guest.WriteAt(part, off)
			ok(t, err)
		}
	}
	change(60)
	backed := make([]byte, diskBytes)
	from, total := "", int64(0)
	for i := range 21 {
		to := fmt.Sprintf("c%d", i)
		b, err := h.site.StartBackup(t.Context(), storage.BackupSpec{ID: to, Disks: []storage.BackupDisk{{ID: "d", From: from}}, Checkpoint: to})
		ok(t, err)
		frozen := bytes.Clone(truth)
		change(3)
		x, err := b.Export(t.Context(), "d")
		ok(t, err)
		e, end := h.transfer(x)
		read := h.pull(e, backed)
		end()
		if !bytes.Equal(backed, frozen) {
			t.Fatalf("backup %d is not the disk as it was", i)
		}
		if i > 0 {
			total += read
			ok(t, h.site.DeleteCheckpoint(t.Context(), "d", from))
		}
		ok(t, b.Stop(t.Context()))
		from = to
		change(2)
		switch i % 4 {
		case 1:
			ok(t, h.site.Snapshot(t.Context(), storage.NewVolume{Disk: "d", Volume: "v" + to}))
		case 3:
			ok(t, h.site.Merge(t.Context(), "d", "v0"))
		}
	}
	t.Logf("%d bytes read by 20 incremental backups of %d", total, diskBytes)
	if total > 20*diskBytes/2 {
		t.Errorf("20 incremental backups read %d bytes of a disk of %d", total, diskBytes)
	}
	h.upload(rnd, backed)
}

// upload writes content to a new disk and looks what is there.
func (h *host) upload(rnd *rand.Rand, content []byte) {
	t := h.t
	ok(t, h.site.CreateDisk(t.Context(), storage.DiskSpec{ID: "n", Volume: "n0", SizeBytes: diskBytes, Format: storage.Cow}))
	x, err := h.site.ExportVolume(t.Context(), "n0", true)
	ok(t, err)
	e, end := h.transfer(x)
	fault := h.server.Inject(imageio.Fault{Method: "PUT", Skip: 3, Times: 2, Drop: true})
	d, err := imageiotransport.Options{}.OpenTarget(t.Context(), e)
	ok(t, err)
	for off := 0; off < diskBytes; {
		n := min(1+rnd.IntN(1<<20), diskBytes-off)
		_, err := d.WriteAt(content[off:off+n], int64(off))
		ok(t, err)
		off += n
	}
	ok(t, d.Flush(t.Context()))
	back := make([]byte, diskBytes)
	h.pull(e, back)
	ok(t, d.Close())
	end()
	if !bytes.Equal(back, content) || fault.Fired() != 2 {
		t.Errorf("the uploaded disk is equal: %v, after %d broken requests", bytes.Equal(back, content), fault.Fired())
	}
	v, err := h.site.OpenVolume(t.Context(), "n0")
	ok(t, err)
	clear(back)
	_, err = v.ReadAt(back, 0)
	ok(t, errors.Join(err, v.Close()))
	if !bytes.Equal(back, content) {
		t.Error("the volume holds something else than what was uploaded")
	}
}
