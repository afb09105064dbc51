package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// service is what docker-compose makes of one service.
type service struct {
	Image, User, Hostname string
	ReadOnly              bool     `yaml:"read_only"`
	CapDrop               []string `yaml:"cap_drop"`
	SecurityOpt           []string `yaml:"security_opt"`
	Tmpfs                 []string
	Environment           map[string]string
	Volumes               []string
	Secrets               []any
	Healthcheck           struct{ Test []string }
}

// composed lets docker-compose read files, which refuses what the format does not know.
func composed(t *testing.T, files ...string) map[string]service {
	t.Helper()
	args := []string{}
	for _, f := range files {
		args = append(args, "-f", f)
	}
	cmd := exec.CommandContext(t.Context(), "docker-compose", append(args, "config")...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin") // Debian's own Python
	var said strings.Builder
	cmd.Stderr = &said
	p, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker-compose config: %v: %s", err, said.String())
	}
	var doc struct{ Services map[string]service }
	if err := yaml.Unmarshal(p, &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Services
}

func needContainers(t *testing.T) {
	t.Helper()
	if !kvmlab.Wanted() {
		t.Skip("needs docker-compose, umoci, crun and mmdebstrap; set CAIRN_LAB=1")
	}
	t.Chdir("../..") // where `make container` runs
}

func TestComposeWithPostgreSQL(t *testing.T) {
	needContainers(t)
	services := composed(t, "docker-compose.yml", "docker-compose.postgres.yml")
	alone := composed(t, "docker-compose.yml")["cairnd"]
	got := services["cairnd"]
	if got.Environment["CAIRN_DATABASE"] != "file:/run/secrets/database" || len(got.Secrets) != 1 || services["postgres"].Environment["POSTGRES_PASSWORD"] != "" {
		t.Errorf("the appliance is %+v", got)
	}
	delete(got.Environment, "CAIRN_DATABASE")
	got.Secrets = nil
	slices.Sort(got.Volumes) // their order means nothing
	slices.Sort(alone.Volumes)
	if diff := cmp.Diff(got, alone); diff != "" {
		t.Errorf("PostgreSQL changes the appliance's container: %s", diff)
	}
}

// TestContainer builds the image, has umoci check and unpack it, and runs it by crun with all that docker-compose.yml says of it.
func TestContainer(t *testing.T) {
	needContainers(t)
	soak(t)
	out := os.Getenv("CAIRN_IMAGES") // made before
	if out == "" {
		out = build(t, "container", "qcow2")
	}
	checkSums(t, out)
	checkBOM(t, filepath.Join(out, "cairn-container.cdx.json"), "pkg:deb/debian/libvirt0@", "pkg:golang/std@1.26")
	checkPackages(t, filepath.Join(out, "cairn-container.packages"), "libvirt0", "openssh-client", "ca-certificates")
	c := newContainer(t, composed(t, "docker-compose.yml")["cairnd"], unpackImage(t, filepath.Join(out, "cairn-container.tar")))

	said := c.start(t)
	if said["set-up token"] == "" || said["CA fingerprint"] == "" {
		t.Fatalf("it says %v", said)
	}
	c.checkConfined(t)
	c.exec(t, c.service.Healthcheck.Test[1:]...)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("a long enough password"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.cairn(t, "setup", "https://localhost:8440", "--ca-fingerprint", said["CA fingerprint"], "--token", said["set-up token"], "--password-file", password)
	c.cairn(t, "repository", "create", "main", "/srv/cairn/main")
	c.stop(t)

	// Another container with the same volumes is the same appliance.
	if said := c.start(t); said["set-up token"] != "" {
		t.Error("the second container wants to be set up")
	}
	if got := c.cairn(t, "repository", "list", "-o", "name"); strings.TrimSpace(got) != "main" {
		t.Errorf("the second container has repositories %q", got)
	}
	c.stop(t)
	t.Run("again", func(t *testing.T) { checkAgain(t, out, "container", "qcow2") })
}

// unpackImage makes a bundle of an image's archive.
func unpackImage(t *testing.T, archive string) string {
	t.Helper()
	layout, bundle := t.TempDir(), filepath.Join(t.TempDir(), "bundle")
	command(t, "tar", "-C", layout, "-xf", archive)
	command(t, "umoci", "unpack", "--image", layout+":latest", bundle)
	return bundle
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	p, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, p)
	}
	return string(p)
}

// container is a bundle and what compose says of it.
type container struct {
	service              service
	bundle, state, id    string
	home                 string
	running              *exec.Cmd
	uid, gid             int
	stdout               io.Reader
	volumes, volumePaths []string
}

func newContainer(t *testing.T, s service, bundle string) *container {
	t.Helper()
	c := &container{service: s, bundle: bundle, state: t.TempDir(), id: "cairn-test", home: t.TempDir()}
	if _, err := fmt.Sscanf(s.User, "%d:%d", &c.uid, &c.gid); err != nil {
		t.Fatalf("user %q: %v", s.User, err)
	}
	for _, v := range s.Volumes { // an engine gives a new volume the owner and mode of the directory in the image
		name, at, _ := strings.Cut(v, ":")
		at, _, _ = strings.Cut(at, ":")
		info, err := os.Stat(filepath.Join(bundle, "rootfs", at))
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), name)
		owner := info.Sys().(*syscall.Stat_t)
		if err := os.Mkdir(dir, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
		c.volumes, c.volumePaths = append(c.volumes, dir), append(c.volumePaths, at)
	}
	c.configure(t)
	t.Cleanup(func() { // not t.Context(): it is over
		_ = exec.Command("crun", c.args("delete", "--force", c.id)...).Run()
	})
	return c
}

