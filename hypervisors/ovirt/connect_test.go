package ovirt

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

func TestOpenRefuses(t *testing.T) {
	good := Config{URL: "https://engine.example.com", User: "admin@internal", Password: "secret"}
	for name, change := range map[string]func(*Config){
		"no TLS":               func(c *Config) { c.URL = "http://engine.example.com" },
		"no host":              func(c *Config) { c.URL = "https:///ovirt-engine" },
		"a user in it":         func(c *Config) { c.URL = "https://me@engine.example.com" },
		"a password in it":     func(c *Config) { c.URL = "https://me:hunter22@engine.example.com" },
		"another path":         func(c *Config) { c.URL = "https://engine.example.com/portal" },
		"a query":              func(c *Config) { c.URL = "https://engine.example.com/?x=1" },
		"no profile":           func(c *Config) { c.User = "admin" },
		"no password":          func(c *Config) { c.Password = "" },
		"an unknown option":    func(c *Config) { c.Options = map[string]string{"insecure": "true"} },
		"no CA file":           func(c *Config) { c.Options = map[string]string{OptCAFile: "/none"} },
		"a CA that is none":    func(c *Config) { c.Options = map[string]string{OptCAFile: "/etc/hostname"} },
		"a short fingerprint":  func(c *Config) { c.Options = map[string]string{OptCAFingerprint: "ab:cd"} },
		"a way that is none":   func(c *Config) { c.Options = map[string]string{OptTransferVia: "carrier"} },
		"checksums, maybe":     func(c *Config) { c.Options = map[string]string{OptChecksums: "maybe"} },
		"addresses, half":      func(c *Config) { c.Options = map[string]string{OptHostAddresses: "node1"} },
		"addresses with paths": func(c *Config) { c.Options = map[string]string{OptHostAddresses: "node1=http://x/"} },
	} {
		cfg := good
		change(&cfg)
		d, err := Open(t.Context(), cfg)
		if d != nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, %v; want an Invalid error", name, d, err)
			continue
		}
		if meaning, advice := fault.Explanation(err); meaning == "" || advice == "" || strings.Contains(err.Error(), "hunter22") {
			t.Errorf("%s: %v is not explained, or shows the password", name, err)
		}
	}
	for _, url := range []string{"https://e", "https://e/", "https://e/ovirt-engine", "https://e/ovirt-engine/api", " https://e/ovirt-engine/api/ "} {
		u, err := parseAddress(url)
		if err != nil || u.String() != "https://e" {
			t.Errorf("%q became %v, %v", url, u, err)
		}
	}
}

// users are the two forms that engines have.
var users = []ovirtsim.User{{Name: "admin@internal", Password: "secret"}, {Name: "admin@ovirt@internalsso", Password: "p&ss=wörd +"}}

func TestLogin(t *testing.T) {
	e := startEngine(t, ovirtsim.Config{Site: testSite(false), Users: users})
	for _, u := range users {
		d := openDriver(t, e, func(c *Config) { c.User, c.Password = u.Name, u.Password })
		h, err := d.Check(t.Context())
		if err != nil || !strings.Contains(h.Product, "4.5") || h.VMs != 2 || h.Movers != 1 || len(h.Problems) > 0 {
			t.Errorf("%s: %+v, %v", u.Name, h, err)
		}
		if n := e.Sessions(); n != 1 {
			t.Errorf("%s: %d sessions after several calls, want 1", u.Name, n)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n := e.Sessions(); n != 0 {
			t.Errorf("%s: %d sessions after Close, want 0", u.Name, n)
		}
		if _, err := d.VMs(t.Context()); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s: a closed driver answers %v", u.Name, err)
		}
	}
	for name, u := range map[string]ovirtsim.User{
		"a wrong password": {Name: "admin@internal", Password: "wrong"},
		"an unknown user":  {Name: "nobody@internal", Password: "secret"},
		"half of the name": {Name: "admin@ovirt", Password: users[1].Password},
	} {
		_, err := openDriver(t, e, func(c *Config) { c.User, c.Password = u.Name, u.Password }).Check(t.Context())
		meaning, advice := fault.Explanation(err)
		if err == nil || fault.KindOf(err) != fault.Denied || !strings.Contains(meaning, "refused") || advice == "" {
			t.Errorf("%s: %v (%s %s), want Denied", name, err, meaning, advice)
		}
	}
}

