//go:build linux

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/internal/fault"
)

// FwCfgName is the name under which QEMU's fw_cfg carries the document: -fw_cfg name=opt/org.cairn-backup/config,file=…
const FwCfgName = "opt/org.cairn-backup/config"

// root is where the kernel's file systems are; tests have their own.
type root string

func (r root) path(p string) string { return filepath.Join(string(r), p) }

// ConfigFile is where a mover on an existing host finds its document; as the systemd credential of the same name it
// stands in $CREDENTIALS_DIRECTORY.
const ConfigFile = "/etc/cairn-mover/config.yaml"

// ReadConfig reads the configuration from the kernel command line, fw_cfg, a NoCloud seed, a systemd credential and
// ConfigFile and puts them together: the former wins, value by value, and the network as a whole. Nothing found is an error of kind NotFound, a value that
// cannot be is one of kind Invalid, and two seeds with different content are one of kind Conflict. It needs root to look
// for a seed and may be repeated; disks are read, never written.
//
// A seed counts if it can only be the machine's own. One on a bus that platforms plug disks into counts if nothing else names a
// manager, and only that of a machine's first start, which is kept in the directory keep; "" is to look for none there.
func ReadConfig(ctx context.Context, keep string) (Config, error) {
	return root("/").readConfig(ctx, keep, mountSeed)
}

func (r root) readConfig(ctx context.Context, keep string, seed seedReader) (Config, error) {
	var cfg Config
	for _, read := range []func(context.Context) (Config, error){
		r.readCmdline, r.readFwCfg,
		func(ctx context.Context) (Config, error) {
			c, _, err := r.findSeed(ctx, own, seed)
			return c, err
		},
		r.readCredential, r.readFile,
		func(ctx context.Context) (Config, error) {
			if cfg.Manager != "" {
				return Config{}, errNotOurs
			}
			return r.readUnknown(ctx, keep, seed)
		},
	} {
		c, err := read(ctx)
		if errors.Is(err, errNotOurs) {
			continue
		}
		if err != nil {
			return Config{}, err
		}
		cfg = cfg.over(c)
	}
	if len(cfg.Sources) == 0 {
		return Config{}, fault.New(fault.NotFound, "read the mover's configuration", "", "there is none").Explain(
			"Neither the kernel command line, nor fw_cfg, a NoCloud seed or "+ConfigFile+" says which manager this mover belongs to.",
			"Give it one of them, a seed in a CD drive; docs/images.md has an example of each.")
	}
	return cfg, nil
}

func (r root) readCmdline(context.Context) (Config, error) {
	line, err := os.ReadFile(r.path("proc/cmdline"))
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, errNotOurs // a service that sees only its own part of /proc
	}
	if err != nil {
		return Config{}, err
	}
	cfg, ok, err := ParseCmdline(string(line))
	if err != nil {
		return Config{}, err
	}
	if !ok {
		return Config{}, errNotOurs
	}
	cfg.Sources = []string{"kernel command line"}
	return cfg, nil
}

func (r root) readFwCfg(context.Context) (Config, error) {
	return readDocument("fw_cfg", r.path("sys/firmware/qemu_fw_cfg/by_name/"+FwCfgName+"/raw"))
}

func (r root) readCredential(context.Context) (Config, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return Config{}, errNotOurs
	}
	return readDocument("systemd credential", filepath.Join(dir, filepath.Base(ConfigFile)))
}

func (r root) readFile(context.Context) (Config, error) {
	return readDocument(ConfigFile, r.path(ConfigFile))
}

// readDocument reads a document that is for a mover or not there.
func readDocument(source, name string) (Config, error) {
	p, err := readBounded(name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return Config{}, errNotOurs
	}
	if err != nil {
		return Config{}, err
	}
	cfg, err := ParseDocument(p)
	if errors.Is(err, errNotOurs) {
		err = invalid(errors.New("it has no key \"cairn\"")) // nobody else has a document there
	}
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", source, err)
	}
	cfg.Sources = []string{source}
	return cfg, nil
}
