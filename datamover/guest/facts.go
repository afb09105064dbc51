//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// firmware says how the machine was started: "bios", "uefi", or "uefi, secure boot".
func firmware(sys string) string {
	if _, err := os.Stat(filepath.Join(sys, "firmware/efi")); err != nil {
		return "bios"
	}
	// The kernel's own record of its start: struct boot_params, member secure_boot, where 3 is enabled.
	p, err := os.ReadFile(filepath.Join(sys, "kernel/boot_params/data"))
	if err == nil && len(p) > 0x1ec && p[0x1ec] == 3 {
		return "uefi, secure boot"
	}
	return "uefi"
}

// listeners returns the sockets on which somebody could speak to this machine, "tcp 0.0.0.0:22" in the kernel's
// hexadecimal words. A mover has none.
func listeners(proc string) (out []string) {
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		p, err := os.ReadFile(filepath.Join(proc, table))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(p)) {
			const local, remote, state = 1, 2, 3
			f := strings.Fields(line)
			if len(f) < 4 || !strings.HasSuffix(f[0], ":") {
				continue
			}
			_, port, _ := strings.Cut(f[remote], ":")
			listens := f[state] == "0A" // TCP_LISTEN
			if strings.HasPrefix(table, "udp") {
				listens = port == "0000" // nobody in particular may write to it
			}
			if listens {
				out = append(out, table+" "+f[local])
			}
		}
	}
	slices.Sort(out)
	return out
}
