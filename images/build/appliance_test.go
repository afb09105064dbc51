package main

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/appliance/support/supporttest"
)

// TestAppliance starts the appliance without its data disk, attaches an empty one, sets it up from here through a forwarded
// port, and makes a repository. Then the disk goes to a machine of a newer image, so to speak: another format on
// another firmware. It must find everything.
func TestAppliance(t *testing.T) {
	soak(t)
	out := built(t, "appliance")
	image := filepath.Join(out, "cairn-appliance")
	t.Run("bom", func(t *testing.T) {
		checkBOM(t, image+".cdx.json", "pkg:deb/debian/libvirt0@", "pkg:golang/github.com/labstack/echo/v4@", "pkg:golang/std@1.26")
		checkPackages(t, image+".packages", "systemd", "libvirt0", "qemu-guest-agent")
	})
	t.Run("formats", func(t *testing.T) { checkFormats(t, func(suffix string) string { return image + suffix }) })
	t.Run("boot", func(t *testing.T) { bootAppliance(t, image) })
	t.Run("again", func(t *testing.T) { checkAgain(t, out, "appliance", "qcow2") })
}

func bootAppliance(t *testing.T, image string) {
	data := filepath.Join(t.TempDir(), "data.qcow2")
	if text, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", data, "8G").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img create: %v: %s", err, text)
	}
	c := newCLI(t, programs(t, "cairn"))
	fingerprint, address := firstAppliance(t, c, image, data)
	secondAppliance(t, c, image, data, fingerprint, address)
}

// applianceArgs are a machine whose API is forwarded to a port of this one, at a disk controller that takes more disks.
func applianceArgs(socket string) []string {
	return append([]string{"-m", "1536", "-device", "virtio-scsi-pci,id=hba", "-nic", "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:0-:8440"},
		agentArgs(socket)...)
}

// forwarded returns the address at which this machine reaches the appliance's API.
func forwarded(t *testing.T, v *vm) string {
	t.Helper()
	var text string
	if err := json.Unmarshal(v.do(t, "human-monitor-command", map[string]any{"command-line": "info usernet"}), &text); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no port is forwarded: %s", text)
	}
	return "https://127.0.0.1:" + m[1]
}

// plug attaches a disk to a running machine.
func (v *vm) plug(t *testing.T, id, format, file string) {
	t.Helper()
	v.do(t, "blockdev-add", map[string]any{"driver": format, "node-name": id, "file": map[string]any{"driver": "file", "filename": file}})
	v.do(t, "device_add", map[string]any{"driver": "scsi-hd", "id": "dev-" + id, "drive": id, "bus": "hba.0"})
}

func firstAppliance(t *testing.T, c cli, image, data string) (fingerprint, address string) {
	socket := filepath.Join(t.TempDir(), "ga")
	args := append(append(bios(t), applianceArgs(socket)...), bootDisk(t, image, "qcow2", "-device virtio-blk-pci,drive=disk")...)
	v := startVM(t, append(args, seedCD(t, "cairn:\n  name: backup1\n")...)...)
	v.await(t, "waiting for a disk for the appliance's data")
	v.plug(t, "data", "qcow2", data)
	v.await(t, "is empty and becomes the appliance's data disk")
	value := func(key string) string {
		_, rest, _ := strings.Cut(v.await(t, key), key)
		return strings.TrimSpace(rest)
	}
	fingerprint = value("CA fingerprint:")
	token := value("set-up token:")
	address = forwarded(t, v)
	c.setUp(t, address, fingerprint, token)
	c.run(t, nil, "repository", "create", "main", "/var/lib/cairn/repositories/main")
	g := dialAgent(t, v, socket)
	g.sh(t, "systemctl is-system-running --wait")
	checkAppliance(t, g)
	checkClosed(t, g)
	t.Log(g.sh(t, "systemd-analyze time"))
	checkSupport(t, c, g)
	v.pressPower(t)
	return fingerprint, address
}

