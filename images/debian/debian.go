// Package debian fetches packages of the machine's own Debian release through apt, which checks their signatures, and
// takes files from them without installing anything.
//
// It is no package manager: it follows no dependencies but those of a meta package that names a kernel. Its invariant: a
// Package's SHA256 is that of the file it names.
package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Package is one downloaded package.
type Package struct {
	Name    string
	Version string
	Arch    string
	SHA256  string // of the .deb, hexadecimal
	File    string // on this machine
}

// Cache is a directory of downloads.
type Cache struct{ dir string }

// OpenCache returns the cache in a directory; "" is CAIRN_IMAGES_CACHE, or cairn-images in the user's cache directory.
func OpenCache(dir string) (Cache, error) {
	if dir == "" {
		dir = os.Getenv("CAIRN_IMAGES_CACHE")
	}
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return Cache{}, err
		}
		dir = filepath.Join(base, "cairn-images")
	}
	return Cache{dir: dir}, os.MkdirAll(dir, 0o755)
}

// Dir is where the cache lies.
func (c Cache) Dir() string { return c.dir }

// Fetch returns the newest version of a package that apt offers, downloaded once. When apt knows no package of the name
// its lists are brought up to date first.
func (c Cache) Fetch(ctx context.Context, name string) (Package, error) {
	p, err := c.fetch(ctx, name)
	if err == nil {
		return p, nil
	}
	if e := Update(ctx); e != nil {
		return Package{}, errors.Join(err, e)
	}
	return c.fetch(ctx, name)
}

func (c Cache) fetch(ctx context.Context, name string) (Package, error) {
	// One line: 'URI' file size hash. The hash may be of another kind, so it is not used.
	line, err := run(ctx, "", "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "--print-uris", name)
	if err != nil {
		return Package{}, err
	}
	words := strings.Fields(line)
	if len(words) < 3 || filepath.Base(words[1]) != words[1] || !strings.HasSuffix(words[1], ".deb") {
		return Package{}, fmt.Errorf("apt says nothing usable of package %s: %q", name, line)
	}
	want, err := run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return Package{}, err
	}
	p := Package{Name: field(want, "Package"), Version: field(want, "Version"), Arch: field(want, "Architecture"), SHA256: field(want, "SHA256")}
	p.File = filepath.Join(c.dir, p.Name+"_"+strings.ReplaceAll(p.Version, ":", "%3a")+"_"+p.Arch+".deb")
	if sum, err := hashFile(p.File); err == nil && sum == p.SHA256 {
		return p, nil
	}
	tmp, err := os.MkdirTemp(c.dir, "download-")
	if err != nil {
		return Package{}, err
	}
	defer os.RemoveAll(tmp)
	if _, err := run(ctx, tmp, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", p.Name+"="+p.Version); err != nil {
		return Package{}, err
	}
	got, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(got) != 1 {
		return Package{}, fmt.Errorf("apt downloaded %d files for package %s (%v)", len(got), name, err)
	}
	sum, err := hashFile(got[0])
	if err != nil || sum != p.SHA256 {
		return Package{}, errors.Join(fmt.Errorf("package %s is not what apt's list says", name), err)
	}
	return p, os.Rename(got[0], p.File)
}

// Newest returns the package that a meta package such as linux-image-amd64 depends on, by a prefix of its name.
func Newest(ctx context.Context, meta, prefix string) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", meta)
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, prefix) {
			return name, nil
		}
	}
	return "", errors.Join(fmt.Errorf("apt knows nothing that %s depends on", meta), err)
}

// Extract unpacks a package's files into a directory.
func (p Package) Extract(ctx context.Context, dir string) error {
	_, err := run(ctx, "", "dpkg-deb", "-x", p.File, dir)
	return err
}

// field returns a field of the first paragraph of a control file.
func field(control, name string) string {
	for line := range strings.Lines(control) {
		if strings.TrimSpace(line) == "" {
			break
		}
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func hashFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// run returns a command's standard output; its errors carry what it said.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}
