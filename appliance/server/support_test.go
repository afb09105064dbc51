package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	neturl "net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/deploy"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/appliance/support"
	"github.com/cairn-backup/cairn/appliance/support/supporttest"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// secretive is an appliance with a secret wherever one can be, and every secret once more wherever a text can be.
type secretive struct {
	*bench
	secrets map[string]string // by what they are
	log     *slog.Logger
}

// Values that have to be escaped everywhere, so that no form is the same as another.
func odd(name string) string { return name + `-C4n&ry "\<ü>/+%=` + rand.Text()[:8] }

func newSecretive(t *testing.T) *secretive {
	t.Helper()
	fromEnv := odd("environment")
	t.Setenv("CAIRN_TEST_PASSWORD", fromEnv)
	s := &secretive{bench: makeBench(t), secrets: map[string]string{"environment": fromEnv}}
	from := &s.supporting.from
	from.recent = support.NewRing(recentLog)
	s.log = slog.New(slog.NewTextHandler(from.recent, nil))
	ctx := t.Context()

	s.secrets["database"] = odd("database")
	from.database = catalog.Secret((&neturl.URL{Scheme: "postgres", User: neturl.UserPassword("cairn", s.secrets["database"]), Host: "db", Path: "/cairn"}).String())
	sshKey := make([]byte, 200)
	_, _ = rand.Read(sshKey)
	for name, secret := range map[string]string{
		"password": odd("password"), "ssh": string(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: sshKey})),
	} {
		row := &catalog.Connection{Name: name, Platform: memplatform.PlatformName, Address: name}
		if err := s.catalog.CreateConnection(ctx, row, catalog.Secret(secret)); err != nil {
			t.Fatal(err)
		}
		s.secrets[name] = secret
	}
	s.secrets["ssh, in its frame"] = string(sshKey)

	repo, err := s.catalog.Repository(ctx, s.repo)
	if err != nil {
		t.Fatal(err)
	}
	key := s.file(repo.KeyFile)
	s.secrets["repository's key file"] = key
	s.secrets["repository's key"] = strings.Split(key, ":")[1]
	s.secrets["catalog's key"] = s.file(s.path(catalogKeyFile))
	s.secrets["authority's key"] = s.file(s.path(authorityFile))

	people := identity.New(identity.Options{Store: s.catalog, SetUpFile: s.path("setup-token"), Log: s.log})
	if s.secrets["set-up token"], err = people.PrepareSetUp(ctx); err != nil {
		t.Fatal(err)
	}
	s.moverPort.Store(1)
	join, err := s.CreateMoverToken(ctx, fleet.NewToken{Name: "m1", Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s.secrets["join token"] = join.Secret

	s.secrets["chap"] = "chap-c4nary-" + rand.Text()
	session := "iscsi://initiator:" + s.secrets["chap"] + "@192.0.2.9/iqn.2026-11.example:t"
	spec, err := json.Marshal(deploy.Spec{Name: "m2", ConnectionID: s.conn, Sealed: s.catalog.Seal("sessions of mover m2 on "+s.conn, catalog.Secret(session))})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.catalog.CreateRun(ctx, &catalog.Run{Kind: catalog.KindDeploy}, []*catalog.Task{{Spec: spec}},
		func(context.Context, *sql.Tx, catalog.Task) (int64, error) { return 1 << 40, nil })
	if err != nil {
		t.Fatal(err)
	}
	s.log.Info("session begins", "target", session)
	s.backup()
	for what, secret := range s.secrets {
		s.tell(what, secret)
	}
	return s
}

func (s *secretive) file(path string) string {
	s.t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(p)
}

// tell puts a secret where no secret should be: into the log, the audit log, the reason of an exclusion and options of a connection,
// in every form.
func (s *secretive) tell(what, secret string) {
	s.t.Helper()
	s.log.Error("it went wrong with "+what, "err", "refused: "+secret)
	for _, form := range written(secret) {
		s.log.Warn("told", "text", form)
	}
	ctx := s.t.Context()
	text := strings.Join(written(secret), " | ")
	if err := s.catalog.Audit(ctx, catalog.AuditEntry{Actor: "admin", Action: "test", Detail: strings.ToValidUTF8(text, "?")}); err != nil {
		s.t.Fatal(err)
	}
	if err := s.catalog.AddExclusion(ctx, &catalog.Exclusion{Filter: "name = x", Reason: strings.ToValidUTF8(text, "?")}); err != nil {
		s.t.Fatal(err)
	}
	row := &catalog.Connection{Name: "of " + what, Platform: memplatform.PlatformName, Address: what, Options: map[string]string{"note": strings.ToValidUTF8(text, "?"), "password": "another"}}
	if err := s.catalog.CreateConnection(ctx, row, ""); err != nil {
		s.t.Fatal(err)
	}
}

// written are the forms in which a secret may stand somewhere, amid something else.
func written(secret string) []string {
	out := []string{secret, neturl.QueryEscape(secret), neturl.PathEscape(secret), hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	for _, before := range []string{"", "u", "u:"} {
		out = append(out, base64.StdEncoding.EncodeToString([]byte(before+secret)), base64.RawURLEncoding.EncodeToString([]byte(before+secret+"x")))
	}
	return out
}

// betrayed returns what of a secret is in a text.
func betrayed(text, secret string) (out []string) {
	quoted := strconv.Quote(secret)
	inJSON, _ := json.Marshal(secret) // strings always marshal
	needles := []string{secret, quoted[1 : len(quoted)-1], string(inJSON[1 : len(inJSON)-1])}
	for i, form := range written(secret) {
		if i > 4 { // base64: without what hangs together with its neighbours
			form = form[4 : len(form)-4]
		}
		needles = append(needles, form)
	}
	if lines := strings.Split(strings.TrimSpace(secret), "\n"); len(lines) > 2 {
		needles = append(needles, lines[1])
	}
	for _, n := range needles {
		if strings.Contains(text, n) {
			out = append(out, n)
		}
	}
	return out
}

// No secret of the appliance is in a bundle in any form, and without the redactor each would be.
func TestSupportBundleHasNoSecrets(t *testing.T) {
	s := newSecretive(t)
	name, archive, err := s.SupportBundle(t.Context(), admin)
	if err != nil || !strings.HasPrefix(name, "cairn-support-") || !strings.HasSuffix(name, ".zip") {
		t.Fatalf("bundle %q, %v", name, err)
	}
	_, files := supporttest.Unzip(t, archive)
	for what, secret := range s.secrets {
		for file, text := range files {
			if f := betrayed(text, secret); len(f) > 0 {
				t.Errorf("%s has the secret %s as %.60q", file, what, f)
			}
		}
	}
	for file, want := range map[string]string{
		"README.txt": "redacted", "version.json": `"database": "postgresql"`, "host.txt": "== /proc/meminfo", "files.txt": "keys/catalog.key", "log.txt": "it went wrong with join token",
		"connections.json": `"name": "lab"`, "repositories.json": `"name": "main"`, "runs.json": `"kind": "backup"`, "audit.json": `"action": "support.bundle"`, "goroutines.txt": "goroutine ",
		"metrics.txt": "cairn_job_runs_total", "capabilities.json": `"lab": {`, "movers.json": "built-in", "maintenance.json": "verify", "coverage.json": `"web"`, "space.json": "RestorePoints",
		"disks.json": `"free_bytes"`, "exclusions.json": "name = x", "policies.json": "[", "appliance.json": "{", "cleanups.json": "[", "turns.json": "[",
	} {
		if !strings.Contains(files[file], want) {
			t.Errorf("%s has no %q: %.300s", file, want, files[file])
		}
	}
	for line := range strings.Lines(files["missing.txt"]) {
		if !strings.HasPrefix(line, "unit.txt: ") && line != "configuration.yaml: \n" {
			t.Errorf("missing: %s", line)
		}
	}

	t.Run("without the redactor", func(t *testing.T) {
		all := ""
		for _, p := range s.supporting.from.parts(nil) {
			v, _ := p.Gather(t.Context()) // what is not there has no secrets
			switch v := v.(type) {
			case string:
				all += v
			case []byte:
				all += string(v)
			default:
				document, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				all += string(document)
			}
		}
		for what, secret := range s.secrets {
			if len(betrayed(all, secret)) == 0 {
				t.Errorf("the secret %s is not found: that it is not in a bundle proves nothing", what)
			}
		}
	})
	t.Run("secrets that are not known", func(t *testing.T) {
		unknown := fault.New(fault.Corrupt, "open secret of", "conn_1", "unknown form")
		var out bytes.Buffer
		if err := support.Write(t.Context(), &out, "f", time.Now(), support.NewRedactor(), s.supporting.from.parts(unknown)); err != nil {
			t.Fatal(err)
		}
		_, files := supporttest.Unzip(t, out.Bytes())
		if _, ok := files["log.txt"]; ok || !strings.Contains(files["missing.txt"], "log.txt: left out") {
			t.Errorf("missing: %s", files["missing.txt"])
		}
	})
}

func TestSupportBundlesAreMadeOneAtATime(t *testing.T) {
	b := newBench(t)
	b.supporting.making.Lock()
	_, _, err := b.SupportBundle(t.Context(), admin)
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || meaning == "" || advice == "" {
		t.Errorf("got %v", err)
	}
	b.supporting.making.Unlock()
	if _, _, err := b.SupportBundle(t.Context(), admin); err != nil {
		t.Error(err)
	}
}

// TestSupportCommand makes a bundle of an appliance that does not run, and changes nothing of it.
func TestSupportCommand(t *testing.T) {
	b := newBench(t)
	const secret = "p4ssword-of-the-host"
	row := &catalog.Connection{Name: "host", Platform: memplatform.PlatformName, Address: "there", Options: map[string]string{"note": "it is " + secret}}
	if err := b.catalog.CreateConnection(t.Context(), row, secret); err != nil {
		t.Fatal(err)
	}
	dir, file := filepath.Join(b.root, "data"), filepath.Join(t.TempDir(), "bundle.zip")
	command := func(args ...string) (string, error) {
		var said bytes.Buffer
		err := Run(t.Context(), append([]string{"support"}, args...), env(), &said, io.Discard, nil)
		return said.String(), err
	}
	if _, err := command("--data", dir, "--out", file); fault.KindOf(err) != fault.Conflict {
		t.Errorf("beside an appliance that runs: %v", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	said, err := command("--data", dir, "--out", file)
	if err != nil || !strings.Contains(said, "secrets were taken out") {
		t.Fatalf("said %q, %v", said, err)
	}
	archive, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, files := supporttest.Unzip(t, archive)
	if !strings.Contains(files["connections.json"], `"note": "it is [redacted]"`) || !strings.Contains(files["configuration.yaml"], "# --data") || files["disks.json"] == "" {
		t.Errorf("connections %s, configuration %s", files["connections.json"], files["configuration.yaml"])
	}
	for name, args := range map[string][]string{
		"no file": {"--data", dir}, "a file that is there": {"--data", dir, "--out", file}, "no appliance": {"--data", filepath.Join(dir, "none"), "--out", file + "2"},
	} {
		if _, err := command(args...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// A catalog that cannot be read is why the manager does not start; the rest is there all the same.
	if err := os.WriteFile(filepath.Join(dir, "catalog.db"), []byte(strings.Repeat("damaged", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := command("--data", dir, "--out", file+"3"); err != nil {
		t.Fatal(err)
	}
	if archive, err = os.ReadFile(file + "3"); err != nil {
		t.Fatal(err)
	}
	_, files = supporttest.Unzip(t, archive)
	if !strings.Contains(files["missing.txt"], "connections.json: open catalog") || !strings.Contains(files["missing.txt"], "log.txt: left out") || files["version.json"] == "" {
		t.Errorf("missing: %s", files["missing.txt"])
	}
}
