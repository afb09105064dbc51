package sanlab

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/images/cpio"
	"github.com/cairn-backup/cairn/images/debian"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// modules are what a guest on a storage network needs beside what is built into Debian's cloud kernel.
var modules = []string{
	"virtio_pci", "virtio_net", "virtio_console", "sd_mod", "iscsi_tcp", "dm_mod", "dm_snapshot", "dm_thin_pool", "dm_mirror", "dm_raid",
	"raid1", "dm_multipath", "virtio_blk", "nvmet_tcp", "nvme_tcp",
}

// programs are those of this machine that a guest has, with their libraries.
var programs = []string{"/usr/bin/qemu-img", "/usr/bin/qemu-io", "/usr/sbin/lvm", "/usr/sbin/dmsetup", "/usr/sbin/iscsistart"}

// lvmConf lets lvm2 work in a guest that has no udev. It uses the first two disks, of iSCSI or of virtio; others are second paths to them.
const lvmConf = `global { use_lvmpolld=0 event_activation=0 }
devices { use_devicesfile=0 hints="none" obtain_device_list_from_udev=0 external_device_info_source="none" global_filter=["a|^/dev/[sv]d[ab]$|","r|.*|"] }
activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }
backup { backup=0 archive=0 }
`

// kernel returns Debian's cloud kernel and the files of the modules in loading order, from the cache, or fetches them.
func kernel(ctx context.Context) (image string, files []string, err error) {
	cache, err := kvmlab.CacheDir()
	if err != nil {
		return "", nil, err
	}
	of := fnv.New32a() // of another choice of modules nothing can be used
	_, _ = io.WriteString(of, strings.Join(modules, " "))
	dir := filepath.Join(cache, fmt.Sprintf("kernel-san-%08x", of.Sum32()))
	if _, err := os.Stat(filepath.Join(dir, "order")); err != nil {
		if err := fetchKernel(ctx, cache, dir); err != nil {
			return "", nil, fmt.Errorf("fetch a guest kernel: %w", err)
		}
	}
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	for _, name := range strings.Fields(string(order)) {
		files = append(files, filepath.Join(dir, name))
	}
	return filepath.Join(dir, "vmlinuz"), files, err
}

// fetchKernel keeps of Debian's package what guests need. Another process that does the same at once loses nothing.
func fetchKernel(ctx context.Context, cache, dir string) error {
	downloads, err := debian.OpenCache("")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, "fetch-san-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	tree, keep := filepath.Join(tmp, "tree"), filepath.Join(tmp, "keep")
	k, err := downloads.FetchKernel(ctx, "linux-image-cloud-amd64", tree)
	if err != nil {
		return err
	}
	list, err := debian.ResolveModules(k.Modules, modules)
	if err != nil {
		return err
	}
	if err := os.Mkdir(keep, 0o755); err != nil {
		return err
	}
	var order strings.Builder
	wanted := []string{k.Image}
	for _, m := range list {
		wanted = append(wanted, m.File)
		order.WriteString(filepath.Base(m.File) + "\n")
	}
	for i, from := range wanted {
		name := filepath.Base(from)
		if i == 0 {
			name = "vmlinuz"
		}
		if err := os.Rename(from, filepath.Join(keep, name)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(keep, "order"), []byte(order.String()), 0o600); err != nil {
		return err
	}
	if err := os.Rename(keep, dir); err != nil {
		if _, e := os.Stat(filepath.Join(dir, "order")); e != nil {
			return err
		}
	}
	return nil
}

// buildInitrd makes the guest's file system: busybox, the programs and their libraries, the modules, and packages of
// this module built static.
func buildInitrd(ctx context.Context, dir string, modules, packages []string) (string, error) {
	out := filepath.Join(dir, "initrd")
	f, err := os.Create(out)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	c := cpio.New(f, time.Unix(0, 0))
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "var/lock"} {
		c.Dir(d)
	}
	var order strings.Builder
	for _, m := range modules {
		c.FileFrom("lib/modules/"+filepath.Base(m), m, 0o644)
		order.WriteString(filepath.Base(m) + "\n")
	}
	c.File("lib/modules/order", 0o644, []byte(order.String()))
	c.File("etc/lvm/lvm.conf", 0o644, []byte(lvmConf))
	files := map[string]bool{"/bin/busybox": true}
	for _, p := range programs {
		files[p] = true
		libs, err := exec.CommandContext(ctx, "ldd", p).Output()
		if err != nil {
			return "", fmt.Errorf("ldd %s: %w", p, err)
		}
		for word := range strings.FieldsSeq(string(libs)) {
			if strings.HasPrefix(word, "/") {
				files[word] = true
			}
		}
	}
	for name := range files {
		c.FileFrom(strings.TrimPrefix(name, "/"), name, 0o755)
	}
	for place, pkg := range guestPrograms(packages) {
		built := filepath.Join(dir, "program")
		if err := buildProgram(ctx, built, pkg); err != nil {
			return "", err
		}
		c.FileFrom(place, built, 0o755)
	}
	return out, c.Close()
}

// guestPrograms says where in the guest our own programs lie.
func guestPrograms(packages []string) map[string]string {
	out := map[string]string{"init": "./lab/sanlab/guest"}
	for _, p := range packages {
		out["bin/"+filepath.Base(p)] = p
	}
	return out
}

// buildProgram builds a package of this module, static.
func buildProgram(ctx context.Context, out, pkg string) error {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = strings.TrimSpace(string(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if words, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, words)
	}
	return nil
}