func TestSessionIsRenewed(t *testing.T) {
	e := startEngine(t, ovirtsim.Config{Site: testSite(false)})
	d := openDriver(t, e)
	want, err := d.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e.EndSessions()
	got, err := d.VMs(t.Context())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("after the end of the session: %v\n%s", err, diff)
	}
	expires := e.Inject(ovirtsim.SessionExpires, ovirtsim.Fault{On: "GET /vms", Times: 2})
	if _, err := d.VMs(t.Context()); fault.KindOf(err) != fault.Denied {
		t.Errorf("a session that ends each time: %v, want Denied", err)
	}
	if expires.Fired() != 2 {
		t.Errorf("the session ended %d times, want 2: one new token is fetched, no more", expires.Fired())
	}
}

// TestBursts looks that what may be repeated is, and nothing else.
func TestBursts(t *testing.T) {
	e := startEngine(t, ovirtsim.Config{Site: testSite(false)})
	d := openDriver(t, e)
	d.conn.Retries = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}
	for _, b := range []ovirtsim.Behaviour{ovirtsim.Unavailable, ovirtsim.InternalError, ovirtsim.ReplyLost} {
		f := e.Inject(b, ovirtsim.Fault{On: "GET /vms", Times: 3})
		if _, err := d.VMs(t.Context()); err != nil || f.Fired() != 3 {
			t.Errorf("%s: %v after %d failures, want none after 3", b, err, f.Fired())
		}
		e.Heal()
		f = e.Inject(b, ovirtsim.Fault{On: "GET /vms"})
		if _, err := d.VMs(t.Context()); fault.KindOf(err) != fault.Transient || f.Fired() != 4 {
			t.Errorf("%s for ever: %v after %d tries, want Transient after 4", b, err, f.Fired())
		}
		e.Heal()
	}
	restarts := e.Inject(ovirtsim.EngineRestarts, ovirtsim.Fault{On: "GET /clusters", Times: 1})
	if _, err := d.VMs(t.Context()); err != nil || restarts.Fired() != 1 {
		t.Errorf("a restart of the engine: %v, %d restarts", err, restarts.Fired())
	}
}

