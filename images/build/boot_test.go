package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
)

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

// fwCfg gives a machine a document by QEMU's fw_cfg.
func fwCfg(t *testing.T, document string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-fw_cfg", "name=opt/org.cairn-backup/config,file=" + file}
}

// seedCD gives a machine a document by a NoCloud seed in a CD drive.
func seedCD(t *testing.T, document string) []string {
	t.Helper()
	return []string{"-drive", "if=none,id=cd,format=raw,readonly=on,file=" + seedISO(t, document), "-device", "ide-cd,drive=cd"}
}

// anotherMover plugs disks in as oVirt does, with serial numbers that are their own: a mover's of the same image, which has the machine's own
// marks on its partitions, and a seed that names another manager.
func anotherMover(t *testing.T, image string) []string {
	t.Helper()
	return []string{
		"-device", "virtio-scsi-pci,id=plugs", "-drive", "if=none,id=theirs,snapshot=on,format=qcow2,file=" + image + ".qcow2",
		"-device", "scsi-hd,bus=plugs.0,drive=theirs,serial=8b6f3f0e-7a51-4f3c-9d2e-0c8f4f1f0a00",
		"-drive", "if=none,id=seed,format=raw,readonly=on,file=" + seedISO(t, "cairn:\n  manager: 192.0.2.1:8441\n  name: theirs\n"),
		"-device", "scsi-hd,bus=plugs.0,drive=seed,serial=8b6f3f0e-7a51-4f3c-9d2e-0c8f4f1f0a01",
	}
}

// words are a mover's configuration on the kernel command line, with an address of its own.
func words(m *manager, name string, token client.MoverToken) string {
	return "cairn.manager=" + m.movers + " cairn.fingerprint=" + token.Fingerprint + " cairn.token=" + token.Token + " cairn.name=" + name +
		" cairn.address=10.0.2.77/24 cairn.gateway=10.0.2.2"
}

func bios(*testing.T) []string   { return []string{"-machine", "q35"} }
func i440fx(*testing.T) []string { return []string{"-machine", "pc"} }

// bootDisk is an image's disk in a format, on a device; what the machine writes is forgotten.
func bootDisk(t *testing.T, image, format, device string) []string {
	t.Helper()
	name := image + "." + format
	if format == "vmdk" {
		name = importVMDK(t, name)
	}
	return append([]string{"-drive", "if=none,id=disk,snapshot=on,format=" + format + ",file=" + name}, strings.Fields(device)...)
}

// bootSmall starts machines from the small image: every format, both firmwares, and a configuration by each way; each
// enrols at a real manager. One of them stands for all in CI, where a deployed mover (lab/kvmlab) starts from the qcow2 by
// BIOS and a seed.
func bootSmall(t *testing.T, image string) {
	m := startManager(t)
	for _, tt := range []struct {
		name           string
		always         bool // also without CAIRN_SOAK
		firmware       func(*testing.T) []string
		format, device string
		way            string
		want           string
	}{
		{"fwcfg", true, secureBoot, "vhdx", "-device virtio-scsi-pci -device scsi-hd,drive=disk", "fw_cfg", "[fw_cfg]"},
		{"seed", false, bios, "qcow2", "-device virtio-blk-pci,drive=disk,bootindex=1", "plugged", "NoCloud seed sr0"},
		{"words", false, bios, "qcow2", "-device virtio-blk-pci,drive=disk", "words", "[kernel command line]"},
		{"vmdk", false, i440fx, "vmdk", "-device pvscsi -device scsi-hd,drive=disk", "fw_cfg", "network=dhcp"},
		// VMware's own firmware starts from pvscsi; OVMF as Debian builds it has a driver for none of VMware's SCSI adapters.
		{"vmdkuefi", false, secureBoot, "vmdk", "-device ahci,id=hba -device ide-hd,drive=disk,bus=hba.0", "seed", "network=dhcp"},
		{"qcow2uefi", false, secureBoot, "qcow2", "-device nvme,drive=disk,serial=1", "fw_cfg", ""},
		{"vhdx", false, i440fx, "vhdx", "-device ide-hd,drive=disk", "seed", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.always && os.Getenv("CAIRN_SOAK") != "1" {
				t.Skip("set CAIRN_SOAK=1 for all kinds of machine")
			}
			document, token := m.document(t, tt.name)
			args := append(append(tt.firmware(t), "-m", "512"), bootDisk(t, image, tt.format, tt.device)...)
			switch tt.way {
			case "fw_cfg":
				args = append(args, fwCfg(t, document)...)
			case "seed":
				args = append(args, seedCD(t, document)...)
			case "plugged":
				args = append(append(args, seedCD(t, document)...), anotherMover(t, image)...)
			case "words":
				args = append(args, "-kernel", image+".vmlinuz", "-initrd", image+".initrd", "-append",
					"console=ttyS0 quiet panic=10 no_timer_check "+words(m, tt.name, token))
				tt.want += "|address=10.0.2.77/24 gateway=10.0.2.2"
			}
			v := startVM(t, args...)
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
			for _, want := range append(strings.Split(tt.want, "|"), "config.manager="+m.movers, "config.name="+tt.name,
				"config.token=[redacted]", `listeners=""`) {
				if !strings.Contains(up, want) {
					t.Errorf("the mover does not say %s: %s", want, up)
				}
			}
			if got := m.awaitMover(t, v, tt.name, client.MoverOnline); got.Hostname != tt.name || got.MemoryBytes == 0 {
				t.Errorf("the manager knows %+v", got)
			}
			v.pressPower(t)
			m.awaitMover(t, v, tt.name, client.MoverOffline)
			if log := strings.Join(v.log, "\n"); strings.Contains(log, token.Token) || !strings.Contains(log, "machine stops") {
				t.Errorf("the console shows the token, or not why the machine stops:\n%s", log)
			}
		})
	}
	t.Run("kept", func(t *testing.T) { restartSmall(t, m, image) })
}

// restartSmall starts one machine twice. The second time it has no token and no seed: what it knows is on its disk.
func restartSmall(t *testing.T, m *manager, image string) {
	if os.Getenv("CAIRN_SOAK") != "1" {
		t.Skip("set CAIRN_SOAK=1 for a machine that is started again")
	}
	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	if text, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", absolute(t, image+".qcow2"), disk).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img create: %v: %s", err, text)
	}
	args := append(bios(t), "-m", "512", "-drive", "if=virtio,format=qcow2,file="+disk)
	document, token := m.document(t, "kept")
	v := startVM(t, append(args, fwCfg(t, document)...)...)
	first := m.awaitMover(t, v, "kept", client.MoverOnline)
	v.pressPower(t)
	m.awaitMover(t, v, "kept", client.MoverOffline)
	bare := fmt.Sprintf("cairn:\n  manager: %s\n  fingerprint: %s\n", m.movers, token.Fingerprint)
	v = startVM(t, append(args, fwCfg(t, bare)...)...)
	if again := m.awaitMover(t, v, "kept", client.MoverOnline); again.ID != first.ID || !again.EnrolledAt.Equal(first.EnrolledAt) {
		t.Errorf("after a restart it is mover %+v, it was %+v", again, first)
	}
	v.pressPower(t)
}

func absolute(t *testing.T, name string) string {
	t.Helper()
	abs, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
