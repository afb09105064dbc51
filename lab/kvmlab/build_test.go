package kvmlab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
)

// TestInitramfsCanBeUnpacked lets the real cpio read what we write.
func TestInitramfsCanBeUnpacked(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is not installed")
	}
	dir := t.TempDir()
	k := kernel{dir: dir, modules: []string{"one.ko", "two.ko"}}
	for name, data := range map[string]string{"one.ko": "1", "two.ko": "22", "guest": "#!guest"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(dir, "x.cpio")
	if err := writeInitramfs(t.Context(), archive, filepath.Join(dir, "guest"), k, false); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	cmd := exec.Command("cpio", "-id", "--quiet")
	cmd.Dir = out
	in, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd.Stdin = in
	if words, err := cmd.CombinedOutput(); err != nil || len(words) > 0 {
		t.Fatalf("cpio: %v: %s", err, words)
	}
	for name, want := range map[string]string{"init": "#!guest", "lib/modules/two.ko": "22", "lib/modules/order": "one.ko\ntwo.ko\n"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
	if info, err := os.Stat(filepath.Join(out, "init")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("init: %v, %v; want mode 0755", info.Mode(), err)
	}
}

// image is a disk in memory.
type image []byte

func (m image) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

func TestFillLeavesTheGuestsPlacesAlone(t *testing.T) {
	const size, area, bytesWanted = 16 << 20, 2 << 20, 6 << 20
	m := make(image, size)
	if err := fill(m, size, area, bytesWanted); err != nil {
		t.Fatal(err)
	}
	layout, err := pattern.NewLayout(size, area)
	if err != nil {
		t.Fatal(err)
	}
	var filled int64
	zero := make([]byte, 64<<10)
	for off := int64(0); off < size; off += 64 << 10 {
		if bytes.Equal(m[off:off+64<<10], zero) {
			continue
		}
		filled += 64 << 10
		if layout.Contains(off) {
			t.Errorf("filled at %d, where the guest writes", off)
		}
	}
	if filled != bytesWanted {
		t.Errorf("filled %d bytes, want %d", filled, bytesWanted)
	}
	if err := fill(m, size, area, size); err == nil {
		t.Error("a disk was filled with more than it holds")
	}
}

func TestDomainIsEscaped(t *testing.T) {
	d := domain{Spec: Spec{Title: `a <b> & "c"`}.withDefaults(), FullName: "x&y"}
	text, err := d.xml()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<name>x&amp;y</name>", "<title>a &lt;b&gt; &amp; &#34;c&#34;</title>"} {
		if !strings.Contains(text, want) {
			t.Errorf("the description lacks %s:\n%s", want, text)
		}
	}
}

func TestZombieIsNoDaemon(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(file, []byte(" "+strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if got := livePID(file, strings.TrimSpace(string(comm))); got != os.Getpid() {
		t.Errorf("livePID of ourselves = %d, want %d", got, os.Getpid())
	}
	if got := livePID(file, "libvirtd"); got != 0 {
		t.Errorf("livePID of another program = %d, want 0", got)
	}
	stat := "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat"
	for { // until it is a zombie: we have not waited for it
		b, err := os.ReadFile(stat)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), ") Z ") {
			break
		}
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := livePID(file, "true"); got != 0 {
		t.Errorf("livePID of a zombie = %d, want 0", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
