// Package small makes the small mover image: an unmodified Debian kernel, the static mover as its only program, and the
// drivers that it can need. There is no shell, no password and no second program.
//
// Its invariant: the image holds exactly what List says, and the same inputs give the same bytes.
package small

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/images/cpio"
	"github.com/cairn-backup/cairn/images/debian"
)

// Cmdline is the kernel's command line in the image. A panic starts the machine again; the check of the timer is left out,
// since it fails in virtual machines whose host is busy.
const Cmdline = "console=tty0 console=ttyS0,115200 quiet panic=10 no_timer_check"

// Inputs are what an image is made of.
type Inputs struct {
	Program string // cairn-mover, static
	Kernel  debian.Kernel
	Roots   string // directory with certificates of public authorities, for repositories in clouds
	Version string
	Time    time.Time // of all files
}

// file is one file of the image.
type file struct {
	name string
	perm uint32
	data []byte
	from string // instead of data
}

// files returns the image's files in their order.
func (in Inputs) files() ([]file, error) {
	modules, err := debian.ResolveModules(in.Kernel.Modules, slices.Concat(devices, always, onDemand))
	if err != nil {
		return nil, err
	}
	aliases, err := debian.Aliases(in.Kernel.Modules, modules)
	if err != nil {
		return nil, err
	}
	var deps strings.Builder
	for _, m := range modules {
		fmt.Fprintf(&deps, "%s.ko:", m.Name)
		for _, d := range m.Deps {
			fmt.Fprintf(&deps, " %s.ko", d)
		}
		deps.WriteByte('\n')
	}
	about, err := json.MarshalIndent(map[string]string{
		"image": "cairn-mover", "version": in.Version, "kernel": in.Kernel.Package.Name + " " + in.Kernel.Package.Version,
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	roots, err := bundle(in.Roots)
	if err != nil {
		return nil, err
	}
	out := []file{
		{name: "init", perm: 0o755, from: in.Program},
		{name: "etc/cairn-image.json", perm: 0o644, data: append(about, '\n')},
		{name: "etc/hosts", perm: 0o644, data: []byte("127.0.0.1 localhost\n::1 localhost\n")},
		{name: "etc/ssl/certs/ca-certificates.crt", perm: 0o644, data: roots},
		{name: "lib/modules/modules.dep", perm: 0o644, data: []byte(deps.String())},
		{name: "lib/modules/modules.alias", perm: 0o644, data: []byte(strings.Join(aliases, "\n") + "\n")},
		{name: "lib/modules/modules.always", perm: 0o644, data: []byte(strings.Join(always, "\n") + "\n")},
	}
	for _, m := range modules {
		out = append(out, file{name: "lib/modules/" + m.Name + ".ko", perm: 0o644, from: m.File})
	}
	return out, nil
}

// emptyDirs are mount points and what the mover fills.
var emptyDirs = []string{"dev", "proc", "sys", "run", "tmp", "var/lib/cairn-mover", "mnt"}

// WriteInitrd writes the first file system and returns the names of the files in it.
func (in Inputs) WriteInitrd(name string) (list []string, err error) {
	files, err := in.files()
	if err != nil {
		return nil, err
	}
	var raw bytes.Buffer
	w := cpio.New(&raw, in.Time)
	for _, d := range emptyDirs {
		w.Dir(d)
	}
	for _, f := range files {
		list = append(list, f.name)
		if f.from != "" {
			w.FileFrom(f.name, f.from, f.perm)
			continue
		}
		w.File(f.name, f.perm, f.data)
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return list, compress(name, &raw)
}

// compress writes what the kernel's own zstd reader takes. One thread, since the blocks' order is to be the same; level 19 costs
// half a minute of one processor and saves a megabyte.
func compress(name string, raw io.Reader) error {
	cmd := exec.Command("zstd", "-19", "--single-thread", "--quiet", "--force", "-o", name)
	cmd.Stdin = raw
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("zstd: %w: %s", err, said)
	}
	return nil
}

// bundle puts certificates in PEM form into one file, as crypto/x509 looks for it.
func bundle(dir string) ([]byte, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.crt"))
	if err != nil || len(names) == 0 {
		return nil, fmt.Errorf("%d certificates in %s (%v)", len(names), dir, err)
	}
	slices.Sort(names)
	var out []byte
	for _, n := range names {
		p, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out = append(append(out, bytes.TrimSpace(p)...), '\n')
	}
	return out, nil
}
