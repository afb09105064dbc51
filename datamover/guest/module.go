//go:build linux

package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ModuleDir holds the drivers of the small image: <name>.ko, and what depmod knows of them in modules.dep and
// modules.alias; modules.always names those that are loaded at every boot.
const ModuleDir = "/lib/modules"

// modules loads kernel modules: those that devices ask for by their modalias and those asked for by name. Its methods
// may be called from several goroutines.
type modules struct {
	dir    string
	insert func(file string) error

	mu      sync.Mutex
	deps    map[string][]string // name -> names, in loading order
	aliases [][2]string         // pattern, name
	done    map[string]error
}

// openModules reads a module directory. One that is not there has no modules.
func openModules(dir string) (*modules, error) {
	m := &modules{dir: dir, insert: insertModule, deps: map[string][]string{}, done: map[string]error{}}
	err := eachLine(filepath.Join(dir, "modules.dep"), func(line string) {
		file, rest, ok := strings.Cut(line, ":")
		if !ok {
			return
		}
		var deps []string
		for d := range strings.FieldsSeq(rest) {
			deps = append(deps, moduleName(d))
		}
		m.deps[moduleName(file)] = deps
	})
	if err != nil {
		return m, err
	}
	return m, eachLine(filepath.Join(dir, "modules.alias"), func(line string) {
		if w := strings.Fields(line); len(w) == 3 && w[0] == "alias" {
			m.aliases = append(m.aliases, [2]string{w[1], w[2]})
		}
	})
}

// moduleName returns the name of a module file as the kernel has it.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// always returns the names of the modules to load at every boot.
func (m *modules) always() (names []string, err error) {
	err = eachLine(filepath.Join(m.dir, "modules.always"), func(line string) { names = append(names, strings.TrimSpace(line)) })
	return names, err
}

// load loads a module and what it depends on. One that is loaded already is no error; one that is not in the image is
// built into the kernel or an error of kind fs.ErrNotExist.
func (m *modules) load(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loadLocked(moduleName(name), 0)
}

func (m *modules) loadLocked(name string, depth int) error {
	if err, ok := m.done[name]; ok {
		return err
	}
	deps, ok := m.deps[name]
	if !ok || depth > 32 {
		return fmt.Errorf("module %s: %w", name, fs.ErrNotExist)
	}
	// Those it needs stand behind it in the order in which they were added: the last one first.
	for i := len(deps) - 1; i >= 0; i-- {
		if err := m.loadLocked(deps[i], depth+1); err != nil {
			return err
		}
	}
	err := m.insert(m.file(name))
	if errors.Is(err, unix.EEXIST) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("module %s: %w", name, err)
	}
	m.done[name] = err
	return err
}

func (m *modules) file(name string) string { return filepath.Join(m.dir, name+".ko") }

// loadFor loads the modules for a device. Modules that say they do not fit (ENODEV) are no error: aliases are wide.
func (m *modules) loadFor(modalias string) error {
	var errs []error
	for _, a := range m.aliases {
		if ok, _ := path.Match(a[0], modalias); !ok {
			continue
		}
		if err := m.load(a[1]); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// loadPresent loads the modules for all devices that the kernel shows.
func (m *modules) loadPresent(devices string) error {
	var errs []error
	seen := map[string]bool{}
	err := filepath.WalkDir(devices, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // devices go away
		}
		if d.Name() != "modalias" || d.IsDir() {
			return nil
		}
		p, err := os.ReadFile(name)
		if alias := strings.TrimSpace(string(p)); err == nil && !seen[alias] {
			seen[alias] = true
			errs = append(errs, m.loadFor(alias))
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

func insertModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// eachLine calls f for the lines of a file that are neither empty nor comments. A missing file has none.
func eachLine(name string, f func(line string)) error {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	for sc.Scan() {
		if line := sc.Text(); line != "" && line[0] != '#' {
			f(line)
		}
	}
	return sc.Err()
}
