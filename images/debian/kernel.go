package debian

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Package Package
	Version string // "6.1.0-56-amd64"
	Image   string // vmlinuz, a file
	Modules string // lib/modules/<version>, a directory with depmod's lists
}

// FetchKernel downloads the kernel that a meta package names and unpacks it into a directory.
func (c Cache) FetchKernel(ctx context.Context, meta, dir string) (Kernel, error) {
	name, err := Newest(ctx, meta, "linux-image-")
	if err != nil {
		if e := Update(ctx); e != nil {
			return Kernel{}, err
		}
		if name, err = Newest(ctx, meta, "linux-image-"); err != nil {
			return Kernel{}, err
		}
	}
	p, err := c.Fetch(ctx, name)
	if err != nil {
		return Kernel{}, err
	}
	if err := p.Extract(ctx, dir); err != nil {
		return Kernel{}, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("package %s holds %d kernels (%v)", name, len(images), err)
	}
	k := Kernel{Package: p, Image: images[0], Version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	k.Modules = filepath.Join(dir, "lib/modules", k.Version)
	_, err = run(ctx, "", "/sbin/depmod", "-b", dir, k.Version)
	return k, err
}

// Module is a kernel module.
type Module struct {
	Name string
	File string   // on this machine
	Deps []string // names; those that are needed first stand last
}

// ModuleName returns the kernel's name of a module file.
func ModuleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

// ResolveModules returns modules and all they depend on, each once, dependencies first. dir is a directory with depmod's
// lists. Names that are built into the kernel are left out; a name that the kernel does not have at all is an error.
func ResolveModules(dir string, names []string) ([]Module, error) {
	builtin := map[string]bool{}
	err := eachLine(filepath.Join(dir, "modules.builtin"), func(line string) { builtin[ModuleName(line)] = true })
	if err != nil {
		return nil, err
	}
	known := map[string]Module{}
	err = eachLine(filepath.Join(dir, "modules.dep"), func(line string) {
		file, rest, _ := strings.Cut(line, ":")
		m := Module{Name: ModuleName(file), File: filepath.Join(dir, file)}
		for d := range strings.FieldsSeq(rest) {
			m.Deps = append(m.Deps, ModuleName(d))
		}
		known[m.Name] = m
	})
	if err != nil {
		return nil, err
	}
	var out []Module
	var add func(name string) error
	add = func(name string) error {
		m, ok := known[name]
		if !ok {
			if builtin[name] {
				return nil
			}
			return fmt.Errorf("the kernel has no module %s", name)
		}
		if slices.ContainsFunc(out, func(have Module) bool { return have.Name == name }) {
			return nil
		}
		for _, d := range slices.Backward(m.Deps) {
			if err := add(d); err != nil {
				return err
			}
		}
		out = append(out, m)
		return nil
	}
	for _, n := range names {
		if err := add(ModuleName(n)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Aliases returns the lines of depmod's list of aliases that lead to one of the modules.
func Aliases(dir string, modules []Module) (lines []string, err error) {
	err = eachLine(filepath.Join(dir, "modules.alias"), func(line string) {
		w := strings.Fields(line)
		if len(w) == 3 && slices.ContainsFunc(modules, func(m Module) bool { return m.Name == w[2] }) {
			lines = append(lines, line)
		}
	})
	slices.Sort(lines)
	return lines, err
}

func eachLine(name string, f func(line string)) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	for sc.Scan() {
		f(sc.Text())
	}
	return sc.Err()
}
