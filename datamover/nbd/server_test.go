package nbd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/internal/fault"
)

// serve starts our server on a Unix socket and returns the address.
func serve(t testing.TB, o nbd.ServerOptions, exports ...nbd.Export) (*nbd.Server, string) {
	t.Helper()
	s := nbd.NewServer(o)
	for _, e := range exports {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", nbdtest.Socket(t))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

// sparse makes a disk with data in about a tenth of its blocks.
func sparse(t testing.TB, size int64) (*nbd.Memory, []byte) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(11, uint64(size)))
	m := nbd.NewMemory(size, func(_ string, block int64) bool { return block%7 == 3 })
	all := make([]byte, size)
	for off := int64(0); off < size; off += 64 << 10 {
		if rnd.IntN(10) != 0 {
			continue
		}
		b := all[off:min(off+64<<10, size)]
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		if _, err := m.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	return m, all
}

func TestOtherClientsReadOurServer(t *testing.T) {
	m, want := sparse(t, 20<<20)
	const dirty = "qemu:dirty-bitmap:b1"
	_, sock := serve(t, nbd.ServerOptions{}, nbd.Export{
		Name: "disk", Description: "about it", Backend: m, Contexts: []string{nbd.BaseAllocation, dirty}, MultiConn: true,
	}, nbd.Export{Name: "other", Backend: nbd.NewMemory(1<<20, nil), ReadOnly: true})

	if got := copied(t, "unix", sock, "disk"); !bytes.Equal(got, want) {
		t.Error("nbdcopy reads something else")
	}
	uri := nbdtest.URI("unix", sock, "disk")
	var info struct {
		Exports []struct {
			Name     string   `json:"export-name"`
			Contexts []string `json:"contexts"`
			Size     int64    `json:"export-size"`
			Desc     string   `json:"description"`
			ReadOnly bool     `json:"is_read_only"`
			Flush    bool     `json:"can_flush"`
			Multi    bool     `json:"can_multi_conn"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(nbdtest.Run(t, "nbdinfo", "--list", "--json", nbdtest.URI("unix", sock, ""))), &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 2 || info.Exports[0].Name != "disk" || !info.Exports[1].ReadOnly || info.Exports[0].Size != 20<<20 ||
		!info.Exports[0].Flush || !info.Exports[0].Multi || info.Exports[0].Desc != "about it" {
		t.Errorf("nbdinfo --list: %+v", info)
	}
	if diff := cmp.Diff([]string{nbd.BaseAllocation, dirty}, info.Exports[0].Contexts); diff != "" {
		t.Errorf("contexts (-want +got):\n%s", diff)
	}
	for _, name := range []string{nbd.BaseAllocation, dirty} {
		var list []struct {
			Offset, Length int64
			Type           uint32
		}
		if err := json.Unmarshal([]byte(nbdtest.Run(t, "nbdinfo", "--map="+name, "--json", uri)), &list); err != nil {
			t.Fatal(err)
		}
		var got []nbd.Extent
		for _, e := range list {
			got = append(got, nbd.Extent{Length: e.Length, Flags: e.Type})
		}
		extents, err := m.Extents(t.Context(), name, 0, m.Size())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(extents, joined(got)); diff != "" {
			t.Errorf("nbdinfo --map=%s (-want +got):\n%s", name, diff)
		}
	}
	f := filepath.Join(t.TempDir(), "raw")
	nbdtest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, f)
	nbdtest.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, f)
}

func TestOtherClientsWriteToOurServer(t *testing.T) {
	src, want := sparse(t, 8<<20)
	dst := nbd.NewMemory(8<<20, nil)
	_, sock := serve(t, nbd.ServerOptions{}, nbd.Export{Name: "src", Backend: src, Contexts: []string{nbd.BaseAllocation}},
		nbd.Export{Name: "dst", Backend: dst, Contexts: []string{nbd.BaseAllocation}, MultiConn: true},
		nbd.Export{Name: "blocks", Backend: nbd.NewMemory(8<<20, nil), MinBlock: 4096, PreferredBlock: 4096, MaxBlock: 64 << 10})
	uri := func(name string) string { return nbdtest.URI("unix", sock, name) }
	nbdtest.Run(t, "nbdcopy", "--destination-is-zero", uri("src"), uri("dst"))
	got := make([]byte, len(want))
	if _, err := dst.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("nbdcopy wrote something else, %v", err)
	}
	nbdtest.Run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", uri("src"), uri("blocks"))
	nbdtest.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri("src"), uri("blocks"))
}

func TestOurClientAndServer(t *testing.T) {
	dir := nbdtest.Certificates(t)
	serverTLS, clientTLS := nbdtest.TLS(t, dir)
	for _, name := range []string{"plain", "TLS"} {
		t.Run(name, func(t *testing.T) {
			m, want := sparse(t, 10<<20)
			var o nbd.ServerOptions
			var cfg nbd.Config
			if name == "TLS" {
				o.TLS, cfg.TLS = serverTLS, clientTLS
			}
			s, sock := serve(t, o, nbd.Export{Name: "d", Backend: m, Contexts: []string{nbd.BaseAllocation}, MultiConn: true})
			cfg.Network, cfg.Address, cfg.Export, cfg.Contexts = "unix", sock, "d", []string{nbd.BaseAllocation}
			c := dial(t, cfg)
			if got := readAll(t, c, 100003); !bytes.Equal(got, want) {
				t.Error("we read something else")
			}
			if err := c.Zero(t.Context(), 1000, 5<<20, nbd.FUA); err != nil {
				t.Fatal(err)
			}
			clear(want[1000 : 1000+5<<20])
			if got := readAll(t, c, 1<<20); !bytes.Equal(got, want) {
				t.Error("after Zero we read something else")
			}
			s.Remove("d")
			if err := c.Read(t.Context(), make([]byte, 1), 0); !errors.Is(err, nbd.ErrConnectionLost) {
				t.Errorf("read of a removed export: %v", err)
			}
			if _, err := nbd.Dial(t.Context(), cfg); fault.KindOf(err) != fault.NotFound {
				t.Errorf("Dial of a removed export: %v", err)
			}
		})
	}
}

func TestTLSServerTellsPlainClientsNothing(t *testing.T) {
	serverTLS, _ := nbdtest.TLS(t, nbdtest.Certificates(t))
	_, sock := serve(t, nbd.ServerOptions{TLS: serverTLS}, nbd.Export{Name: "secret", Backend: nbd.NewMemory(1<<20, nil)})
	for _, name := range []string{"secret", "nothing"} {
		if _, err := nbd.Dial(t.Context(), nbd.Config{Network: "unix", Address: sock, Export: name}); fault.KindOf(err) != fault.Denied {
			t.Errorf("Dial(%q) = %v, want Denied", name, err)
		}
	}
}

// failing is a disk whose reads fail.
type failing struct {
	*nbd.Memory
	err error
}

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestBackendErrorsReachTheClient(t *testing.T) {
	for err, want := range map[error]nbd.Errno{
		nbd.ENOSPC:                                nbd.ENOSPC,
		errors.New("x"):                           nbd.EIO,
		fault.New(fault.Denied, "a", "b", "c"):    nbd.EPERM,
		context.Canceled:                          nbd.ESHUTDOWN,
		fault.New(fault.Corrupt, "read", "c", ""): nbd.EIO,
	} {
		_, sock := serve(t, nbd.ServerOptions{}, nbd.Export{Name: "d", Backend: failing{nbd.NewMemory(1<<20, nil), err}})
		c := dial(t, nbd.Config{Network: "unix", Address: sock, Export: "d"})
		if got := c.Read(t.Context(), make([]byte, 4096), 0); !errors.Is(got, want) {
			t.Errorf("%v reached the client as %v, want %v", err, got, want)
		}
		if err := c.Zero(t.Context(), 0, 4096, 0); err != nil {
			t.Errorf("after a failed read: %v", err)
		}
	}
}

func TestServerRefusesWhatIsNotAllowed(t *testing.T) {
	s := nbd.NewServer(nbd.ServerOptions{})
	m := nbd.NewMemory(1000, nil)
	for name, e := range map[string]nbd.Export{
		"no backend":         {Name: "a"},
		"odd minimum":        {Name: "a", Backend: m, MinBlock: 3},
		"size not in blocks": {Name: "a", Backend: m, MinBlock: 512},
	} {
		if err := s.Add(e); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: Add = %v", name, err)
		}
	}
	if err := s.Add(nbd.Export{Name: "a", Backend: m}); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(nbd.Export{Name: "a", Backend: m}); fault.KindOf(err) != fault.Exists {
		t.Errorf("second Add = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
