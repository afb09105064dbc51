package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"slices"

	"filippo.io/age"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/seal"
)

// The functions of this file change which keys open a repository. They may run beside its owner and beside readers:
// a wrapping is an object of its own, added durably and at once or not at all. What they do not do is seal data anew:
// whoever had a key and a copy of the folder "keys" keeps what that opens.

// Wrappings lists the keys that open the repository in b, oldest first. It needs no key. A wrapping with a Problem was
// altered, or not made by somebody who could open the repository.
func Wrappings(ctx context.Context, b blob.Store) ([]Wrapping, error) {
	_, file, id, err := readConfig(ctx, b)
	if err != nil {
		return nil, err
	}
	public, err := hex.DecodeString(file.PublicKey)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return nil, damagedConfig(b, errors.New("no public key"))
	}
	var out []Wrapping
	for w, err := range wrappings(ctx, b, id) {
		if err != nil {
			return nil, err
		}
		out = append(out, w.public(public))
	}
	slices.SortFunc(out, func(a, b Wrapping) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// ring is a repository's keys, opened by one of them.
type ring struct {
	b      blob.Store
	id     seal.ID
	config configBody
	file   configFile
	keys   *seal.KeySet
	by     *wrapping
}

func openRing(ctx context.Context, b blob.Store, by Opener) (*ring, error) {
	config, file, id, err := readConfig(ctx, b)
	if err != nil {
		return nil, err
	}
	g := &ring{b: b, id: id, config: config, file: file}
	g.keys, g.by, err = unlock(ctx, b, by, id, "", g.prove)
	return g, err
}

func (g *ring) prove(keys *seal.KeySet) error { return g.file.prove(g.b, keys) }

func (g *ring) wipe() { g.keys.Wipe() }

// find returns the sound wrapping for a key, if there is one.
func (g *ring) find(ctx context.Context, kind, key string) (*wrapping, error) {
	for w, err := range wrappings(ctx, g.b, g.id) {
		if err != nil {
			return nil, err
		}
		if w.Kind == kind && w.Key == key && w.problem(g.keys.Public()) == "" {
			return w, nil
		}
	}
	return nil, nil
}

// add stores a wrapping and reads it back.
func (g *ring) add(ctx context.Context, w *wrappingBody) (Wrapping, error) {
	if err := checkText("add key", "label of a key", w.Label, maxSeries); err != nil {
		return Wrapping{}, err
	}
	old, err := g.find(ctx, w.Kind, w.Key)
	if err != nil {
		return Wrapping{}, err
	}
	if old != nil {
		return Wrapping{}, fault.New(fault.Exists, "add key", g.b.Location(), "%v opens it already", old.public(g.keys.Public()))
	}
	if err := putWrapping(ctx, g.b, w, g.keys); err != nil {
		return Wrapping{}, err
	}
	fault.Point("store.keys.added")
	got, err := readWrapping(ctx, g.b, wrappingName(w.ID))
	if err != nil {
		return Wrapping{}, err
	}
	out := got.public(g.keys.Public())
	if out.Problem != "" || got.wrappingBody != *w {
		return Wrapping{}, fault.New(fault.Corrupt, "add key", got.name, "it does not read back as it was written")
	}
	return out, nil
}

func putWrapping(ctx context.Context, b blob.Store, w *wrappingBody, keys *seal.KeySet) error {
	p, err := w.encode(keys)
	if err != nil {
		return err
	}
	return blob.Put(ctx, b, wrappingName(w.ID), p)
}

// AddKey makes a further key open the repository. by is one that does already.
func AddKey(ctx context.Context, b blob.Store, by Opener, k Key, label string) (Wrapping, error) {
	g, err := openRing(ctx, b, by)
	if err != nil {
		return Wrapping{}, err
	}
	defer g.wipe()
	return g.addKey(ctx, k, wrapByKeyFile, label)
}

func (g *ring) addKey(ctx context.Context, k Key, kind, label string) (Wrapping, error) {
	w, err := sealTo(k, kind, label, g.id, g.keys)
	if err != nil {
		return Wrapping{}, err
	}
	out, err := g.add(ctx, &w)
	if err != nil {
		return Wrapping{}, fault.Context("add key", g.b.Location(), err)
	}
	if err := g.opensWith(ctx, k, ""); err != nil {
		return Wrapping{}, err
	}
	fault.Point("store.keys.proven")
	return out, nil
}

// opensWith proves that by opens the repository without the object except.
func (g *ring) opensWith(ctx context.Context, by Opener, except string) error {
	keys, _, err := unlock(ctx, g.b, by, g.id, except, g.prove)
	if err != nil {
		return err
	}
	keys.Wipe()
	return nil
}

// AddRecipient makes the holder of an age identity able to open the repository; only the recipient (age1…, or age1pq1…
// which withstands quantum computers) is needed. Nothing here can prove that somebody still has the identity: Drill does.
func AddRecipient(ctx context.Context, b blob.Store, by Opener, recipient, label string) (Wrapping, error) {
	r, name, err := parseRecipient(recipient)
	if err != nil {
		return Wrapping{}, fault.Wrap(fault.Invalid, "add recipient", recipient, err).Explain(
			"This is not a recipient of age.", "Give the line that begins with age1 and that age-keygen calls the public key.")
	}
	g, err := openRing(ctx, b, by)
	if err != nil {
		return Wrapping{}, err
	}
	defer g.wipe()
	w, id := newWrapping(wrapByAge, name, label, g.id, g.keys.ID)
	plain := agePlain(g.id, id, g.keys)
	defer clear(plain)
	var sealed bytes.Buffer
	out, err := age.Encrypt(&sealed, r)
	if err == nil {
		_, err = out.Write(plain)
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		return Wrapping{}, fault.Wrap(fault.Internal, "add recipient", name, err)
	}
	w.Sealed = hex.EncodeToString(sealed.Bytes())
	added, err := g.add(ctx, &w)
	if err != nil {
		return Wrapping{}, fault.Context("add recipient", b.Location(), err)
	}
	return added, nil
}

// RemoveWrapping takes a wrapping away: the key it is for no longer opens the repository as it is here; copies of the
// folder "keys" are not reached. It refuses unless by opens the repository by another wrapping. When two processes
// remove wrappings at the same time, each looks again afterwards and puts back what it took, if it has to.
func RemoveWrapping(ctx context.Context, b blob.Store, by Opener, id string) error {
	g, err := openRing(ctx, b, by)
	if err != nil {
		return err
	}
	defer g.wipe()
	var raw seal.ID
	if !decodeID(id, &raw) || hex.EncodeToString(raw[:]) != id {
		return fault.New(fault.NotFound, "remove key", id, "there is no such wrapping")
	}
	return g.remove(ctx, by, wrappingName(id))
}

func (g *ring) remove(ctx context.Context, by Opener, name string) error {
	p, err := blob.Get(ctx, g.b, name, smallObject)
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		return fault.Context("remove key", name, err)
	}
	if err := g.opensWith(ctx, by, name); err != nil {
		return fault.Wrap(fault.Conflict, "remove key", name, err).Explain(
			"Without this wrapping the key that was given would no longer open the repository.",
			"Add another key first, and remove this one with the help of that.")
	}
	if err := g.b.Delete(ctx, name); err != nil {
		return fault.Context("remove key", name, err)
	}
	fault.Point("store.keys.removed")
	if lost := g.opensWith(context.WithoutCancel(ctx), by, name); lost != nil {
		err := fault.Wrap(fault.Conflict, "remove key", name, lost).Explain(
			"While this key was removed, somebody else removed the other one. This one was put back.", "Look at the list of keys and try again.")
		return errors.Join(err, blob.Put(context.WithoutCancel(ctx), g.b, name, p))
	}
	return nil
}

