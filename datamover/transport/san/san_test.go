//go:build linux

package santransport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/datamover/lvm2"
	"github.com/cairn-backup/cairn/datamover/transfer"
	santransport "github.com/cairn-backup/cairn/datamover/transport/san"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/sanlab"
	"github.com/cairn-backup/cairn/store"
)

const mib = 1 << 20

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pool is a volume group of real lvm2 on two LUNs, with a raw volume and a chain of two images.
type pool struct {
	*sanlab.LVM
	t       *testing.T
	options santransport.Options
	raw     []byte // content of the volume "raw"
	chain   []byte // content of the images, the disk's size
	export  func(layers ...hypervisors.SANLayer) hypervisors.Export
}

const wwn0, wwn1 = "naa.600140500000000000000000000000a0", "naa.600140500000000000000000000000a1"

func newPool(t *testing.T) *pool {
	p := &pool{LVM: sanlab.NewLVM(t, 96*mib, 64*mib), t: t}
	p.Run("vgcreate", "-q", "-s", "1m", "vg", p.Devices[0], p.Devices[1])
	p.create("raw", "12m", p.Devices[1])
	p.create("gap", "3m", p.Devices[0])
	p.create("base", "10m", p.Devices[0])
	p.create("top", "6m", p.Devices[0])
	p.Run("lvextend", "-q", "-L", "+6m", "vg/base", p.Devices[1])
	p.Run("lvextend", "-q", "-L", "+8m", "vg/top", p.Devices[0])
	p.options.Devices.System = sanlab.Disguise(t, sanlab.Seen{Device: p.Devices[0], WWN: wwn0}, sanlab.Seen{Device: p.Devices[1], WWN: wwn1})
	p.export = func(layers ...hypervisors.SANLayer) hypervisors.Export {
		return hypervisors.Export{
			Transport: hypervisors.TransportSAN, Name: "vda", SizeBytes: 24 * mib,
			SAN: &hypervisors.SAN{LUNs: []hypervisors.LUN{{WWN: wwn0, SizeBytes: 96 * mib}, {WWN: wwn1}}, Group: "vg", Layers: layers},
		}
	}
	p.fill()
	return p
}

func (p *pool) create(name, size, device string) {
	p.t.Helper()
	p.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", name, "-L", size, "vg", device)
}

// fill makes images with QEMU's tools and writes them to the volumes.
func (p *pool) fill() {
	p.t.Helper()
	dir := p.t.TempDir()
	rnd := rand.NewChaCha8([32]byte{9})
	p.raw = make([]byte, 12*mib)
	_, _ = rnd.Read(p.raw)
	p.put("raw", p.raw)
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, p.raw[:5*mib], 0o600); err != nil {
		p.t.Fatal(err)
	}
	base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
	p.do("qemu-img", "create", "-q", "-f", "qcow2", base, "20M")
	p.do("qemu-io", "-f", "qcow2", "-c", "write -s "+source+" 1M 9M", "-c", "write -z 11M 1M", base)
	p.do("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", "-b", base, "-F", "qcow2", top, "24M")
	p.do("qemu-io", "-f", "qcow2", "-c", "write -s "+source+" 4M 2M", "-c", "write -z 8M 1M", "-c", "write -s "+source+" 23M 4k", top)
	whole := filepath.Join(dir, "whole")
	p.do("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, whole)
	p.chain = p.read(whole)
	p.do("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base-of-vda", "-F", "qcow2", top)
	p.put("base", p.read(base))
	p.put("top", p.read(top))
}