// configure writes what compose says into the bundle's configuration, as an engine does.
func (c *container) configure(t *testing.T) {
	t.Helper()
	file := filepath.Join(c.bundle, "config.json")
	spec := map[string]any{}
	if err := json.Unmarshal([]byte(readText(t, file)), &spec); err != nil {
		t.Fatal(err)
	}
	process, linux := spec["process"].(map[string]any), spec["linux"].(map[string]any)
	process["terminal"], process["user"] = false, map[string]any{"uid": c.uid, "gid": c.gid}
	process["noNewPrivileges"] = slices.Contains(c.service.SecurityOpt, "no-new-privileges:true")
	if slices.Contains(c.service.CapDrop, "ALL") {
		delete(process, "capabilities")
	}
	env := process["env"].([]any)
	for k, v := range c.service.Environment {
		env = append(env, k+"="+v)
	}
	process["env"] = env
	spec["root"].(map[string]any)["readonly"] = c.service.ReadOnly
	spec["hostname"] = c.service.Hostname
	delete(linux, "resources")
	delete(linux, "cgroupsPath")
	mounts := slices.DeleteFunc(spec["mounts"].([]any), func(m any) bool { return m.(map[string]any)["type"] == "cgroup" })
	for _, at := range c.service.Tmpfs {
		mounts = append(mounts, map[string]any{"destination": at, "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "nodev", "mode=1777"}})
	}
	for i, dir := range c.volumes {
		mounts = append(mounts, map[string]any{"destination": c.volumePaths[i], "type": "bind", "source": dir, "options": []string{"rbind", "rw"}})
	}
	spec["mounts"] = mounts
	p, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(file, p, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (c *container) args(args ...string) []string {
	return append([]string{"--root", c.state, "--cgroup-manager", "disabled"}, args...)
}

// start runs the container and returns what it prints for a person.
func (c *container) start(t *testing.T) map[string]string {
	t.Helper()
	// crun refuses a host with both kinds of control groups, also to a container that has none: it does not see the newer kind.
	c.running = exec.Command("unshare", append([]string{"--mount", "--", "sh", "-c", `umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"`, "sh", "crun"},
		c.args("run", "--bundle", c.bundle, c.id)...)...)
	var log strings.Builder
	c.running.Stderr = &log
	out, err := c.running.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.running.Start(); err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		said[key] = strings.TrimSpace(value)
		if key == "set-up token" || key == "movers" && c.isSetUp() {
			c.stdout = out
			return said
		}
	}
	t.Fatalf("it ended (%v), having said %v and\n%s", c.running.Wait(), said, log.String())
	return nil
}

// config is the file of the command line.
func (c *container) config() string { return filepath.Join(c.home, "config.yaml") }

// isSetUp reports whether somebody has set the appliance up: then there is no token to wait for.
func (c *container) isSetUp() bool {
	_, err := os.Stat(c.config())
	return err == nil
}

// pid is that of the container's first process.
func (c *container) pid(t *testing.T) string {
	t.Helper()
	var state struct{ PID int }
	if err := json.Unmarshal([]byte(command(t, "crun", c.args("state", c.id)...)), &state); err != nil || state.PID == 0 {
		t.Fatalf("state %+v: %v", state, err)
	}
	return fmt.Sprint(state.PID)
}

// checkConfined looks from outside at what the process may do.
func (c *container) checkConfined(t *testing.T) {
	t.Helper()
	status := readText(t, "/proc/"+c.pid(t)+"/status")
	for _, want := range []string{fmt.Sprintf("Uid:\t%d\t%d\t%d\t%d\n", c.uid, c.uid, c.uid, c.uid), "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("its process is not %q:\n%s", want, status)
		}
	}
	for dir, writable := range map[string]bool{"/": false, "/etc": false, "/usr/bin": false, "/tmp": true, "/var/lib/cairn": true, "/srv/cairn": true} {
		err := exec.CommandContext(t.Context(), "crun", c.args("exec", "--user", c.service.User, c.id, "touch", dir+"/probe")...).Run()
		if (err == nil) != writable {
			t.Errorf("writing to %s: %v, want it writable %v", dir, err, writable)
		}
	}
}

func (c *container) exec(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, "crun", c.args(append([]string{"exec", "--user", c.service.User, c.id}, args...)...)...)
}

// cairn runs the command line of the image from outside, in the container's network.
func (c *container) cairn(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "nsenter", append([]string{"--net=/proc/" + c.pid(t) + "/ns/net", "--", filepath.Join(c.bundle, "rootfs/usr/bin/cairn")}, args...)...)
	cmd.Env = []string{"HOME=" + c.home, "CAIRN_CONFIG=" + c.config(), "PATH=/usr/bin:/bin"}
	p, err := cmd.Output()
	if err != nil {
		said := ""
		if e, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Output returns it bare
			said = string(e.Stderr)
		}
		t.Fatalf("cairn %s: %v: %s%s", strings.Join(args, " "), err, p, said)
	}
	return string(p)
}

// stop asks the container to end as an engine does, and wants it to end well.
func (c *container) stop(t *testing.T) {
	t.Helper()
	command(t, "crun", c.args("kill", c.id, "TERM")...)
	_, _ = io.Copy(io.Discard, c.stdout)
	if err := c.running.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	_ = exec.CommandContext(t.Context(), "crun", c.args("delete", "--force", c.id)...).Run() // it may have removed itself
}
