// Package profile keeps the contexts of the command line: which appliances there are, how their certificates are
// known, and the token for each.
//
// It speaks to no server. Its one invariant: the file holds secrets, so it is only ever written with mode 0600, as a
// whole, and a token is never used for another server than the one it was stored with.
package profile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/imagefile"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Secret is a token. It prints as "[redacted]" everywhere; Value gives the token itself.
type Secret string

// String hides the secret.
func (s Secret) String() string { return "[redacted]" }

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Value returns the secret.
func (s Secret) Value() string { return string(s) }

// Context is one appliance.
type Context struct {
	Name          string `yaml:"name" json:"name"`
	Server        string `yaml:"server" json:"server"`
	CAFingerprint string `yaml:"ca_fingerprint,omitempty" json:"ca_fingerprint,omitempty"`
	CAFile        string `yaml:"ca_file,omitempty" json:"ca_file,omitempty"`
	User          string `yaml:"user,omitempty" json:"user,omitempty"`
	Token         Secret `yaml:"token,omitempty" json:"-"`
}

// Config is the content of the file.
type Config struct {
	Current  string    `yaml:"current"`
	Contexts []Context `yaml:"contexts"`
}

// Path returns where the file is: CAIRN_CONFIG, or cairn/config.yaml below the user's configuration directory.
func Path(getenv func(string) string) (string, error) {
	if p := getenv("CAIRN_CONFIG"); p != "" {
		return p, nil
	}
	if dir := getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "cairn", "config.yaml"), nil
	}
	home := getenv("HOME")
	if home == "" {
		return "", fault.New(fault.Invalid, "find configuration", "", "neither HOME nor XDG_CONFIG_HOME is set").
			Explain("There is no place to keep contexts.", "Set CAIRN_CONFIG to a file name.")
	}
	return filepath.Join(home, ".config", "cairn", "config.yaml"), nil
}

// Load reads the file; one that is not there is an empty Config. Keys it does not know are errors, so that a typing
// mistake is not ignored.
func Load(path string) (Config, error) {
	var c Config
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fault.Wrap(fault.KindOf(err), "read configuration", path, err)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fault.Wrap(fault.Invalid, "read configuration", path, err).
			Explain("The file with the contexts cannot be understood.", "Correct it, or move it away and log in again.")
	}
	return c, nil
}

// Save writes the file with mode 0600, its directory with mode 0700 where it has to be made.
func (c Config) Save(path string) error {
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.Wrap(fault.KindOf(err), "write configuration", path, err)
	}
	return imagefile.WriteBytes(path, data, true)
}

// Find returns the context of that name.
func (c Config) Find(name string) (Context, error) {
	i := c.index(name)
	if i < 0 {
		return Context{}, fault.New(fault.NotFound, "", "", "there is no context %q", name).
			Explain("", "List them with \"cairn context list\", or make one with \"cairn login\".")
	}
	return c.Contexts[i], nil
}

// Put adds a context or replaces the one of its name, and makes it the current one.
func (c *Config) Put(ctx Context) {
	if i := c.index(ctx.Name); i >= 0 {
		c.Contexts[i] = ctx
	} else {
		c.Contexts = append(c.Contexts, ctx)
	}
	c.Current = ctx.Name
}

// Remove takes a context away.
func (c *Config) Remove(name string) error {
	i := c.index(name)
	if i < 0 {
		_, err := c.Find(name)
		return err
	}
	c.Contexts = slices.Delete(c.Contexts, i, i+1)
	if c.Current == name {
		c.Current = ""
	}
	return nil
}

func (c Config) index(name string) int {
	return slices.IndexFunc(c.Contexts, func(x Context) bool { return x.Name == name })
}
