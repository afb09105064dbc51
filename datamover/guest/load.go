//go:build linux

package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/internal/fault"
)

// LoadModule makes a kernel module of the small image available, such as "xfs", "nfsv4" or "iscsi_tcp". On a host with
// modprobe it does nothing: there the kernel asks by itself.
func LoadModule(name string) error {
	if _, err := os.Stat(filepath.Join(ModuleDir, "modules.always")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	m, err := openModules(ModuleDir)
	if err == nil {
		err = m.load(name)
	}
	if err != nil {
		return fault.Wrap(fault.Unsupported, "load a driver", name, err).Explain(
			"This image has no such driver, or the kernel refuses it.", "The Debian image carries all of Debian's drivers.")
	}
	return nil
}