func (p *pool) do(name string, args ...string) {
	p.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func (p *pool) read(name string) []byte {
	p.t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// device is a file that a loop device lies in.
type device struct{ *os.File }

func (d device) Size() int64 {
	info, err := d.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// put writes to a volume as the platform would, through the page cache of the host that it is.
func (p *pool) put(volume string, content []byte) {
	p.t.Helper()
	var list []lvm2.Device
	for _, name := range p.Files {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			p.t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		list = append(list, device{f})
	}
	s, err := lvm2.ScanDevices(list)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := s.Open(s.Groups[0], p.volume(s.Groups[0], volume))
	if err != nil {
		p.t.Fatal(err)
	}
	for off := int64(0); off < int64(len(content)); {
		place, err := r.Place(off)
		if err != nil {
			p.t.Fatal(err)
		}
		n := min(place.Length, int64(len(content))-off)
		if _, err := place.Device.(device).WriteAt(content[off:off+n], place.Offset); err != nil {
			p.t.Fatal(err)
		}
		off += n
	}
}

func (p *pool) volume(g *lvm2.Group, name string) lvm2.Volume {
	p.t.Helper()
	for _, v := range g.Volumes {
		if v.Name == name {
			return v
		}
	}
	p.t.Fatalf("no volume %s", name)
	return lvm2.Volume{}
}

// layer returns the layer of a volume.
func (p *pool) layer(name, called string, format hypervisors.DiskFormat) hypervisors.SANLayer {
	p.t.Helper()
	uuid := strings.TrimSpace(p.Run("lvs", "--noheadings", "-o", "lv_uuid", "vg/"+name))
	return hypervisors.SANLayer{Volume: uuid, VolumeName: name, Name: called, Format: format}
}

func (p *pool) images() []hypervisors.SANLayer {
	return []hypervisors.SANLayer{p.layer("top", "", hypervisors.QCOW2), p.layer("base", "base-of-vda", hypervisors.QCOW2)}
}

func (p *pool) open(e hypervisors.Export) hypervisors.FrozenDisk {
	p.t.Helper()
	d, err := p.options.OpenSource(p.t.Context(), e)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = d.Close() })
	return d
}

// sink takes what a transfer writes; what it is not given stays as it was.
type sink struct {
	mu      sync.Mutex
	p       []byte
	written int64
	at      func(written int64) // called before each write
}

func (s *sink) ChunkBytes() int { return 64 << 10 }
func (s *sink) FrameBytes() int { return 64 << 10 }

func (s *sink) Write(_ context.Context, off int64, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != nil {
		s.at(s.written)
	}
	s.written += int64(copy(s.p[off:], p))
	return nil
}

func (s *sink) Durable(context.Context) iter.Seq2[store.Range, error] {
	return func(func(store.Range, error) bool) {}
}

func (s *sink) Zero(_ context.Context, off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.p[off : off+n])
	return nil
}

