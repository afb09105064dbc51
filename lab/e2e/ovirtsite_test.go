package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// site is an appliance that is connected to a simulated oVirt. Its scene has no libvirt.
type site struct {
	*scene
	engine *ovirtsim.Engine
	watch  *engineWatch
	http   *http.Client
}

// engineWatch is what the engine tells while it works.
type engineWatch struct {
	mu     sync.Mutex
	frozen map[string]map[string][]byte // the newest freeze of each VM, by disk
	done   func(request string, status int)
}

func (w *engineWatch) freeze(vm string, disks map[string][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen[vm] = disks
}

func (w *engineWatch) answered(request string, status int) {
	w.mu.Lock()
	done := w.done
	w.mu.Unlock()
	if done != nil {
		done(request, status)
	}
}

// onDone has f called for each request that changes something, until it is called again.
func (w *engineWatch) onDone(f func(request string, status int)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = f
}

// of is what the newest freeze of a VM holds.
func (w *engineWatch) of(vm string) map[string][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.frozen[vm]
}

// newSite starts an engine with what config says and an appliance that is connected to it, by the command line.
func newSite(t *testing.T, config ovirtsim.Config, env ...string) *site {
	t.Helper()
	needLab(t)
	t.Setenv("CAIRN_REQUESTS", "2000") // these tests ask more often than people do
	s := &site{watch: &engineWatch{frozen: map[string]map[string][]byte{}}}
	config.Watch = ovirtsim.Watch{Frozen: s.watch.freeze, Done: s.watch.answered}
	var err error
	if s.engine, err = ovirtsim.New(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.engine.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.engine.CA())
	s.http = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	s.scene = &scene{appliance: newAppliance(t)}
	if len(env) > 0 {
		s.stop()
		s.start(env...)
	}
	dir := t.TempDir()
	ca, password := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "password")
	if err := errors.Join(os.WriteFile(ca, s.engine.CA(), 0o600), os.WriteFile(password, []byte("secret\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.cairn("connection", "add", "ovirt", s.engine.URL(), "--platform", "ovirt", "--user", "admin@internal", "--password-file", password, "--option", "ca_file="+ca)
	var all client.ConnectionList
	s.must("GET", "/connections", nil, &all)
	s.connection = all.Items[0]
	s.repo = s.repository("main", filepath.Join(s.data, "repository"))
	return s
}

var cairnProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(cairndBinary), "cairn")
	out, err := exec.Command("go", "build", "-o", path, "github.com/cairn-backup/cairn/cmd/cairn").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build cairn: %w\n%s", err, out)
	}
	return path, err
})