// checkAppliance looks at an appliance from inside.
func checkAppliance(t *testing.T, g *guestAgent) {
	t.Helper()
	for _, tt := range []struct{ name, command, want string }{
		{"listeners", "ss -lntH | awk '{print $4}' | sort | tr '\\n' ' '", "*:8440 *:8441"},
		{"host name", "hostname", "backup1"},
		{"libvirt is opened, not linked", "ldd /usr/bin/cairnd | grep -c libvirt; ls /usr/lib/x86_64-linux-gnu/libvirt.so.0", "0\n/usr/lib/x86_64-linux-gnu/libvirt.so.0"},
		{"the data disk", "findmnt -no LABEL,FSTYPE /var/lib/cairn; stat -c '%a %U' /var/lib/cairn", "cairn-data ext4\n700 cairn"},
		{"who it is", "stat -c '%U %u' /proc/$(systemctl show -p MainPID --value cairnd)", "cairn 873"},
		{"what is on the system's disk", "find / -xdev -newer /etc/machine-id -user cairn -type f", ""},
	} {
		if got := g.sh(t, tt.command); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// checkSupport makes support bundles by the running manager and, once that is stopped, by the program alone: what systemd knows of the
// service is in both, and its journal in the second.
func checkSupport(t *testing.T, c cli, g *guestAgent) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "bundle.zip")
	c.run(t, nil, "support", "bundle", "--out", file)
	online, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if said := g.sh(t, "systemctl stop cairnd && cairnd support --data /var/lib/cairn --out /run/bundle.zip >/run/support.log 2>&1 && echo done || cat /run/support.log"); said != "done" {
		t.Fatalf("cairnd support: %s", said)
	}
	offline, err := base64.StdEncoding.DecodeString(g.sh(t, "base64 -w0 /run/bundle.zip"))
	if err != nil {
		t.Fatal(err)
	}
	for state, bundle := range map[string][]byte{"active": online, "inactive": offline} {
		_, files := supporttest.Unzip(t, bundle)
		t.Logf("%s: missing: %s", state, files["missing.txt"])
		if unit := files["unit.txt"]; !strings.Contains(unit, "ActiveState="+state+"\n") || !strings.Contains(unit, "NRestarts=0") {
			t.Errorf("%s: unit.txt is %q", state, unit)
		}
		if log := files["log.txt"]; !strings.Contains(log, "cairnd") && !strings.Contains(log, "level=") {
			t.Errorf("%s: log.txt is %.300q", state, log)
		}
		if !strings.Contains(files["host.txt"], "Debian GNU/Linux") || !strings.Contains(files["repositories.json"], `"main"`) {
			t.Errorf("%s: host.txt is %.300q, repositories.json %q", state, files["host.txt"], files["repositories.json"])
		}
	}
	_, files := supporttest.Unzip(t, offline)
	if log := files["log.txt"]; !strings.Contains(log, "systemd[1]: Started cairnd.service") {
		t.Errorf("the journal is %.300q", log)
	}
}

// secondAppliance starts with two data disks, of which one is taken away again.
func secondAppliance(t *testing.T, c cli, image, data, fingerprint, before string) {
	other := filepath.Join(t.TempDir(), "other")
	script := `truncate -s 2G "$1" && mke2fs -q -t ext4 -L cairn-data "$1"`
	if text, err := exec.CommandContext(t.Context(), "sh", "-c", script, "other", other).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if text, err := exec.CommandContext(t.Context(), "qemu-img", "resize", "-q", data, "10G").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img resize: %v: %s", err, text)
	}
	socket := filepath.Join(t.TempDir(), "ga")
	args := append(append(secureBoot(t), applianceArgs(socket)...), bootDisk(t, image, "vhdx", "-device scsi-hd,drive=disk,bus=hba.0")...)
	args = append(args, "-drive", "if=none,id=data,format=qcow2,file="+data, "-device", "scsi-hd,drive=data,bus=hba.0",
		"-drive", "if=none,id=other,format=raw,file="+other, "-device", "scsi-hd,drive=other,bus=hba.0,id=dev-other")
	v := startVM(t, args...)
	v.await(t, "these are all data disks of an appliance")
	v.do(t, "device_del", map[string]any{"id": "dev-other"})
	if line := v.await(t, "data disk: "); !strings.Contains(line, ", 9.8G of which") {
		t.Errorf("the data disk was not grown: %s", line)
	}
	if line := v.await(t, "CA fingerprint:"); !strings.Contains(line, fingerprint) {
		t.Errorf("%s, and it was %s", line, fingerprint)
	}
	// The port that this machine forwards is another one; the context of the command line is the same otherwise.
	config := strings.ReplaceAll(readText(t, c.config), before, forwarded(t, v))
	if err := os.WriteFile(c.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var all []client.Repository
	c.run(t, &all, "repository", "list")
	if len(all) != 1 || all[0].Name != "main" {
		t.Errorf("the new machine has the repositories %+v, want main", all)
	}
	g := dialAgent(t, v, socket)
	g.sh(t, "systemctl is-system-running --wait")
	checkClosed(t, g)
	v.pressPower(t)
	if strings.Contains(strings.Join(v.log, "\n"), "set-up token") {
		t.Error("an appliance that is set up offers a set-up token")
	}
}
