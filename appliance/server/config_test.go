package server

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsGoBeforeEnvironmentBeforeFileBeforeDefault(t *testing.T) {
	file := writeFile(t, "c.yaml", "# ours\nlisten: :1\nmovers: :2\nworkers: 3\nhosts: [a.example, b.example]\nvm-metrics: false\n")
	for name, tt := range map[string]struct {
		args           []string
		env            func(string) string
		listen, movers string
		workers        int
	}{
		"defaults":    {nil, env(), ":8440", ":8441", 4},
		"file":        {[]string{"--config", file}, env(), ":1", ":2", 3},
		"environment": {nil, env("CAIRND_CONFIG", file, "CAIRN_CONFIG", "/the/command/line's", "CAIRN_LISTEN", ":9"), ":9", ":2", 3},
		"flags":       {[]string{"--config", file, "--listen", ":7", "--workers=2"}, env("CAIRN_LISTEN", ":9", "CAIRN_WORKERS", "8"), ":7", ":2", 2},
	} {
		c, err := configure("cairnd", tt.args, tt.env, &bytes.Buffer{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c.listen != tt.listen || c.movers != tt.movers || c.workers != tt.workers {
			t.Errorf("%s: %s %s %d, want %s %s %d", name, c.listen, c.movers, c.workers, tt.listen, tt.movers, tt.workers)
		}
	}
	c, err := configure("cairnd", []string{"--config", file}, env(), &bytes.Buffer{})
	if err != nil || c.vmSeries || !strings.Contains(strings.Join(c.hosts, " "), "a.example b.example") {
		t.Errorf("vm-metrics %v, hosts %v, %v", c.vmSeries, c.hosts, err)
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"unknown":     {"listen: :1\nlisten-on: :2\n", `line 2: there is no setting "listen-on"`},
		"twice":       {"listen: :1\nlisten: :2\n", "line 2: listen is set twice"},
		"no mapping":  {"- listen\n", "line 1: settings are written as name: value"},
		"nested":      {"listen: {port: 1}\n", "line 1: listen: it is a simple value or a list"},
		"no address":  {"listen: eight\n", "c.yaml, line 1"},
		"no number":   {"workers: many\n", "it is not a number from 1 to 1000"},
		"no level":    {"log-level: loud\n", "log-level"},
		"no YAML":     {"listen: [\n", "yaml"},
		"lost secret": {"database: file:/nowhere/at/all\n", "/nowhere/at/all"},
		"no secret":   {"database: env:NOTHING\n", "env:NOTHING, where nothing is"},
	} {
		var out bytes.Buffer
		err := configCommand([]string{"check", "--config", writeFile(t, "c.yaml", tt.text)}, env(), &out, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), tt.want) || out.Len() > 0 {
			t.Errorf("%s: %v, %q, want %q", name, err, out.String(), tt.want)
		}
	}
	if err := configCommand([]string{"check", "--config", "/nowhere.yaml"}, env(), &bytes.Buffer{}, &bytes.Buffer{}); kindOf(err) != "not-found" {
		t.Errorf("a file that was named and is not there: %v, want not-found", err)
	}
}

func TestConfigPrintShowsNoSecret(t *testing.T) {
	file := writeFile(t, "c.yaml", "database: postgres://cairn:opensesame@db/cairn\nlisten: :1\n")
	var out bytes.Buffer
	if err := configCommand([]string{"print", "--config", file, "--workers", "2"}, env("CAIRN_MOVERS", "none"), &out, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"listen: :1 # c.yaml, line 2\n", "movers: none # CAIRN_MOVERS\n", "workers: 2 # --workers\n", "requests: ", " # default\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "opensesame") {
		t.Errorf("the password is shown:\n%s", out.String())
	}
	again, err := parseConfig("again", out.Bytes())
	if err != nil || again["listen"].value != ":1" || len(again) != len(options()) {
		t.Errorf("what was printed reads as %v, %v", again, err)
	}
}

func TestSecretsComeFromFilesAndCredentials(t *testing.T) {
	file := writeFile(t, "db", "postgres://x\n")
	for source, want := range map[string]catalog.Secret{
		"file:" + file: "postgres://x", "credential:db": "postgres://x", "env:DB": "postgres://y", "postgres://z": "postgres://z", "": "",
	} {
		got, err := readSecret(source, env("CREDENTIALS_DIRECTORY", filepath.Dir(file), "DB", "postgres://y"))
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", source, got == want, err)
		}
	}
	for _, bad := range []string{"credential:../db", "credential:", "file:/nowhere"} {
		if _, err := readSecret(bad, env("CREDENTIALS_DIRECTORY", filepath.Dir(file))); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
	if _, err := readSecret("credential:db", env()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("without systemd: %v, want not-found", err)
	}
}

func TestSystemdIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	notify(t.Context(), path, "READY=1", slog.New(slog.DiscardHandler))
	buf := make([]byte, 64)
	n, _, err := l.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("systemd was told %q, %v", buf[:n], err)
	}
}
