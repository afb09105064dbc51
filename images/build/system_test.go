package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/lab/sanlab"
)

// soak skips what takes many minutes without KVM.
func soak(t *testing.T) {
	t.Helper()
	if os.Getenv("CAIRN_SOAK") != "1" {
		t.Skip("builds and starts a whole Debian system, which takes many minutes; set CAIRN_SOAK=1")
	}
}

// guestAgent speaks to the QEMU guest agent, which runs as root in the Debian images.
type guestAgent struct {
	conn net.Conn
	dec  *json.Decoder
}

// agentArgs give a machine the agent's port.
func agentArgs(socket string) []string {
	return []string{"-device", "virtio-serial-pci", "-chardev", "socket,server=on,wait=off,id=ga,path=" + socket,
		"-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"}
}

// dialAgent waits until the agent answers. What is sent before it runs waits in the port, so one question is enough and
// its answer is no other one's.
func dialAgent(t *testing.T, v *vm, socket string) *guestAgent {
	t.Helper()
	v.awaitQMP(t) // QEMU has made its sockets
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	g := &guestAgent{conn: conn, dec: json.NewDecoder(conn)}
	if err := g.call("guest-ping", nil, nil, 4*bootTimeout); err != nil {
		t.Fatalf("the guest agent does not answer: %v; the machine said:\n%s", err, v.said())
	}
	return g
}

func (g *guestAgent) call(command string, args, result any, wait time.Duration) error {
	if err := g.conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(g.conn).Encode(request); err != nil {
		return err
	}
	var answer struct {
		Return json.RawMessage
		Error  *struct{ Desc string }
	}
	if err := g.dec.Decode(&answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return fmt.Errorf("%s: %s", command, answer.Error.Desc)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Return, result)
}

// sh runs a shell command in the machine and returns what it printed.
func (g *guestAgent) sh(t *testing.T, command string) string {
	t.Helper()
	var started struct{ PID int }
	args := map[string]any{"path": "/bin/sh", "arg": []string{"-c", command + " 2>&1"}, "capture-output": true}
	if err := g.call("guest-exec", args, &started, time.Minute); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(bootTimeout); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		var st struct {
			Exited bool
			Out    []byte `json:"out-data"`
		}
		if err := g.call("guest-exec-status", map[string]any{"pid": started.PID}, &st, time.Minute); err != nil {
			t.Fatal(err)
		}
		if st.Exited {
			return strings.TrimSpace(string(st.Out))
		}
	}
	t.Fatalf("%s does not end", command)
	return ""
}

// checkClosed looks for ways into a machine.
func checkClosed(t *testing.T, g *guestAgent) {
	t.Helper()
	for _, tt := range []struct{ name, command, want string }{
		{"passwords", `grep -c '^[^:]*:[^!*]' /etc/shadow`, "0"},
		{"SSH server", "test ! -e /usr/sbin/sshd && echo none", "none"},
		{"login prompts", "systemctl list-units --all --plain --no-legend --state=running '*getty*'", ""},
		{"failed units", "systemctl list-units --plain --no-legend --failed", ""},
	} {
		if got := g.sh(t, tt.command); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestDebianMover starts the Debian mover with a seed and a disk that carries a volume group of somebody else.
func TestDebianMover(t *testing.T) {
	soak(t)
	out := built(t, "mover-debian")
	checkBOM(t, filepath.Join(out, "cairn-mover-debian.cdx.json"), "pkg:deb/debian/lvm2@", "pkg:deb/debian/linux-image-", "pkg:golang/std@1.26")
	document := "cairn:\n  manager: 10.0.2.2:8441\n  fingerprint: " + bootPrint + "\n  token: T0ken\n  name: deb1\n"
	socket := filepath.Join(t.TempDir(), "ga")
	foreign := sanlab.NewLVM(t, 64<<20) // somebody else's volume group, which is nothing to activate
	foreign.Run("pvcreate", "-q", foreign.Devices[0])
	foreign.Run("vgcreate", "-q", "theirs", foreign.Devices[0])
	foreign.Run("lvcreate", "-q", "-y", "-an", "-Zn", "-Wn", "-l", "4", "-n", "data", "theirs")
	args := []string{"-machine", "q35", "-m", "1024",
		"-drive", "if=virtio,format=qcow2,snapshot=on,file=" + filepath.Join(out, "cairn-mover-debian.qcow2"),
		"-drive", "if=none,id=cd,format=raw,readonly=on,file=" + seedISO(t, document), "-device", "ide-cd,drive=cd",
		"-drive", "if=virtio,format=raw,snapshot=on,file=" + foreign.Files[0]}
	v := startVM(t, append(args, agentArgs(socket)...)...)
	g := dialAgent(t, v, socket)
	g.sh(t, "systemctl is-system-running --wait")
	for _, tt := range []struct{ name, command, want string }{
		{"configuration", "grep -c 'manager: 10.0.2.2:8441' /run/cairn-mover/config.yaml", "1"},
		{"its mode", "stat -c %a%U /run/cairn-mover/config.yaml", "600root"},
		{"host name", "hostname", "deb1"},
		{"TCP listeners", "ss -lntH", ""},
		{"volumes of others", "lsblk -rno TYPE,FSTYPE | grep -c LVM2_member; lsblk -rno TYPE | grep -cx lvm", "1\n0"},
		{"volume groups that LVM sees", "vgs --noheadings", ""},
		{"device mapper", "ls /dev/mapper", "control"},
		{"multipath", "multipath -ll", ""},
		{"mover", "systemctl show -p Result,User --value cairn-mover.service", "success\n"},
	} {
		if got := g.sh(t, tt.command); got != strings.TrimSpace(tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	checkClosed(t, g)
	v.pressPower(t)
}

// TestAppliance starts the appliance and wants its API, with what an admin needs to set it up on the console.
func TestAppliance(t *testing.T) {
	soak(t)
	out := built(t, "appliance")
	socket := filepath.Join(t.TempDir(), "ga")
	args := []string{"-machine", "q35", "-m", "1024", "-drive", "if=virtio,format=qcow2,snapshot=on,file=" + filepath.Join(out, "cairn-appliance.qcow2")}
	v := startVM(t, append(args, agentArgs(socket)...)...)
	v.await(t, "CA fingerprint: ")
	g := dialAgent(t, v, socket)
	g.sh(t, "systemctl is-system-running --wait")
	if got := g.sh(t, "ss -lntH | awk '{print $4}' | sort | tr '\\n' ' '"); got != "*:8440 *:8441" {
		t.Errorf("these listen: %q, want the API and the port for movers", got)
	}
	if got := g.sh(t, "ldd /usr/bin/cairnd | grep -c libvirt; test -e /usr/lib/x86_64-linux-gnu/libvirt.so.0 && echo there"); got != "0\nthere" {
		t.Errorf("libvirt is to be opened when it is needed: %q", got)
	}
	checkClosed(t, g)
	v.pressPower(t)
}
