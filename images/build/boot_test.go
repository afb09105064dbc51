package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bootTimeout is how long a machine may take on a busy machine without KVM.
const bootTimeout = 5 * time.Minute

// vm is a machine started by QEMU, without KVM where there is none.
type vm struct {
	cmd   *exec.Cmd
	lines chan string
	qmp   string
	log   []string
}

// startVM starts a machine that ends with the test.
func startVM(t *testing.T, args ...string) *vm {
	t.Helper()
	v := &vm{lines: make(chan string, 4096), qmp: filepath.Join(t.TempDir(), "qmp")}
	accel := []string{"-accel", "tcg", "-cpu", "max"}
	if kvmWorks() {
		accel = []string{"-accel", "kvm", "-cpu", "host"}
	}
	args = append(append(accel, "-display", "none", "-serial", "stdio", "-no-reboot",
		"-qmp", "unix:"+v.qmp+",server=on,wait=off", "-nic", "user,model=virtio-net-pci,restrict=on"), args...)
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
func (v *vm) awaitQMP(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("unix", v.qmp)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("QEMU does not start: %v", err)
		}
	}
}

// pressPower presses the power button, and wants the machine to switch itself off.
func (v *vm) pressPower(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("unix", v.qmp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dec := json.NewDecoder(conn)
	for _, command := range []string{"qmp_capabilities", "system_powerdown"} {
		if _, err := fmt.Fprintf(conn, `{"execute":%q}`+"\n", command); err != nil {
			t.Fatal(err)
		}
		for answered := false; !answered; {
			var m map[string]any
			if err := dec.Decode(&m); err != nil {
				t.Fatal(err)
			}
			_, answered = m["return"]
		}
	}
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

// seedISO writes a NoCloud seed.
func seedISO(t *testing.T, document string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"meta-data": "instance-id: test\n", "user-data": document} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	iso := filepath.Join(t.TempDir(), "seed.iso")
	out, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", iso, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("xorriso: %v: %s", err, out)
	}
	return iso
}

// secureBoot are the arguments for firmware that starts nothing but what Microsoft or Debian signed.
func secureBoot(t *testing.T) []string {
	t.Helper()
	vars := filepath.Join(t.TempDir(), "vars.fd")
	p, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vars, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,unit=0,readonly=on,format=raw,file=/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
		"-drive", "if=pflash,unit=1,format=raw,file=" + vars}
}

// importVMDK turns a streamOptimized VMDK into one to run from, as every importer does.
func importVMDK(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "imported.vmdk")
	if text, err := exec.Command("qemu-img", "convert", "-f", "vmdk", "-O", "vmdk", name, out).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img convert: %v: %s", err, text)
	}
	return out
}

const bootPrint = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// bootSmall starts machines from the small image: every format, both firmwares, and a configuration by each way. Two of
// them stand for all in CI.
func bootSmall(t *testing.T, file func(string) string) {
	document := "#cloud-config\ncairn:\n  manager: 10.0.2.2:8441\n  fingerprint: " + bootPrint + "\n  token: S3cretT0ken\n  name: %s\n"
	fwCfg := func(t *testing.T, name string) []string {
		doc := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(doc, fmt.Appendf(nil, document, name), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"-fw_cfg", "name=opt/org.cairn-backup/config,file=" + doc}
	}
	seed := func(t *testing.T, name string) []string {
		return []string{"-drive", "if=none,id=cd,format=raw,readonly=on,file=" + seedISO(t, fmt.Sprintf(document, name)), "-device", "ide-cd,drive=cd"}
	}
	words := func(*testing.T, string) []string {
		return []string{"-kernel", file(".vmlinuz"), "-initrd", file(".initrd"), "-append", "console=ttyS0 quiet panic=10 no_timer_check " +
			"cairn.manager=10.0.2.2:8441 cairn.fingerprint=" + bootPrint + " cairn.token=S3cretT0ken cairn.name=words cairn.address=10.0.2.77/24 cairn.gateway=10.0.2.2"}
	}
	bios := func(*testing.T) []string { return []string{"-machine", "q35"} }
	i440fx := func(*testing.T) []string { return []string{"-machine", "pc"} }
	disk := func(format, device string) []string {
		name := file("." + format)
		if format == "vmdk" {
			name = importVMDK(t, name)
		}
		return append([]string{"-drive", "if=none,id=disk,snapshot=on,format=" + format + ",file=" + name}, strings.Fields(device)...)
	}
	for _, tt := range []struct {
		name     string
		always   bool // also without CAIRN_SOAK
		firmware func(*testing.T) []string
		disk     []string
		config   func(*testing.T, string) []string
		want     []string
	}{
		{"seed", true, bios, disk("qcow2", "-device virtio-blk-pci,drive=disk"), seed, []string{`NoCloud seed sr0`, "network=dhcp"}},
		{"fwcfg", true, secureBoot, disk("vhdx", "-device virtio-scsi-pci -device scsi-hd,drive=disk"), fwCfg, []string{`[fw_cfg]`}},
		{"words", false, bios, disk("qcow2", "-device virtio-blk-pci,drive=disk"), words, []string{`[kernel command line]`, "address=10.0.2.77/24 gateway=10.0.2.2"}},
		{"vmdk", false, i440fx, disk("vmdk", "-device pvscsi -device scsi-hd,drive=disk"), fwCfg, nil},
		{"vmdkuefi", false, secureBoot, disk("vmdk", "-device virtio-blk-pci,drive=disk"), seed, nil},
		{"qcow2uefi", false, secureBoot, disk("qcow2", "-device nvme,drive=disk,serial=1"), fwCfg, nil},
		{"vhdx", false, i440fx, disk("vhdx", "-device ide-hd,drive=disk"), seed, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.always && os.Getenv("CAIRN_SOAK") != "1" {
				t.Skip("set CAIRN_SOAK=1 for all kinds of machine")
			}
			args := append(tt.firmware(t), "-m", "512")
			v := startVM(t, append(append(args, tt.disk...), tt.config(t, tt.name)...)...)
			first := v.await(t, "cairn-mover starts")
			if secure := strings.Contains(first, "uefi, secure boot"); secure != (len(tt.firmware(t)) > 2) {
				t.Errorf("firmware: %s", first)
			}
			state := v.await(t, "state")
			if !strings.Contains(state, "state is mounted") {
				t.Error(state)
			}
			up := v.await(t, `msg="mover is up"`)
			t.Log(first, up)
			for _, want := range append(tt.want, "config.manager=10.0.2.2:8441", "config.fingerprint="+bootPrint, "config.name="+tt.name,
				"config.token=[redacted]", `listeners=""`) {
				if !strings.Contains(up, want) {
					t.Errorf("the mover does not say %s: %s", want, up)
				}
			}
			if !strings.Contains(strings.Join(v.log, "\n"), "network is up") {
				t.Errorf("no network:\n%s", strings.Join(v.log, "\n"))
			}
			v.pressPower(t)
			if log := strings.Join(v.log, "\n"); strings.Contains(log, "S3cretT0ken") || !strings.Contains(log, "machine stops") {
				t.Errorf("the console shows the token, or not why the machine stops:\n%s", log)
			}
		})
	}
}