func TestFullRead(t *testing.T) {
	p := newPool(t)
	chain := p.export(p.images()...)
	raw := p.export(p.layer("raw", "", hypervisors.Raw))
	raw.SizeBytes = 12*mib - 512 // a volume has whole extents, a disk need not
	for _, tt := range []struct {
		name   string
		export hypervisors.Export
		want   []byte
		data   int64
	}{
		{"chain", chain, p.chain, 8*mib + 64<<10}, {"raw", raw, p.raw[:raw.SizeBytes], raw.SizeBytes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := p.open(tt.export)
			got := &sink{p: bytes.Repeat([]byte{0x55}, len(tt.want))}
			res, err := transfer.Backup(t.Context(), d, got, transfer.Options{})
			if err != nil || !bytes.Equal(got.p, tt.want) {
				t.Fatalf("%v; equal: %v", err, bytes.Equal(got.p, tt.want))
			}
			if res.BytesRead != tt.data {
				t.Errorf("%d bytes were read, want %d", res.BytesRead, tt.data)
			}
			rnd := rand.New(rand.NewPCG(1, 1))
			for range 60 {
				off, b := rnd.IntN(len(tt.want)), make([]byte, 1+rnd.IntN(2*mib))
				n, err := d.ReadAt(b, int64(off))
				if n != min(len(b), len(tt.want)-off) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(b[:n], tt.want[off:off+n]) {
					t.Fatalf("%d bytes at %d: %d, %v", len(b), off, n, err)
				}
			}
			_ = d.Close()
			if _, err := d.ReadAt(make([]byte, 10), 1*mib); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// extents lists what a function of three states makes.
func extents(list ...hypervisors.Extent) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func TestPartialRead(t *testing.T) {
	p := newPool(t)
	e := p.export(p.images()...)
	const d, z, u = hypervisors.Data, hypervisors.Zero, hypervisors.Unchanged
	var err error
	e.Extents, err = hypervisors.NewExtentMap(24*mib, extents(
		hypervisors.Extent{Offset: 0, Length: 2 * mib, State: u}, hypervisors.Extent{Offset: 2 * mib, Length: 3 * mib, State: d},
		hypervisors.Extent{Offset: 5 * mib, Length: 1 * mib, State: z}, hypervisors.Extent{Offset: 6 * mib, Length: 5 * mib, State: u},
		hypervisors.Extent{Offset: 11 * mib, Length: 13 * mib, State: d}))
	if err != nil {
		t.Fatal(err)
	}
	disk := p.open(e)
	var got []hypervisors.Extent
	for x, err := range disk.Extents(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x)
	}
	want := []hypervisors.Extent{
		{Offset: 0, Length: 2 * mib, State: u}, {Offset: 2 * mib, Length: 3 * mib, State: d}, {Offset: 5 * mib, Length: mib, State: z},
		{Offset: 6 * mib, Length: 5 * mib, State: u}, {Offset: 11 * mib, Length: 12 * mib, State: z},
		{Offset: 23 * mib, Length: 4096, State: d}, {Offset: 23*mib + 4096, Length: mib - 4096, State: z},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("extents (-want +got):\n%s", diff)
	}
	parent := bytes.Repeat([]byte{0x77}, 24*mib)
	out := &sink{p: bytes.Clone(parent)}
	if _, err := transfer.Backup(t.Context(), disk, out, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	wanted := bytes.Clone(p.chain)
	copy(wanted[:2*mib], parent)
	clear(wanted[5*mib : 6*mib])
	copy(wanted[6*mib:11*mib], parent)
	if !bytes.Equal(out.p, wanted) {
		t.Error("the changed parts are not those of the disk, or others were touched")
	}
}

// TestChangesAreNoticed changes the group between the first and the last read, by lvm2.
func TestChangesAreNoticed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(p *pool)
		noticed bool
	}{
		{"another volume is made", func(p *pool) { p.create("new", "2m", p.Devices[0]) }, false},
		{"another volume goes", func(p *pool) { p.Run("lvremove", "-q", "-f", "vg/gap") }, false},
		{"a volume is extended", func(p *pool) { p.Run("lvextend", "-q", "-L", "+1m", "vg/base") }, true},
		{"a volume is renamed", func(p *pool) { p.Run("lvrename", "-q", "vg", "top", "_remove_me_top") }, true},
		{"a volume is tagged", func(p *pool) { p.Run("lvchange", "-q", "--addtag", "PU_other", "vg/top") }, true},
		{"a volume is removed", func(p *pool) { p.Run("lvremove", "-q", "-f", "vg/top") }, true},
		{"an image is written to", func(p *pool) {
			image := make([]byte, 2*mib)
			f, err := os.Open(p.Files[0])
			if err != nil {
				p.t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			s, err := lvm2.ScanDevices([]lvm2.Device{device{f}})
			if err != nil {
				p.t.Fatal(err)
			}
			v := p.volume(s.Groups[0], "base")
			if _, err := f.ReadAt(image, v.Segments[0].Stripes[0].Offset); err != nil {
				p.t.Fatal(err)
			}
			image[3*65536+7]++ // the L1 table
			p.put("base", image)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPool(t)
			disk := p.open(p.export(p.images()...))
			done := false
			out := &sink{p: make([]byte, 24*mib), at: func(written int64) {
				if written > 0 && !done {
					done = true
					tt.change(p)
				}
			}}
			_, err := transfer.Backup(t.Context(), disk, out, transfer.Options{Workers: 2, BufferBytes: 256 << 10})
			if !done {
				t.Fatal("nothing was changed")
			}
			if !tt.noticed {
				if err != nil {
					t.Errorf("a change of no concern: %v", err)
				}
				return
			}
			if meaning, _ := fault.Explanation(err); fault.KindOf(err) != fault.Transient || !strings.Contains(meaning, "changed the disk") {
				t.Errorf("error %v (%s)", err, meaning)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	p := newPool(t)
	images := p.images()
	good := func() hypervisors.Export { return p.export(append([]hypervisors.SANLayer(nil), images...)...) }
	tests := []struct {
		name   string
		change func(e *hypervisors.Export)
		kind   fault.Kind
		words  string
	}{
		{"no LUNs", func(e *hypervisors.Export) { e.SAN.LUNs = nil }, fault.Invalid, "no LUNs"},
		{"for writing", func(e *hypervisors.Export) { e.Writable = true }, fault.Invalid, "written"},
		{"another transport", func(e *hypervisors.Export) { e.Transport = hypervisors.TransportNBD }, fault.Invalid, "nbd"},
		{"raw in the middle", func(e *hypervisors.Export) { e.SAN.Layers[0].Format = hypervisors.Raw }, fault.Invalid, "not the lowest"},
		{"unknown format", func(e *hypervisors.Export) { e.SAN.Layers[0].Format = "vhdx" }, fault.Invalid, "vhdx"},
		{"a LUN that is not there", func(e *hypervisors.Export) { e.SAN.LUNs[1].WWN = "naa.6001405aaaaaaaaa" }, fault.NotFound, "no device"},
		{"a LUN of another size", func(e *hypervisors.Export) { e.SAN.LUNs[0].SizeBytes++ }, fault.Conflict, "bytes"},
		{"a LUN too few", func(e *hypervisors.Export) { e.SAN.LUNs = e.SAN.LUNs[:1] }, fault.NotFound, "physical volume"},
		{"another group", func(e *hypervisors.Export) { e.SAN.Group = "other" }, fault.NotFound, "none of"},
		{"another volume", func(e *hypervisors.Export) { e.SAN.Layers[0].Volume = "x" }, fault.NotFound, "UUID x"},
		{"a volume of another name", func(e *hypervisors.Export) { e.SAN.Layers[0].VolumeName = "x" }, fault.Conflict, `not "x"`},
		{"a base of another name", func(e *hypervisors.Export) { e.SAN.Layers[1].Name = "x" }, fault.Conflict, `not "x"`},
		{"a base of another format", func(e *hypervisors.Export) { e.SAN.Layers[1].Format = hypervisors.Raw }, fault.Conflict, `format "qcow2"`},
		{"a layer too few", func(e *hypervisors.Export) { e.SAN.Layers = e.SAN.Layers[:1] }, fault.Invalid, "more than 1 layers"},
		{"a layer too many", func(e *hypervisors.Export) { e.SAN.Layers = append(e.SAN.Layers, e.SAN.Layers[1]) }, fault.Conflict, "chain of 2"},
		{"the image below as the disk", func(e *hypervisors.Export) { e.SAN.Layers = e.SAN.Layers[1:] }, fault.Conflict, "the platform says"},
		{"no image at all", func(e *hypervisors.Export) {
			e.SAN.Layers[0].Volume, e.SAN.Layers[0].VolumeName = p.layer("raw", "", "").Volume, ""
		}, fault.Invalid, "does not begin"},
		{"a disk larger than its volume", func(e *hypervisors.Export) {
			e.SAN.Layers = []hypervisors.SANLayer{p.layer("raw", "", hypervisors.Raw)}
		}, fault.Conflict, "12582912 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := good()
			tt.change(&e)
			d, err := p.options.OpenSource(t.Context(), e)
			if err == nil {
				_ = d.Close()
			}
			if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v of kind %v, want %v and %q", err, fault.KindOf(err), tt.kind, tt.words)
			}
		})
	}
	if _, err := p.options.OpenTarget(t.Context(), good()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a target: %v", err)
	}
	d := p.open(good())
	_ = d.Close()
}

// TestWholeLUN reads a LUN that is the disk.
func TestWholeLUN(t *testing.T) {
	p := newPool(t)
	e := hypervisors.Export{
		Transport: hypervisors.TransportSAN, Name: "vdb", SizeBytes: 64 * mib,
		SAN: &hypervisors.SAN{LUNs: []hypervisors.LUN{{WWN: wwn1}}, Layers: []hypervisors.SANLayer{{LUN: wwn1, Format: hypervisors.Raw}}},
	}
	out := &sink{p: make([]byte, 64*mib)}
	_, err := transfer.Backup(t.Context(), p.open(e), out, transfer.Options{})
	if err != nil || !bytes.Equal(out.p, p.read(p.Files[1])) {
		t.Errorf("%v, or another content", err)
	}
	e.SAN.Layers[0].LUN = wwn0
	if _, err := p.options.OpenSource(t.Context(), e); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a layer on a LUN that is not named: %v", err)
	}
}

// TestCancelledOpen leaves nothing open.
func TestCancelledOpen(t *testing.T) {
	p := newPool(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := p.options.OpenSource(ctx, p.export(p.images()...)); err == nil {
		_ = d.Close()
		t.Error("opened although it was cancelled")
	}
	for _, dev := range p.Devices {
		links, _ := filepath.Glob("/proc/self/fd/*")
		for _, l := range links {
			if to, _ := os.Readlink(l); to == dev {
				t.Errorf("%s is still open", dev)
			}
		}
	}
}
