package server

import (
	"context"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	neturl "net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/deploy"
	"github.com/cairn-backup/cairn/appliance/support"
)

// redactor makes a redactor of every secret that the appliance has; the error says why some are not known.
func (b bundled) redactor(ctx context.Context) (*support.Redactor, error) {
	var known []string
	add := func(texts ...string) {
		for _, s := range texts {
			known = append(known, s)
			known = append(known, secretsIn(s)...)
		}
	}
	errs := []error{b.closed}
	add(string(b.database))
	for _, dir := range []string{"keys", "tls"} {
		files, err := secretFiles(filepath.Join(b.dir, dir))
		add(files...)
		errs = append(errs, err)
	}
	if hash, err := os.ReadFile(filepath.Join(b.dir, "setup-token")); err == nil {
		add(string(hash))
	}
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); secretVariable.MatchString(name) {
			add(value)
		}
	}
	if b.catalog != nil {
		sealed, err := b.sealed(ctx)
		add(sealed...)
		errs = append(errs, err)
	}
	return support.NewRedactor(known...), errors.Join(errs...)
}

var secretVariable = regexp.MustCompile(`(?i)pass|secret|token|key|credential`)

// sealed are the secrets in the catalog, and those it says the place of.
func (b bundled) sealed(ctx context.Context) (out []string, err error) {
	secrets, err := b.catalog.Secrets(ctx)
	for _, s := range secrets {
		out = append(out, string(s))
	}
	list, listErr := b.catalog.AllRepositories(ctx)
	errs := []error{err, listErr}
	for _, r := range list {
		source := r.KeyFile
		if filepath.IsAbs(source) {
			source = "file:" + source
		}
		key, err := readSecret(source, b.getenvOr)
		out = append(out, string(key))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a key that is not there cannot be in the log either
			errs = append(errs, err)
		}
	}
	runs, err := everyPage(func(p catalog.Page) (catalog.List[catalog.Run], error) {
		return b.catalog.Runs(ctx, catalog.RunFilter{Kind: catalog.KindDeploy}, p)
	})
	errs = append(errs, err)
	var ids []string
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	for part := range slices.Chunk(ids, catalog.MaxLimit) {
		tasks, err := b.catalog.TasksOfRuns(ctx, part)
		errs = append(errs, err)
		for _, t := range slices.Concat(slices.Collect(maps.Values(tasks))...) {
			sessions, err := deploy.SessionsOf(b.catalog, t)
			out = append(out, strings.Fields(string(sessions))...)
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

func (b bundled) getenvOr(name string) string {
	if b.getenv == nil {
		return ""
	}
	return b.getenv(name)
}

// secretFiles are the contents of the files of a directory, but for certificates.
func secretFiles(dir string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() || strings.HasSuffix(e.Name(), ".crt") {
			continue
		}
		p, readErr := os.ReadFile(filepath.Join(dir, e.Name()))
		err = errors.Join(err, readErr)
		out = append(out, string(p))
	}
	return out, err
}

// keyText is the key in the line of a key file, behind a prefix and before a checksum.
var keyText = regexp.MustCompile(`^[a-z0-9-]+:([0-9a-fA-F]{32,}):`)

// secretsIn are the parts of a secret that are secrets by themselves: the password of an address, a key in the file it is in.
func secretsIn(s string) (out []string) {
	if u, err := neturl.Parse(strings.TrimSpace(s)); err == nil && u.User != nil {
		if password, ok := u.User.Password(); ok {
			out = append(out, password)
		}
	}
	if m := keyText.FindStringSubmatch(s); m != nil {
		out = append(out, m[1])
		if raw, err := hex.DecodeString(m[1]); err == nil {
			out = append(out, string(raw))
		}
	}
	for rest := []byte(s); ; {
		block, after := pem.Decode(rest)
		if block == nil {
			return out
		}
		if rest = after; strings.Contains(block.Type, "PRIVATE KEY") {
			out = append(out, string(block.Bytes))
		}
	}
}