// cairn runs the command line, as an administrator would, and returns what it prints.
func (s *site) cairn(args ...string) string {
	s.t.Helper()
	program, err := cairnProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(s.t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "CAIRN_SERVER=https://"+s.addr, "CAIRN_TOKEN="+s.token, "CAIRN_CA_FINGERPRINT="+s.fingerprint(), "CAIRN_CONFIG="+filepath.Join(s.t.TempDir(), "none"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("cairn %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// on is the site for another test, beside others that use it too: none of them may restart the appliance.
func (s *site) on(t *testing.T) *site {
	out, a := *s, *s.appliance
	a.t = t
	sc := *s.scene
	sc.appliance = &a
	out.scene = &sc
	return &out
}

// ask makes a request to the engine's API as somebody else at the engine, and returns the answer's body.
func (s *site) ask(method, path, body string) string {
	s.t.Helper()
	text, status := s.tryAsk(method, path, body)
	if status >= 300 {
		s.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	return text
}

func (s *site) tryAsk(method, path, body string) (string, int) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.engine.URL()+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.SetBasicAuth("admin@internal", "secret")
	req.Header.Set("Content-Type", "application/xml")
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b), resp.StatusCode
}

// power starts or stops a VM of the engine and waits for it.
func (s *site) power(vm, verb, status string) {
	s.t.Helper()
	s.ask("POST", "/vms/"+vm+"/"+verb, "<action/>")
	s.wait("VM to be "+status, func() bool { return strings.Contains(s.ask("GET", "/vms/"+vm, ""), "<status>"+status+"</status>") })
}

var attachmentID = regexp.MustCompile(`<disk_attachment [^>]*id="([^"]+)"`)

// disks are the ids of a VM's disks in their order.
func (s *site) disks(vm string) (out []string) {
	s.t.Helper()
	for _, m := range attachmentID.FindAllStringSubmatch(s.ask("GET", "/vms/"+vm+"/diskattachments", ""), -1) {
		out = append(out, m[1])
	}
	return out
}

var aliasOf = regexp.MustCompile(`<alias>([^<]*)</alias>`)

// byName lists the disks of a VM in the order of their names, which stays when they are exchanged.
func (s *site) byName(vm string) []string {
	s.t.Helper()
	all, names := s.disks(vm), map[string]string{}
	for _, disk := range all {
		m := aliasOf.FindStringSubmatch(s.ask("GET", "/disks/"+disk, ""))
		if m == nil {
			s.t.Fatalf("disk %s has no name", disk)
		}
		names[disk] = m[1]
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(names[a], names[b]) })
	return all
}

// checkpointsOf counts the checkpoints of a VM, whoever made them.
func (s *site) checkpointsOf(vm string) int {
	s.t.Helper()
	return strings.Count(s.ask("GET", "/vms/"+vm+"/checkpoints", ""), "<checkpoint ")
}

// content hashes what a disk of the engine holds now.
func (s *site) content(disk string) [32]byte {
	s.t.Helper()
	volume, err := s.engine.ActiveVolume(s.t.Context(), disk)
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := s.engine.ReadVolume(s.t.Context(), volume)
	if err != nil {
		s.t.Fatal(err)
	}
	return sha256.Sum256(p)
}

// removeVM removes a VM with its disks.
func (s *site) removeVM(vm string) {
	s.t.Helper()
	s.ask("DELETE", "/vms/"+vm, "")
	s.wait("VM to be gone", func() bool { _, status := s.tryAsk("GET", "/vms/"+vm, ""); return status == http.StatusNotFound })
}

// named is the VM of a name, from an inventory that is read anew.
func (s *site) named(name string) client.VM {
	s.t.Helper()
	return s.vm(s.connection.ID, name)
}

// leftovers is what backups and restores have left on the engine of a VM or of any; see Engine.Leftovers.
func (s *site) leftovers(vm string) []string {
	all := s.engine.Leftovers()
	if vm == "" {
		return all
	}
	return slices.DeleteFunc(all, func(l string) bool { return !strings.HasPrefix(l, "VM "+vm+":") && !strings.Contains(l, vm+"_Disk") })
}

func (s *site) clean(vm, when string) {
	s.t.Helper()
	for _, l := range s.leftovers(vm) {
		s.t.Errorf("left on the engine %s: %s", when, l)
	}
}

// frozenHashes are the hashes of the newest freeze of a VM, by disk.
func (s *site) frozenHashes(vm string) map[string][32]byte {
	s.t.Helper()
	out := map[string][32]byte{}
	for disk, p := range s.watch.of(vm) {
		out[disk] = sha256.Sum256(p)
	}
	if len(out) == 0 {
		s.t.Fatalf("VM %s was never frozen", vm)
	}
	return out
}

// stored hashes the images of restore points, past the appliance: the repository is read by a second process's eyes.
func (s *site) stored(points []string) map[string]map[string][32]byte {
	s.t.Helper()
	b, err := file.Open(s.repo.Path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer b.Close()
	key, err := store.LoadKeyFile(s.repo.KeyFile)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := store.Open(s.t.Context(), b, key, store.Options{ReadOnly: true})
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	out := map[string]map[string][32]byte{}
	for _, id := range points {
		p, err := r.RestorePoint(s.t.Context(), id)
		if err != nil {
			s.t.Fatal(err)
		}
		out[id] = map[string][32]byte{}
		for _, image := range p.Images {
			i, err := r.OpenImage(s.t.Context(), image.Ref)
			if err != nil {
				s.t.Fatal(err)
			}
			h := sha256.New()
			if _, err := io.Copy(h, io.NewSectionReader(i, 0, i.Size())); err != nil {
				s.t.Fatal(err)
			}
			out[id][image.Name] = [32]byte(h.Sum(nil))
			if err := i.Close(); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return out
}

// sameDisks compares what a VM of the engine holds with hashes in the order of the disks.
func (s *site) sameDisks(what, vm string, order []string, want map[string][32]byte) {
	s.t.Helper()
	s.same(what, s.disks(vm), order, want)
}

// same compares the content of disks with what was frozen of others, one by one.
func (s *site) same(what string, got, order []string, want map[string][32]byte) {
	s.t.Helper()
	if len(got) != len(order) {
		s.t.Errorf("%s: %d disks, want %d", what, len(got), len(order))
		return
	}
	for i, disk := range got {
		if s.content(disk) != want[order[i]] {
			s.t.Errorf("%s: disk %d is not what was frozen", what, i)
		}
	}
}

var guestSays = regexp.MustCompile(`<description>(The guest of VM [^<]*)</description>`)

// checks are what the guest of a VM has found each time that it was booted, the newest first.
func (s *site) checks(vm string) (out []string) {
	s.t.Helper()
	for event := range strings.SplitSeq(s.ask("GET", "/events", ""), "</event>") {
		if m := guestSays.FindStringSubmatch(event); m != nil && strings.Contains(event, vm) {
			out = append(out, m[1])
		}
	}
	return out
}

// boots starts a VM and fails the test unless its guest finds its disks whole.
func (s *site) boots(vm string) {
	s.t.Helper()
	before := len(s.checks(vm))
	s.power(vm, "start", "up")
	var now []string
	s.wait("the guest's check", func() bool { now = s.checks(vm); return len(now) > before })
	if !strings.Contains(now[0], "has checked its disks") {
		s.t.Error(now[0])
	}
}

// soak is how many of something there are: few by default.
func soak(usual, many int) int {
	if os.Getenv("CAIRN_SOAK") == "1" {
		return many
	}
	return usual
}
