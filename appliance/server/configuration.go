package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// documentFormat is the version of a saved configuration.
const documentFormat = 1

// document is the configuration of an appliance as it is saved in repositories (store/saved.go seals it): with it and the
// repositories a new machine becomes this appliance.
type document struct {
	Format      int               `json:"format"`
	Appliance   string            `json:"appliance"`
	Incarnation int               `json:"incarnation"`
	RecoveredAt time.Time         `json:"recovered_at,omitzero"` // when this incarnation began; zero of the first one
	Host        string            `json:"host"`                  // of who wrote it
	Version     string            `json:"version"`               // of the program
	Time        time.Time         `json:"time"`
	Digest      string            `json:"digest"` // of what somebody has set, see settledDigest
	Settings    map[string]string `json:"settings,omitempty"`
	// Files are small files of the data directory, by their paths in it: the key that the catalog's secrets are sealed with, the
	// certificate authority, and the keys of repositories that the appliance keeps itself.
	Files         map[string][]byte     `json:"files"`
	Configuration catalog.Configuration `json:"configuration"`
}

// The files of every document.
const (
	catalogKeyFile = "keys/catalog.key"
	authorityFile  = "tls/ca.pem"
)

// maxDocument bounds what a saved configuration may unpack to.
const maxDocument = 256 << 20

// document reads the appliance's configuration as it is now.
func (a *Appliance) document(ctx context.Context, who catalog.Standing) (document, error) {
	conf, err := a.catalog.Configuration(ctx)
	if err != nil {
		return document{}, err
	}
	host, _ := os.Hostname() //nolint:errcheck // "" says that it is not known
	d := document{
		Format: documentFormat, Appliance: who.Appliance, Incarnation: who.Incarnation, RecoveredAt: began(who), Host: host, Version: version.Version,
		Time: time.Now().UTC(), Settings: a.settings, Files: map[string][]byte{}, Configuration: conf,
	}
	for _, name := range []string{catalogKeyFile, authorityFile} {
		if d.Files[name], err = os.ReadFile(a.path(name)); err != nil {
			return document{}, fault.Context("read", a.path(name), err)
		}
	}
	for _, row := range conf.Repositories {
		if !a.keepsKey(row) {
			continue
		}
		name := a.shareName(row.KeyFile)
		if d.Files[name], err = a.keptKey(ctx, name); err != nil {
			return document{}, err
		}
		if d.Files[name] == nil {
			delete(d.Files, name)
		}
	}
	d.Digest, err = d.settledDigest()
	return d, err
}

// began is when an incarnation began.
func began(who catalog.Standing) time.Time {
	if who.RecoveredAt == nil {
		return time.Time{}
	}
	return who.RecoveredAt.UTC()
}

// after reports whether the appliance that wrote d has come after another incarnation of it. Two that were recovered of the same one
// are told apart by when that was.
func (d document) after(who catalog.Standing) bool {
	return d.Incarnation > who.Incarnation || d.Incarnation == who.Incarnation && d.RecoveredAt.After(began(who))
}

// keptKey reads the key of a repository, here or from what managers share; nil if it is in neither.
func (a *Appliance) keptKey(ctx context.Context, name string) ([]byte, error) {
	key, err := os.ReadFile(a.path(name))
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	secret, err := a.catalog.FileShared(ctx, name)
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil
	}
	return []byte(secret), err
}

// settledDigest is equal for as long as nobody has changed anything.
func (d document) settledDigest() (string, error) {
	p, err := json.Marshal(document{Appliance: d.Appliance, Incarnation: d.Incarnation, Files: d.Files, Configuration: d.Configuration.Settled()})
	if err != nil {
		return "", fault.Wrap(fault.Internal, "encode configuration", "", err)
	}
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:]), nil
}

func (d document) encode() ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if err := errors.Join(json.NewEncoder(z).Encode(d), z.Close()); err != nil {
		return nil, fault.Wrap(fault.Internal, "encode configuration", "", err)
	}
	return out.Bytes(), nil
}

// decodeDocument is the reverse of encode.
func decodeDocument(p []byte) (d document, err error) {
	damaged := func(err error) error {
		return fault.Wrap(fault.Corrupt, "read saved configuration", "", err).Explain("This version is no configuration of an appliance.", "Use another version.")
	}
	z, err := gzip.NewReader(bytes.NewReader(p))
	if err != nil {
		return d, damaged(err)
	}
	text, err := io.ReadAll(io.LimitReader(z, maxDocument+1))
	if err == nil && len(text) > maxDocument {
		err = errors.New("it is too long")
	}
	if err != nil {
		return d, damaged(err)
	}
	var head struct{ Format int }
	if err := json.Unmarshal(text, &head); err != nil {
		return d, damaged(err)
	}
	if head.Format > documentFormat {
		return d, fault.New(fault.Unsupported, "read saved configuration", "", "it has format %d, this program knows %d", head.Format, documentFormat).Explain(
			"The configuration was saved by a newer version of Cairn.", "Recover it with that version, or a later one.")
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return d, damaged(err)
	}
	for name := range d.Files {
		if dir, base := path.Split(name); path.Clean(name) != name || base == "" || strings.HasPrefix(base, ".") || dir != "keys/" && dir != "tls/" {
			return d, damaged(errors.New("it has a file in a place where there is none"))
		}
	}
	if d.Format != documentFormat || d.Appliance == "" || d.Incarnation < 1 || d.Files[catalogKeyFile] == nil || d.Files[authorityFile] == nil {
		return d, damaged(errors.New("something is missing in it"))
	}
	return d, nil
}