func opens(ctx context.Context, b blob.Store, by Opener) bool {
	g, err := openRing(ctx, b, by)
	if err == nil {
		g.wipe()
	}
	return err == nil
}

// RotateKey puts newKey in the place of old: it adds a wrapping for newKey durably, proves that it opens the
// repository, then removes those of old. A crash between leaves both; calling it again completes it.
func RotateKey(ctx context.Context, b blob.Store, old, newKey Key) error {
	if old == newKey {
		return fault.New(fault.Invalid, "rotate key", b.Location(), "the new key is the old one")
	}
	g, err := openRing(ctx, b, old)
	if err != nil {
		if fault.KindOf(err) == fault.Denied && opens(ctx, b, newKey) {
			return nil // an earlier call came to its end
		}
		return err
	}
	defer g.wipe()
	there, err := g.find(ctx, wrapByKeyFile, newKey.Fingerprint())
	if err != nil {
		return err
	}
	if there == nil {
		if _, err := g.addKey(ctx, newKey, wrapByKeyFile, g.by.Label); err != nil {
			return err
		}
	}
	for w, err := range wrappings(ctx, b, g.id) {
		if err != nil {
			return err
		}
		if !old.mine(w) || w.Kind != wrapByKeyFile {
			continue
		}
		if err := g.remove(ctx, newKey, w.name); err != nil {
			return err
		}
	}
	return nil
}
