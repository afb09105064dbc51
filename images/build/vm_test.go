package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// bootTimeout bounds a test that hangs; without KVM, on a busy machine, a Debian system has taken minutes.
const bootTimeout = 15 * time.Minute

// vm is a machine started by QEMU, without KVM where there is none.
type vm struct {
	cmd   *exec.Cmd
	lines chan string
	qmp   string
	log   []string
}

// startVM starts a machine that ends with the test. It reaches this machine at 10.0.2.2, unless args say another network.
func startVM(t *testing.T, args ...string) *vm {
	t.Helper()
	v := &vm{lines: make(chan string, 4096), qmp: filepath.Join(t.TempDir(), "qmp")}
	accel := []string{"-accel", "tcg", "-cpu", "max"}
	if kvmWorks() {
		accel = []string{"-accel", "kvm", "-cpu", "host"}
	}
	args = append(append(accel, "-uuid", "8b6f3f0e-7a51-4f3c-9d2e-0c8f4f1f0aff", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-qmp", "unix:"+v.qmp+",server=on,wait=off"), args...)
	if !slices.Contains(args, "-nic") {
		args = append(args, "-nic", "user,model=virtio-net-pci")
	}
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	v.cmd.Stderr = os.Stderr
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(v.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			v.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill() // it has ended when all went well
		_ = v.cmd.Wait()
	})
	return v
}

// kvmWorks says whether QEMU can use the processor's virtualization: the device alone is no proof.
func kvmWorks() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	p, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && (bytes.Contains(p, []byte(" vmx")) || bytes.Contains(p, []byte(" svm")))
}

// await returns the first line of the machine's console with a text in it.
func (v *vm) await(t *testing.T, text string) string {
	t.Helper()
	for end := time.After(bootTimeout); ; {
		select {
		case line, ok := <-v.lines:
			if !ok {
				t.Fatalf("the machine ended without saying %q:\n%s", text, strings.Join(v.log, "\n"))
			}
			v.log = append(v.log, line)
			if strings.Contains(line, text) {
				return line
			}
		case <-end:
			t.Fatalf("the machine does not say %q; it said:\n%s", text, strings.Join(v.log, "\n"))
		}
	}
}

// said returns what the machine printed that nobody has looked at, and what somebody has.
func (v *vm) said() string {
	for {
		select {
		case line, ok := <-v.lines:
			if ok {
				v.log = append(v.log, line)
				continue
			}
		default:
		}
		return strings.Join(v.log, "\n")
	}
}

// awaitQMP waits until QEMU takes commands.
func (v *vm) awaitQMP(t *testing.T) net.Conn {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("unix", v.qmp)
		if err == nil {
			return conn
		}
		if time.Now().After(end) {
			t.Fatalf("QEMU does not start: %v", err)
		}
	}
}

// do gives QEMU a command and returns its answer.
func (v *vm) do(t *testing.T, command string, args map[string]any) json.RawMessage {
	t.Helper()
	conn := v.awaitQMP(t)
	defer conn.Close()
	dec, enc := json.NewDecoder(conn), json.NewEncoder(conn)
	var last json.RawMessage
	for _, request := range []map[string]any{{"execute": "qmp_capabilities"}, {"execute": command, "arguments": args}} {
		if args == nil {
			delete(request, "arguments")
		}
		if err := enc.Encode(request); err != nil {
			t.Fatal(err)
		}
		for last = nil; last == nil; {
			var m struct {
				Return json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := dec.Decode(&m); err != nil {
				t.Fatal(err)
			}
			if m.Error != nil {
				t.Fatalf("%s: %s", command, m.Error.Desc)
			}
			last = m.Return // an event has none
		}
	}
	return last
}

// pressPower presses the power button, and wants the machine to switch itself off.
func (v *vm) pressPower(t *testing.T) {
	t.Helper()
	v.do(t, "system_powerdown", nil)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = v.cmd.Process.Kill() })
	defer stop()
	for line := range v.lines {
		v.log = append(v.log, line)
	}
	if err := v.cmd.Wait(); err != nil || ctx.Err() != nil {
		t.Errorf("the machine did not switch itself off (%v); it said:\n%s", errors.Join(err, ctx.Err()), strings.Join(v.log, "\n"))
	}
}
