package lvm2_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/datamover/lvm2"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/lab/sanlab"
)

const mib = 1 << 20

// file is a device in a file.
type file struct {
	*os.File
}

func (f file) Size() int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func devices(t testing.TB, names ...string) (out []lvm2.Device) {
	t.Helper()
	for _, n := range names {
		f, err := os.Open(n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		out = append(out, file{f})
	}
	return out
}

func scan(t testing.TB, names ...string) *lvm2.Scan {
	t.Helper()
	s, err := lvm2.ScanDevices(devices(t, names...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func group(t testing.TB, s *lvm2.Scan, name string) *lvm2.Group {
	t.Helper()
	g, err := s.Group("", name)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// report is what lvm2's own programs say in JSON.
type report struct {
	Report []struct {
		Seg []map[string]string
		PV  []map[string]string
		VG  []map[string]string
	}
}

func ask(t testing.TB, l *sanlab.LVM, args ...string) report {
	t.Helper()
	var r report
	if err := json.Unmarshal([]byte(l.Run(append(args, "--reportformat", "json", "--units", "b", "--nosuffix")...)), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func number(t testing.TB, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var deviceAt = regexp.MustCompile(`(/dev/loop[0-9]+)\(([0-9]+)\)`)

// bySelf returns every segment of a group as lvm2 reports it, in our words, "name uuid: segment".
func bySelf(t testing.TB, l *sanlab.LVM, vg string) (out []string) {
	t.Helper()
	type pv struct {
		uuid  string
		start int64
	}
	pvs := map[string]pv{}
	extent := number(t, ask(t, l, "vgs", "-o", "vg_extent_size", vg).Report[0].VG[0]["vg_extent_size"])
	for _, p := range ask(t, l, "pvs", "-o", "pv_name,pv_uuid,pe_start").Report[0].PV {
		pvs[p["pv_name"]] = pv{p["pv_uuid"], number(t, p["pe_start"])}
	}
	const fields = "lv_name,lv_uuid,lv_tags,seg_start,seg_size,stripes,stripe_size,devices"
	for _, s := range ask(t, l, "lvs", "--segments", "-o", fields, vg).Report[0].Seg {
		seg := lvm2.Segment{Offset: number(t, s["seg_start"]), Length: number(t, s["seg_size"]), StripeBytes: number(t, s["stripe_size"])}
		if s["stripes"] == "1" {
			seg.StripeBytes = seg.Length
		}
		for _, d := range deviceAt.FindAllStringSubmatch(s["devices"], -1) {
			seg.Stripes = append(seg.Stripes, lvm2.Stripe{PV: pvs[d[1]].uuid, Offset: pvs[d[1]].start + number(t, d[2])*extent})
		}
		out = append(out, fmt.Sprintf("%s %s %s: %+v", s["lv_name"], s["lv_uuid"], s["lv_tags"], seg))
	}
	return out
}

// byUs returns the same from our reader.
func byUs(g *lvm2.Group) (out []string) {
	for _, v := range g.Volumes {
		for _, seg := range v.Segments {
			out = append(out, fmt.Sprintf("%s %s %s: %+v", v.Name, v.UUID, strings.Join(v.Tags, ","), seg))
		}
	}
	return out
}

func sorted(lines []string) map[string]bool {
	m := map[string]bool{}
	for _, l := range lines {
		m[l] = true
	}
	return m
}

// TestRandomGroups lets lvm2 make, extend, reduce and remove volumes at random and compares after each change.
func TestRandomGroups(t *testing.T) {
	seed := seeded.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	l := sanlab.NewLVM(t, 192*mib, 160*mib, 128*mib)
	// A small metadata area, so that its ring goes round; one device without one in use, as oVirt has it.
	l.Run("pvcreate", "-q", "--metadatasize", "32k", "--dataalignment", "64k", l.Devices[0])
	l.Run("pvcreate", "-q", "--metadatasize", "32k", "--dataalignment", "64k", "--metadatacopies", "2", l.Devices[1])
	l.Run("pvcreate", "-q", "--metadataignore", "y", l.Devices[2])
	l.Run("vgcreate", "-q", "-s", "512k", "--addtag", "pool", "vg", l.Devices[0], l.Devices[1], l.Devices[2])
	names, changes, most, wraps := []string{}, 0, 0, 0
	for i := range 80 {
		name := fmt.Sprintf("v%d", i)
		var err error
		switch kind := rnd.IntN(8); {
		case kind < 3 || len(names) == 0:
			args := []string{"lvcreate", "-q", "-an", "-Zn", "-Wn", "--addtag", fmt.Sprintf("IU_%d", rnd.IntN(9)), "-n", name, "-l", strconv.Itoa(2 + rnd.IntN(60)), "vg"}
			if rnd.IntN(3) == 0 {
				args = append(args, "-i", strconv.Itoa(2+rnd.IntN(2)), "-I", strconv.Itoa(4<<rnd.IntN(7)))
			} else if rnd.IntN(2) == 0 {
				args = append(args, l.Devices[rnd.IntN(3)])
			}
			if _, err = l.Try(args...); err == nil {
				names = append(names, name)
			}
		case kind < 6:
			_, err = l.Try("lvextend", "-q", "-l", "+"+strconv.Itoa(1+rnd.IntN(30)), "vg/"+names[rnd.IntN(len(names))])
		case kind == 6:
			_, err = l.Try("lvreduce", "-q", "-f", "-l", "-"+strconv.Itoa(1+rnd.IntN(10)), "vg/"+names[rnd.IntN(len(names))])
		default:
			n := rnd.IntN(len(names))
			if _, err = l.Try("lvremove", "-q", "-f", "vg/"+names[n]); err == nil {
				names = append(names[:n], names[n+1:]...)
			}
		}
		if err != nil { // no room, or nothing left to take away: nothing has changed
			continue
		}
		changes++
		g := group(t, scan(t, l.Files...), "vg")
		most = max(most, len(g.Volumes))
		if lvm2.Wraps(t, l.Files[0]) {
			wraps++
		}
		if seqno := ask(t, l, "vgs", "-o", "vg_seqno", "vg").Report[0].VG[0]["vg_seqno"]; number(t, seqno) != g.Seqno {
			t.Fatalf("sequence number %d, lvm2 says %s", g.Seqno, seqno)
		}
		if diff := cmp.Diff(sorted(bySelf(t, l, "vg")), sorted(byUs(g))); diff != "" {
			t.Fatalf("after change %d (-lvm2 +ours):\n%s", i, diff)
		}
	}
	t.Logf("%d changes, at most %d volumes, %d texts around the ring's end", changes, most, wraps)
	if changes < 20 || most < 3 {
		t.Error("too little has changed for this test")
	}
	if wraps == 0 {
		t.Error("no text has gone beyond the end of the metadata area")
	}
}

// TestContent writes through the places that lvm2 reports and reads through ours.
func TestContent(t *testing.T) {
	seed := seeded.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 2))
	l := sanlab.NewLVM(t, 96*mib, 96*mib, 96*mib)
	l.Run(append([]string{"vgcreate", "-q", "-s", "1m", "vg"}, l.Devices...)...)
	l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "striped", "-i3", "-I", "64k", "-L", "12m", "vg")
	l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "other", "-L", "5m", "vg", l.Devices[0])
	l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "linear", "-L", "7m", "vg", l.Devices[0])
	l.Run("lvextend", "-q", "-L", "+4m", "vg/other")
	l.Run("lvextend", "-q", "-i3", "-I", "8k", "-L", "+6m", "vg/linear")
	for _, p := range l.Files { // behind the metadata, every 4 KiB says where it is
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(mib); at < 96*mib; at += 4096 {
			if _, err := f.WriteAt([]byte(fmt.Sprintf("%s %d\n", p, at)), at); err != nil {
				t.Fatal(err)
			}
		}
		_ = f.Close()
	}
	s := scan(t, l.Files...)
	g := group(t, s, "vg")
	pvs := map[string]string{}
	for _, p := range ask(t, l, "pvs", "-o", "pv_name,pv_uuid").Report[0].PV {
		for i, d := range l.Devices {
			if d == p["pv_name"] {
				pvs[p["pv_uuid"]] = l.Files[i]
			}
		}
	}
	for _, v := range g.Volumes {
		r, err := s.Open(g, v)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
		if err != nil || int64(len(whole)) != v.Size {
			t.Fatalf("%s: %d bytes, %v", v.Name, len(whole), err)
		}
		for _, seg := range v.Segments { // as device-mapper's striped target is documented
			n := int64(len(seg.Stripes))
			for at := int64(0); at < seg.Length; at += 4096 {
				chunk := at / seg.StripeBytes
				st := seg.Stripes[chunk%n]
				want := fmt.Sprintf("%s %d\n", pvs[st.PV], st.Offset+(chunk/n)*seg.StripeBytes+at%seg.StripeBytes)
				if got := string(whole[seg.Offset+at:][:len(want)]); got != want {
					t.Fatalf("%s at %d holds %q, want %q", v.Name, seg.Offset+at, got, want)
				}
			}
		}
		for range 100 {
			off, p := rnd.Int64N(v.Size), make([]byte, 1+rnd.IntN(mib))
			n, err := r.ReadAt(p, off)
			if n != int(min(int64(len(p)), v.Size-off)) || err != nil && err != io.EOF || string(p[:n]) != string(whole[off:off+int64(n)]) {
				t.Fatalf("%s: %d bytes at %d: %d, %v", v.Name, len(p), off, n, err)
			}
		}
	}
}

// TestIncompleteGroups shows lvm2's devices to us in part, out of date and twice.
func TestIncompleteGroups(t *testing.T) {
	l := sanlab.NewLVM(t, 64*mib, 64*mib)
	l.Run("vgcreate", "-q", "-s", "1m", "vg", l.Devices[0], l.Devices[1])
	l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "a", "-L", "4m", "vg", l.Devices[0])
	l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "b", "-L", "4m", "vg", l.Devices[1])
	old, err := os.ReadFile(l.Files[1])
	if err != nil {
		t.Fatal(err)
	}
	stale := t.TempDir() + "/stale"
	if err := os.WriteFile(stale, old, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Run("lvextend", "-q", "-L", "+4m", "vg/b", l.Devices[0])

	open := func(s *lvm2.Scan, name string) error {
		g := group(t, s, "vg")
		for _, v := range g.Volumes {
			if v.Name == name {
				_, err := s.Open(g, v)
				return err
			}
		}
		return fmt.Errorf("no volume %s", name)
	}
	one := scan(t, l.Files[0])
	if err := open(one, "a"); err != nil {
		t.Errorf("a volume on the device that is there: %v", err)
	}
	if err := open(one, "b"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a volume half on a device that is not there: %v", err)
	}
	both := scan(t, stale, l.Files[0])
	if got := group(t, both, "vg").Volumes[1].Size; got != 8*mib {
		t.Errorf("beside a device with an older text the volume has %d bytes, want 8 MiB", got)
	}
	if _, err := lvm2.ScanDevices(devices(t, l.Files[0], l.Files[1], stale)); fault.KindOf(err) != fault.Conflict {
		t.Errorf("one physical volume on two devices: %v", err)
	}
	if _, err := both.Group("", "elsewhere"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a group that is not there: %v", err)
	}
	l.Run("vgrename", "-q", "vg", "renamed")
	if _, err := scan(t, l.Files...).Group(group(t, both, "vg").UUID, "vg"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a group with another name: %v", err)
	}
}

// TestDamagedCopies damages one metadata area, then all.
func TestDamagedCopies(t *testing.T) {
	l := sanlab.NewLVM(t, 64*mib)
	l.Run("pvcreate", "-q", "--metadatacopies", "2", l.Devices[0])
	l.Run("vgcreate", "-q", "vg", l.Devices[0])
	damage := func(from, to int64) {
		f, err := os.OpenFile(l.Files[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if _, err := f.WriteAt(make([]byte, to-from), from); err != nil {
			t.Fatal(err)
		}
	}
	damage(4096+512, 16<<10)
	if g := group(t, scan(t, l.Files...), "vg"); g.Seqno != 1 {
		t.Errorf("with one good copy: sequence number %d", g.Seqno)
	}
	damage(63*mib, 64*mib)
	if _, err := lvm2.ScanDevices(devices(t, l.Files...)); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("without a good copy: %v", err)
	}
	damage(512+100, 512+110)
	if _, err := lvm2.ScanDevices(devices(t, l.Files...)); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("with a damaged label: %v", err)
	}
}

// TestOVirtDomain makes a group as oVirt's block domains are: two metadata areas of 128 MiB on each device, in use on
// the first only, extents of 128 MiB, and all that the platform knows in tags.
func TestOVirtDomain(t *testing.T) {
	const domain, volume = "1c6b1a5e-0f4b-4f3e-9a59-8bdc4c0f7a11", "5b0a2c52-6f0e-4b83-a8a0-6a8f2f1f2c33"
	l := sanlab.NewLVM(t, 3<<30, 3<<30)
	for i, d := range l.Devices {
		ignore := "y"
		if i == 0 {
			ignore = "n"
		}
		l.Run("pvcreate", "-q", "--metadatasize", "128m", "--metadatacopies", "2", "--metadataignore", ignore, d)
	}
	l.Run("vgcreate", "-q", "--physicalextentsize", "128m", "--addtag", "RHAT_storage_domain", "--addtag", "MDT_VERSION=5", domain, l.Devices[0], l.Devices[1])
	l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "--contiguous", "n", "-L", "2g", "-n", volume, "--addtag", "IU_0d6f1d34", "--addtag", "PU_00000000", "--addtag", "MD_7", domain)
	l.Run("lvextend", "-q", "-L", "+2g", domain+"/"+volume)
	s := scan(t, l.Files[1], l.Files[0])
	g := group(t, s, domain)
	if diff := cmp.Diff(sorted(bySelf(t, l, domain)), sorted(byUs(g))); diff != "" {
		t.Errorf("(-lvm2 +ours):\n%s", diff)
	}
	v, ok := g.Volume(strings.ReplaceAll(g.Volumes[0].UUID, "-", ""))
	if !ok || v.Size != 4<<30 || g.ExtentBytes != 128*mib || cmp.Diff([]string{"MDT_VERSION=5", "RHAT_storage_domain"}, g.Tags) != "" ||
		cmp.Diff([]string{"IU_0d6f1d34", "MD_7", "PU_00000000"}, v.Tags) != "" {
		t.Errorf("group %+v", g)
	}
	if _, err := s.Open(g, v); err != nil {
		t.Error(err)
	}
	if g := scan(t, l.Files[1]).Groups; g != nil {
		t.Errorf("the second device holds no metadata in use, and gave %+v", g)
	}
}
