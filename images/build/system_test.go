package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
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
	_ = v.awaitQMP(t).Close() // QEMU has made its sockets
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	g := &guestAgent{conn: conn, dec: json.NewDecoder(conn)}
	if err := g.call("guest-ping", nil, nil, bootTimeout); err != nil {
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
