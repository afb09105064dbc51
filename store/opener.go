package store

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/seal"
)

// Opener is what opens a repository's key set: a Key, a PaperKey, or the age identities of LoadIdentity. What it is
// made of is never printed.
type Opener interface {
	fmt.Stringer
	// mine reports whether the wrapping says that it is for this opener.
	mine(w *wrapping) bool
	// unwrap returns the key set in a wrapping, or errNotMine.
	unwrap(w *wrapping, repository seal.ID) (*seal.KeySet, error)
}

var errNotMine = errors.New("sealed for another key")

func (k Key) mine(w *wrapping) bool {
	return (w.Kind == wrapByKeyFile || w.Kind == wrapByPaper) && w.Key == k.Fingerprint()
}

func (k Key) unwrap(w *wrapping, repository seal.ID) (*seal.KeySet, error) {
	if !k.mine(w) {
		return nil, errNotMine
	}
	return w.openWith(k, repository)
}

// identity is one or more age identities.
type identity struct {
	identities []age.Identity
	recipients []string
}

const identityLimit = 256 << 10

// LoadIdentity reads a file of age identities (lines AGE-SECRET-KEY-1… or AGE-SECRET-KEY-PQ-1…), as age-keygen
// writes it. It opens a repository whose keys were wrapped for one of their recipients. Identity files that are
// themselves encrypted with a passphrase have to be decrypted first.
func LoadIdentity(path string) (Opener, error) {
	p, err := readSecret(path, identityLimit)
	defer clear(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, "read age identity", path, err).Explain(
			"The file with the age identity is not there.", "Give the path of the file that age-keygen wrote.")
	}
	if err != nil {
		return nil, fault.Wrap(fault.KindOf(err), "read age identity", path, err)
	}
	return parseIdentity(p, path)
}

// ParseIdentity is LoadIdentity for the content of such a file.
func ParseIdentity(text string) (Opener, error) { return parseIdentity([]byte(text), "") }

func parseIdentity(p []byte, path string) (Opener, error) {
	identities, err := age.ParseIdentities(bytes.NewReader(p))
	i := &identity{identities: identities}
	for _, id := range identities {
		switch id := id.(type) {
		case *age.X25519Identity:
			i.recipients = append(i.recipients, id.Recipient().String())
		case *age.HybridIdentity:
			i.recipients = append(i.recipients, id.Recipient().String())
		}
	}
	if err != nil || len(i.recipients) == 0 {
		// The cause is not shown: it may quote the line that it could not read.
		return nil, fault.New(fault.Invalid, "read age identity", path, "no age identity, or one that was altered").Explain(
			"The file does not hold an age identity.", "Give the file that age-keygen wrote, decrypted if it is protected by a passphrase.")
	}
	return i, nil
}

// String names the recipients of the identities.
func (i *identity) String() string {
	var names []string
	for _, r := range i.recipients {
		names = append(names, Wrapping{Kind: wrapByAge, Key: r}.String())
	}
	return strings.Join(names, ", ")
}

// GoString keeps the secret out of %#v.
func (i *identity) GoString() string { return i.String() }

// LogValue keeps the secret out of logs.
func (i *identity) LogValue() slog.Value { return slog.StringValue(i.String()) }

func (i *identity) mine(w *wrapping) bool {
	return w.Kind == wrapByAge && slices.Contains(i.recipients, w.Key)
}

func (i *identity) unwrap(w *wrapping, repository seal.ID) (*seal.KeySet, error) {
	if w.Kind != wrapByAge {
		return nil, errNotMine
	}
	sealed, err := hex.DecodeString(w.Sealed)
	if err != nil {
		return nil, errors.New("malformed")
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), i.identities...)
	if _, no := errors.AsType[*age.NoIdentityMatchError](err); no {
		return nil, errNotMine
	}
	if err != nil {
		return nil, seal.ErrForged
	}
	plain, err := io.ReadAll(io.LimitReader(r, 1024))
	defer clear(plain)
	if err != nil {
		return nil, seal.ErrForged
	}
	return w.parseAgePlain(plain, repository)
}

// parseRecipient reads an age recipient, classic or post-quantum.
func parseRecipient(text string) (age.Recipient, string, error) {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "age1pq1") {
		r, err := age.ParseHybridRecipient(text)
		if err != nil {
			return nil, "", err
		}
		return r, r.String(), nil
	}
	r, err := age.ParseX25519Recipient(text)
	if err != nil {
		return nil, "", err
	}
	return r, r.String(), nil
}

// unlock returns the key set that by gets out of a wrapping and that prove accepts, and that wrapping. except is the
// name of an object that does not count.
func unlock(ctx context.Context, b blob.Store, by Opener, repository seal.ID, except string, prove func(*seal.KeySet) error) (*seal.KeySet, *wrapping, error) {
	var others []string
	var failed error
	count := 0
	for w, err := range wrappings(ctx, b, repository) {
		if err != nil {
			return nil, nil, err
		}
		if w.name == except {
			continue
		}
		count++
		if w.damage != nil {
			failed = damagedWrapping(w.name, w.damage)
			continue
		}
		keys, err := by.unwrap(w, repository)
		if errors.Is(err, errNotMine) && !by.mine(w) {
			others = append(others, Wrapping{Kind: w.Kind, Key: w.Key, Label: w.Label}.String())
			continue
		}
		if err != nil {
			failed = damagedWrapping(w.name, err)
			continue
		}
		if err := prove(keys); err != nil {
			keys.Wipe()
			failed = err
			continue
		}
		return keys, w, nil
	}
	switch {
	case failed != nil:
		return nil, nil, failed
	case count == 0:
		return nil, nil, fault.New(fault.Corrupt, "open repository", b.Location(), "its folder \"keys\" holds no key").Explain(
			"The repository's wrapped keys are missing; nothing in it can be read without them.",
			"Put back the folder \"keys\" from a copy of the repository.")
	}
	slices.Sort(others)
	list := strings.Join(others, "; ")
	return nil, nil, fault.New(fault.Denied, "open repository", b.Location(), "%v does not open it (it opens with: %s)", by, list).Explain(
		"This key does not open this repository: it belongs to another one, or was taken out of this one.",
		"Give one of the keys that do: "+list+".")
}

func damagedWrapping(name string, err error) error {
	return fault.Wrap(fault.Corrupt, "read keys of repository", name, err).Explain(
		"The repository's copy of its keys is damaged or was tampered with.",
		"Put back the folder \"keys\" from a copy of the repository, or open it with another of its keys.")
}

// readSecret reads a whole small file into memory that the caller clears.
func readSecret(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := make([]byte, limit)
	n, err := io.ReadFull(f, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return p[:n], nil
	}
	if err == nil {
		err = errors.New("the file is too long")
	}
	return p[:n], err
}