func printOf(t *testing.T, pemData []byte) string {
	t.Helper()
	block, _ := pem.Decode(pemData)
	if block == nil {
		t.Fatal("no PEM")
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

func TestTrust(t *testing.T) {
	e := startEngine(t, ovirtsim.Config{Site: testSite(false)})
	corporate := startEngine(t, ovirtsim.Config{Site: testSite(false), CorporateWeb: true})
	print := printOf(t, e.CA())
	var pairs []string
	for pair := range slices.Chunk([]byte(strings.ToUpper(print)), 2) {
		pairs = append(pairs, string(pair))
	}
	option := func(o map[string]string) func(*Config) { return func(c *Config) { c.Options = o } }
	for name, tt := range map[string]struct {
		engine  *ovirtsim.Engine
		options map[string]string
		want    string // part of what it means; "" is trusted
	}{
		"nothing said":                 {e, nil, "not known here"},
		"by fingerprint of the CA":     {e, map[string]string{OptCAFingerprint: print}, ""},
		"as openssl prints it":         {e, map[string]string{OptCAFingerprint: strings.Join(pairs, ":")}, ""},
		"another fingerprint":          {e, map[string]string{OptCAFingerprint: strings.Repeat("ab", 32)}, "not the one"},
		"another's fingerprint":        {corporate, map[string]string{OptCAFingerprint: print}, "not the one"},
		"the web's, which is another":  {corporate, map[string]string{OptCAFingerprint: printOf(t, corporate.CA())}, ""},
		"the internal one for the web": {corporate, map[string]string{OptCAFingerprint: printOf(t, corporate.InternalCA())}, "not signed by"},
	} {
		d := openDriver(t, tt.engine, option(tt.options))
		_, err := d.Check(t.Context())
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		meaning, advice := fault.Explanation(err)
		if err == nil || fault.KindOf(err) != fault.Denied || !strings.Contains(meaning, tt.want) || advice == "" {
			t.Errorf("%s: %v (%s %s), want Denied with %q", name, err, meaning, advice, tt.want)
		}
		if name == "nothing said" && !strings.Contains(advice, print) {
			t.Errorf("%s: the advice %q does not have the fingerprint %s", name, advice, print)
		}
	}
}

// TestImageioAuthority looks that the hosts' CA is the engine's own, whatever its web server has.
func TestImageioAuthority(t *testing.T) {
	e := startEngine(t, ovirtsim.Config{Site: testSite(false), CorporateWeb: true})
	got, err := openDriver(t, e).conn.ImageioAuthority(t.Context())
	if err != nil || got != string(e.InternalCA()) {
		t.Errorf("imageio's CA is %q, %v; want the internal one", got, err)
	}
	file := filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(file, e.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = openDriver(t, e, func(c *Config) { c.Options[OptImageioCAFile] = file }).conn.ImageioAuthority(t.Context())
	if err != nil || got != string(e.CA()) {
		t.Errorf("imageio's CA is %q, %v; want the configured one", got, err)
	}
}

func TestMissingRights(t *testing.T) {
	viewer := ovirtsim.User{Name: "viewer@internal", Password: "secret", Role: "UserRole"}
	backup := ovirtsim.User{Name: "backup@internal", Password: "secret", Role: "VmBackup"}
	e := startEngine(t, ovirtsim.Config{Site: testSite(false), Users: []ovirtsim.User{viewer, backup}})
	for _, tt := range []struct {
		user ovirtsim.User
		want int
	}{{viewer, 1}, {backup, 0}} {
		h, err := openDriver(t, e, func(c *Config) { c.User = tt.user.Name }).Check(t.Context())
		if err != nil || len(h.Problems) != tt.want {
			t.Errorf("%s: %v, problems %q; want %d", tt.user.Name, err, h.Problems, tt.want)
		}
		if tt.want > 0 && !strings.Contains(h.Problems[0], "backup_disk") {
			t.Errorf("%s: %q names no rights", tt.user.Name, h.Problems)
		}
	}
}

// TestStrangers connects to servers that are no engines.
func TestStrangers(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"a portal": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>Hello</html>")) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.example.com/", http.StatusFound)
		},
		"an echo": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"access_token":"t"}`))
		},
		"an engine of another era": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				_, _ = w.Write([]byte(`{"access_token":"t"}`))
				return
			}
			_, _ = w.Write([]byte(`<api><product_info><name>Engine</name></product_info></api>`))
		},
	} {
		s := httptest.NewTLSServer(handler)
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open(t.Context(), Config{URL: s.URL, User: "admin@internal", Password: "secret", Options: map[string]string{OptCAFile: ca}})
		if err != nil {
			t.Fatal(err)
		}
		d.conn.Retries = nil
		_, err = d.Check(t.Context())
		meaning, advice := fault.Explanation(err)
		if kind := fault.KindOf(err); err == nil || kind != fault.Invalid && kind != fault.Transient || meaning == "" || advice == "" {
			t.Errorf("%s: %v (%v; %q, %q)", name, err, fault.KindOf(err), meaning, advice)
		}
		_ = d.Close()
		s.Close()
	}
}

func TestCheckCountsWhatAnInventoryFinds(t *testing.T) {
	site := testSite(true)
	cl := &site.DataCenters[0].Clusters[0]
	cl.VMs = append(cl.VMs,
		ovirtsim.VM{Name: "mover2", Comment: moverComment + " tag" + unready, Disks: []ovirtsim.Disk{{}}},
		ovirtsim.VM{Name: "half", Comment: restoreComment + "tag", Disks: []ovirtsim.Disk{{}}},
		ovirtsim.VM{Name: "words", Comment: "no cairn-mover", Disks: []ovirtsim.Disk{{}}},
	)
	d := openDriver(t, startEngine(t, ovirtsim.Config{Site: site}))
	h, err := d.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vms, err := d.VMs(t.Context())
	if err != nil || h.VMs != len(vms) || h.VMs != 3 || h.Movers != 2 {
		t.Errorf("%d VMs and %d movers, an inventory finds %d, %v", h.VMs, h.Movers, len(vms), err)
	}
}

func TestAnEngineThatIsNotReachedIsSaidOnce(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	d, err := Open(t.Context(), Config{URL: "https://" + s.Listener.Addr().String(), User: "admin@internal", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	d.conn.Retries = nil
	if _, err = d.VMs(t.Context()); err == nil || strings.Contains(err.Error(), "https://") || !strings.Contains(err.Error(), "log in to engine "+s.Listener.Addr().String()+": dial tcp") {
		t.Errorf("inventory: %v", err)
	}
}

func TestInventory(t *testing.T) {
	site := testSite(true)
	cl := &site.DataCenters[0].Clusters[0]
	cl.VMs = append(cl.VMs,
		ovirtsim.VM{Name: "a <b> & c", Description: "5 > 4", Up: true, Idle: true, Disks: []ovirtsim.Disk{{}, {Shareable: true, Format: "raw"}, {LUN: true, Format: "raw"}, {Illegal: true}, {ReadOnly: true}, {NoTracking: true}}},
		ovirtsim.VM{Name: "HostedEngine", Up: true, Idle: true, Origin: "managed_hosted_engine", Disks: []ovirtsim.Disk{{Format: "raw"}}},
		ovirtsim.VM{Name: "stranger", Up: true, Idle: true, Origin: "external"},
	)
	d := openDriver(t, startEngine(t, ovirtsim.Config{Site: site}))
	vms, err := d.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]hypervisors.VM{}
	var names []string
	for _, vm := range vms {
		byName[vm.Name] = vm
		names = append(names, vm.Name)
	}
	if want := []string{"HostedEngine", "a <b> & c", "archive", "stranger", "web"}; !slices.Equal(names, want) {
		t.Errorf("VMs %q, want %q: movers are left out", names, want)
	}
	web := byName["web"]
	if web.DataCenter != "Default" || web.Cluster != "Default" || !slices.Equal(web.Tags, []string{"prod"}) || !slices.Equal(web.Labels, []string{"gold"}) ||
		!web.Agent || web.Host == "" || web.Power != hypervisors.PowerOn || web.Unprotectable != "" {
		t.Errorf("web is %+v", web)
	}
	if len(web.NICs) != 2 || web.NICs[0].Network != "Default/ovirtmgmt/ovirtmgmt" || web.NICs[0].MAC == "" {
		t.Errorf("NICs of web: %+v", web.NICs)
	}
	if a := byName["archive"]; a.Firmware != hypervisors.UEFI || a.Power != hypervisors.PowerOff || a.Disks[1].Datastore != "san1" || a.Disks[0].BootOrder != 1 {
		t.Errorf("archive is %+v", a)
	}
	var reasons []string
	for _, disk := range byName["a <b> & c"].Disks {
		reasons = append(reasons, strings.SplitN(disk.Unprotectable, ":", 2)[0])
	}
	slices.Sort(reasons)
	if want := []string{"", "", "it is a direct LUN", "it is attached read-only", "it is shareable", "the engine says that its image is illegal"}; !slices.Equal(reasons, want) {
		t.Errorf("reasons %q, want %q", reasons, want)
	}
	if byName["a <b> & c"].Description != "5 > 4" {
		t.Errorf("description %q", byName["a <b> & c"].Description)
	}
	for _, name := range []string{"HostedEngine", "stranger"} {
		vm := byName[name]
		if vm.Unprotectable == "" {
			t.Errorf("%s can be backed up", name)
		}
		f, err := d.Freeze(t.Context(), hypervisors.FreezeRequest{VM: vm.ID, Tag: "never"})
		if f != nil || fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), vm.Unprotectable) {
			t.Errorf("freeze %s: %v, want a Conflict with the reason", name, err)
		}
	}
	stores, err := d.Datastores(t.Context())
	if err != nil || len(stores) != 2 || stores[0].Name != "data1" || stores[0].Kind != "nfs" || !stores[0].Active || stores[0].FreeBytes <= 0 {
		t.Errorf("datastores %+v, %v; want data1 and san1", stores, err)
	}
	networks, err := d.Networks(t.Context())
	if err != nil || len(networks) != 2 || networks[0].Name != "Default/backend/backend" {
		t.Errorf("networks %+v, %v", networks, err)
	}
}

// TestPaging reads more VMs than a page has, two of them of one name.
func TestPaging(t *testing.T) {
	const n = 3*engine.PageSize + 7
	d := openDriver(t, startEngine(t, ovirtsim.Config{Site: ovirtsim.LargeSite(n)}))
	vms, err := d.VMs(t.Context())
	if err != nil || len(vms) != n {
		t.Fatalf("%d VMs, %v; want %d", len(vms), err, n)
	}
	seen := map[string]bool{}
	twins := map[string]bool{}
	for _, vm := range vms {
		seen[vm.ID] = true
		if vm.Name == "twin" {
			twins[vm.DataCenter] = true
		}
	}
	if len(seen) != n || len(twins) != 2 {
		t.Errorf("%d different VMs, twins in %v; want %d and two data centers", len(seen), twins, n)
	}
}
