package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// scene is what most tests need: a lab with a VM, an appliance connected to it, a repository.
type scene struct {
	*appliance
	lab        *kvmlab.Lab
	guest      *kvmlab.VM
	connection client.Connection
	repo       client.Repository
	vmID       string
}

func newScene(t *testing.T, o kvmlab.Options, spec kvmlab.Spec) *scene {
	t.Helper()
	needLab(t)
	s := &scene{lab: kvmlab.New(t, o)}
	var err error
	if s.guest, err = s.lab.Run(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	s.appliance = newAppliance(t)
	s.connection = s.connect("lab", s.lab.URI())
	s.repo = s.repository("main", filepath.Join(s.data, "repository"))
	s.vmID = s.vm(s.connection.ID, s.guest.Name).ID
	return s
}

// pauseAt restarts the appliance so that it stops at a fault point the next time it gets there.
func (s *scene) pauseAt(point string) *pause {
	s.t.Helper()
	s.stop()
	p := &pause{s: s, point: point, file: filepath.Join(s.t.TempDir(), "paused")}
	s.start("CAIRN_FAULT_POINT="+point+"=pause", "CAIRN_FAULT_FILE="+p.file)
	return p
}

type pause struct {
	s           *scene
	point, file string
}

// reached waits until the appliance stands at the point.
func (p *pause) reached() {
	p.s.t.Helper()
	p.s.wait("fault point "+p.point, func() bool {
		b, err := os.ReadFile(p.file)
		return err == nil && string(b) == p.point
	})
}

// release lets the appliance go on.
func (p *pause) release() {
	p.s.t.Helper()
	if err := os.Remove(p.file); err != nil {
		p.s.t.Fatal(err)
	}
}

func (s *scene) virsh(args ...string) string {
	s.t.Helper()
	out, err := s.lab.Virsh(s.t.Context(), args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// write makes the guest write some rounds.
func (s *scene) write(rounds int) {
	s.t.Helper()
	if _, err := s.guest.Write(s.t.Context(), rounds); err != nil {
		s.t.Fatal(err)
	}
}

// export is a disk of a running pull backup, as libvirt describes it.
type export struct{ disk, name, bitmap, uri string }

// exports reads what libvirt says of the backup job under way.
func (s *scene) exports() []export {
	s.t.Helper()
	xml := s.virsh("backup-dumpxml", s.guest.Name)
	socket := regexp.MustCompile(`socket=['"]([^'"]+)['"]`).FindStringSubmatch(xml)
	if socket == nil {
		s.t.Fatalf("no socket in %s", xml)
	}
	var out []export
	for _, tag := range regexp.MustCompile(`<disk [^>]*>`).FindAllString(xml, -1) {
		attr := func(name string) string {
			if m := regexp.MustCompile(`\b` + name + `=['"]([^'"]*)['"]`).FindStringSubmatch(tag); m != nil {
				return m[1]
			}
			return ""
		}
		if attr("backup") == "no" {
			continue
		}
		e := export{disk: attr("name"), name: attr("exportname"), bitmap: attr("exportbitmap")}
		e.uri = "nbd+unix:///" + e.name + "?socket=" + socket[1]
		out = append(out, e)
	}
	return out
}

// nbdcopy reads an export with libnbd's own program: the second reader.
func (s *scene) nbdcopy(e export, to string) {
	s.t.Helper()
	command(s.t, "nbdcopy", e.uri, to)
}

// dirtyBytes asks libnbd's own program how much of an export changed since the checkpoint.
func (s *scene) dirtyBytes(e export) int64 {
	s.t.Helper()
	out := command(s.t, "nbdinfo", "--map=qemu:dirty-bitmap:"+e.bitmap, "--totals", e.uri)
	var dirty int64
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // bytes, per cent, type, description
		if len(f) >= 3 && f[2] == "1" {
			n, err := strconv.ParseInt(f[0], 10, 64)
			if err != nil {
				s.t.Fatalf("nbdinfo printed %q", line)
			}
			dirty += n
		}
	}
	return dirty
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// sameContent fails the test unless two files hold the same bytes.
func sameContent(t *testing.T, what, got, want string) {
	t.Helper()
	if err := compareFiles(got, want); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func compareFiles(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		na, ea := io.ReadFull(fa, pa)
		nb, eb := io.ReadFull(fb, pb)
		if na != nb {
			return fmt.Errorf("sizes differ near byte %d", off+int64(min(na, nb)))
		}
		if !bytes.Equal(pa[:na], pb[:nb]) {
			i := 0
			for pa[i] == pb[i] {
				i++
			}
			return fmt.Errorf("byte %d differs", off+int64(i))
		}
		if ea != nil || eb != nil {
			return nil
		}
		off += int64(na)
	}
}

// restoredDisks copies the disks of a restored VM to raw files, by target.
func (s *scene) restoredDisks(name string) map[string]string {
	s.t.Helper()
	vm, err := s.lab.Find(s.t.Context(), name)
	if err != nil {
		s.t.Fatal(err)
	}
	disks, err := vm.Disks(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.t.TempDir()
	out := map[string]string{}
	for target, image := range disks {
		raw := filepath.Join(dir, target+".raw")
		if err := s.lab.RawCopy(s.t.Context(), image, raw); err != nil {
			s.t.Fatal(err)
		}
		out[target] = raw
	}
	return out
}

// remove removes a restored VM with its disks.
func (s *scene) remove(name string) {
	s.t.Helper()
	vm, err := s.lab.Find(s.t.Context(), name)
	if err == nil {
		err = vm.Remove(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// leftovers returns everything of ours on the platform that nobody asked to keep, in words. Volumes that a defined
// VM uses are the restored disks.
func (s *scene) leftovers() []string {
	s.t.Helper()
	var out []string
	used := ""
	for name := range strings.Lines(s.virsh("list", "--all", "--name")) {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		xml, err := s.lab.Virsh(context.WithoutCancel(s.t.Context()), "dumpxml", name)
		if err != nil || !strings.Contains(xml, s.lab.Dir()+"/") {
			continue // of another test, perhaps gone meanwhile
		}
		if strings.HasPrefix(name, "cairn-") {
			out = append(out, "domain "+name)
		}
		used += xml
	}
	if _, err := s.lab.Virsh(s.t.Context(), "backup-dumpxml", s.guest.Name); err == nil {
		out = append(out, "backup job of "+s.guest.Name)
	}
	if n := len(s.checkpoints()); n > 1 {
		out = append(out, fmt.Sprintf("%d checkpoints", n))
	}
	files, err := filepath.Glob(filepath.Join(s.lab.PoolDir(), "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	hidden, _ := filepath.Glob(filepath.Join(s.lab.PoolDir(), ".*"))
	for _, f := range append(files, hidden...) {
		if strings.Contains(filepath.Base(f), "cairn-") && !strings.Contains(used, f) {
			out = append(out, "file "+f)
		}
	}
	return out
}

// checkpoints returns the checkpoints of ours on the guest.
func (s *scene) checkpoints() []string {
	s.t.Helper()
	var out []string
	for name := range strings.Lines(s.virsh("checkpoint-list", s.guest.Name, "--name")) {
		if name = strings.TrimSpace(name); strings.HasPrefix(name, "cairn-") {
			out = append(out, name)
		}
	}
	return out
}

func (s *scene) noLeftovers() {
	s.t.Helper()
	for _, l := range s.leftovers() {
		s.t.Errorf("left over on the platform: %s", l)
	}
}

// points returns the restore points of the scene's repository.
func (s *scene) points() []client.RestorePoint {
	s.t.Helper()
	var list client.RestorePointList
	s.must("GET", "/restore-points?limit=1000", nil, &list)
	return list.Items
}

// verifyAll reads every restore point back.
func (s *scene) verifyAll() {
	s.t.Helper()
	for _, p := range s.points() {
		var run client.Run
		s.must("POST", "/restore-points/"+p.ID+"/verify", nil, &run)
		s.ended(run.ID, client.StateSucceeded)
	}
}

// in lets the scene report to a subtest for a while.
func (s *scene) in(t *testing.T, f func()) {
	outer := s.t
	s.t = t
	defer func() { s.t = outer }()
	f()
}
