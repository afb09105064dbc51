package kvmlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/images/debian"
)

// kernel is a Debian cloud kernel and the modules that guests need, in loading order.
type kernel struct {
	dir     string
	image   string
	modules []string
}

const cloudKernel = "linux-image-cloud-amd64"

var guestModules = []string{"virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console", "button", "evdev"}

// module is the path of this module in go.mod.
const module = "github.com/cairn-backup/cairn"

// sourceDir finds the source tree: CAIRN_SRC, or the working directory and the ones above it.
func sourceDir() (string, error) {
	dir := os.Getenv("CAIRN_SRC")
	if dir != "" {
		return dir, nil
	}
	dir, err := os.Getwd()
	for err == nil {
		if b, e := os.ReadFile(filepath.Join(dir, "go.mod")); e == nil && strings.HasPrefix(string(b), "module "+module+"\n") {
			return dir, nil
		}
		if dir == "/" {
			err = errors.New("not inside Cairn's source tree, and CAIRN_SRC does not name it")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// CacheDir is where downloads stay: CAIRN_CACHE, or .work/cache in the source tree.
func CacheDir() (string, error) {
	if dir := os.Getenv("CAIRN_CACHE"); dir != "" {
		return dir, nil
	}
	src, err := sourceDir()
	return filepath.Join(src, ".work", "cache"), err
}

// findKernel returns the newest kernel in the cache and fetches one if there is none.
func findKernel(ctx context.Context, cache string) (kernel, error) {
	base := filepath.Join(cache, "kernel")
	unlock, err := lockFile(ctx, filepath.Join(cache, "kernel.lock"))
	if err != nil {
		return kernel{}, err
	}
	defer unlock()
	found, err := filepath.Glob(filepath.Join(base, "*", "order"))
	if err != nil {
		return kernel{}, err
	}
	if len(found) == 0 {
		if err := fetchKernel(ctx, base); err != nil {
			return kernel{}, fmt.Errorf("fetch a guest kernel: %w", err)
		}
		found, _ = filepath.Glob(filepath.Join(base, "*", "order"))
	}
	if len(found) == 0 {
		return kernel{}, errors.New("the kernel package holds no kernel")
	}
	slices.Sort(found)
	k := kernel{dir: filepath.Dir(found[len(found)-1])}
	k.image = filepath.Join(k.dir, "vmlinuz")
	order, err := os.ReadFile(filepath.Join(k.dir, "order"))
	k.modules = strings.Fields(string(order))
	return k, err
}

// fetchKernel downloads Debian's cloud kernel package and keeps of it what guests need.
func fetchKernel(ctx context.Context, base string) error {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(base, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	name, err := kernelPackage(ctx)
	if err != nil {
		return err
	}
	if _, err := run(ctx, "sh", "-c", `cd "$1" && apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3 download "$2" && dpkg-deb -x ./*.deb tree`, "fetch", tmp, name); err != nil {
		return err
	}
	tree := filepath.Join(tmp, "tree")
	images, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("package %s holds %d kernels (%v)", name, len(images), err)
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	if _, err := run(ctx, "/sbin/depmod", "-b", tree, version); err != nil {
		return err
	}
	keep := filepath.Join(tmp, "keep")
	if err := os.Mkdir(keep, 0o755); err != nil {
		return err
	}
	modules, err := debian.ResolveModules(filepath.Join(tree, "lib/modules", version), guestModules)
	if err != nil {
		return err
	}
	var order []string
	for _, m := range modules {
		order = append(order, filepath.Base(m.File))
		if err := copyFile(filepath.Join(keep, filepath.Base(m.File)), m.File, 0o644); err != nil {
			return err
		}
	}
	if err := copyFile(filepath.Join(keep, "vmlinuz"), images[0], 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(keep, "order"), []byte(strings.Join(order, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(keep, filepath.Join(base, version))
}

// kernelPackage asks apt which package the newest cloud kernel is.
func kernelPackage(ctx context.Context) (string, error) {
	ask := func() (string, error) {
		out, err := run(ctx, "apt-cache", "depends", cloudKernel)
		for line := range strings.Lines(out) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
				return "linux-image-" + name, nil
			}
		}
		return "", errors.Join(fmt.Errorf("apt knows no %s", cloudKernel), err)
	}
	name, err := ask()
	if err == nil {
		return name, nil
	}
	if err := debian.Update(ctx); err != nil {
		return "", err
	}
	return ask()
}
