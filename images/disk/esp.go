package disk

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Boot is what the boot partition is made of.
type Boot struct {
	Kernel  string // a file
	Initrd  string // a file
	Cmdline string
	Loaders Loaders
	MiB     int // size of the partition
	Time    time.Time
}

// Loaders are the boot loaders' files, from Debian's packages: shim and GRUB as Debian signed them for UEFI, so that
// Secure Boot can stay on, and Syslinux for BIOS.
type Loaders struct {
	Shim, Grub string // shimx64.efi.signed, grubx64.efi.signed
	Syslinux   string // the installer, a program
	MBR        string // gptmbr.bin
}

// SystemID is the serial number of the FAT file systems; nothing depends on it.
const SystemID = "CA1B0075"

// MinBootMiB is the smallest FAT32 with clusters of 4 KiB. Smaller clusters would make a smaller one, but GRUB reads one
// cluster at a time, and from a compressed image each read costs a decompression of 64 KiB.
const MinBootMiB = 272

// WriteBoot writes a FAT file system from which a BIOS and a UEFI firmware boot the kernel.
func WriteBoot(ctx context.Context, name string, b Boot) error {
	work, err := os.MkdirTemp(filepath.Dir(name), "boot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	texts := map[string]string{
		"syslinux.cfg": "DEFAULT linux\nPROMPT 0\nTIMEOUT 1\nLABEL linux\n  LINUX /vmlinuz\n  INITRD /initrd.img\n  APPEND " + b.Cmdline + "\n",
		"grub.cfg":     "linux /vmlinuz " + b.Cmdline + "\ninitrd /initrd.img\nboot\n",
	}
	for file, text := range texts {
		if err := os.WriteFile(filepath.Join(work, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	if err := makeFile(name, int64(b.MiB)<<20); err != nil {
		return err
	}
	t := tools{epoch: b.Time}
	if err := t.run(ctx, "mkfs.vfat", "--invariant", "-F", "32", "-s", "8", "-i", SystemID, "-n", "CAIRNBOOT", name); err != nil {
		return err
	}
	if err := t.run(ctx, "mmd", "-i", name, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"); err != nil {
		return err
	}
	for _, f := range [][2]string{
		{b.Loaders.Shim, "EFI/BOOT/BOOTX64.EFI"},
		{b.Loaders.Grub, "EFI/BOOT/grubx64.efi"},
		{filepath.Join(work, "grub.cfg"), "EFI/debian/grub.cfg"}, // where Debian's signed GRUB looks
		{filepath.Join(work, "syslinux.cfg"), "syslinux.cfg"},
		{b.Kernel, "vmlinuz"},
		{b.Initrd, "initrd.img"},
	} {
		if err := t.put(ctx, name, work, f[0], f[1]); err != nil {
			return err
		}
	}
	return t.run(ctx, b.Loaders.Syslinux, "--install", name)
}

// put copies one file into a FAT file system, with the build's time as its own.
func (t tools) put(ctx context.Context, fat, work, from, to string) error {
	p, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	one := filepath.Join(work, "put")
	if err := os.WriteFile(one, p, 0o644); err != nil {
		return err
	}
	if err := os.Chtimes(one, t.epoch, t.epoch); err != nil {
		return err
	}
	return t.run(ctx, "mcopy", "-m", "-i", fat, one, "::/"+to)
}

func makeFile(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// tools runs programs in a world where it is always the same time.
type tools struct{ epoch time.Time }

func (t tools) run(ctx context.Context, name string, args ...string) error {
	unix := strconv.FormatInt(t.epoch.Unix(), 10)
	return runIn(ctx, []string{
		"SOURCE_DATE_EPOCH=" + unix, "E2FSPROGS_FAKE_TIME=" + unix, "TZ=UTC", "LC_ALL=C", "MTOOLS_SKIP_CHECK=1",
	}, name, args...)
}

// searchPath holds the programs of administrators too.
func searchPath() string {
	return strings.Join([]string{"/usr/sbin", "/sbin", os.Getenv("PATH")}, ":")
}
