package store

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/seal"
)

// Kinds of wrappings; their names are part of the format.
const (
	wrapByKeyFile = "key-file"
	wrapByAge     = "age"
	wrapByPaper   = "paper"
)

const (
	keySetBytes  = 96
	signWrapping = "cairn wrapping\x00"
	ageMagic     = "cairn key set\x00"
)

// Wrapping is one way to the repository's key set. Nothing in it is secret.
type Wrapping struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"` // key-file, age or paper
	Key     string    `json:"key"`  // fingerprint of a key file or paper key; recipient of an age wrapping
	Created time.Time `json:"created,omitzero"`
	Label   string    `json:"label,omitempty"`
	Problem string    `json:"problem,omitempty"` // why it must not be believed: damaged, or signed by somebody else
}

// String names the wrapping for people.
func (w Wrapping) String() string {
	key := w.Key
	if len(key) > 80 { // post-quantum recipients have 2,000 characters
		key = key[:32] + "…"
	}
	names := map[string]string{wrapByKeyFile: "key file ", wrapByAge: "age recipient ", wrapByPaper: "paper key "}
	name, ok := names[w.Kind]
	if !ok {
		name = w.Kind + " "
	}
	if w.Label != "" {
		return fmt.Sprintf("%s%s (%s)", name, key, w.Label)
	}
	return name + key
}

// wrappingBody is what is written in a wrapping's object.
type wrappingBody struct {
	Format     int       `json:"format"`
	Repository string    `json:"repository"`
	ID         string    `json:"id"`
	Kind       string    `json:"kind"`
	KeySet     uint32    `json:"key_set"`
	Key        string    `json:"key"`
	Created    time.Time `json:"created"`
	Label      string    `json:"label,omitempty"`
	Salt       string    `json:"salt,omitempty"`
	Sealed     string    `json:"sealed"`
}

// wrappingFile is the object. Body is kept as the bytes that were signed.
type wrappingFile struct {
	Body      json.RawMessage `json:"wrapping"`
	Signature string          `json:"signature"`
}

// wrapping is a wrapping as it was read.
type wrapping struct {
	wrappingBody
	name      string // of its object
	signed    []byte
	signature string
	damage    error // it could not be read
}

func wrappingName(id string) string { return keyFolder + id + ".json" }

// newWrapping starts a wrapping that sealed and key are to be added to.
func newWrapping(kind, key, label string, repository seal.ID, keySet uint32) (w wrappingBody, id seal.ID) {
	id = seal.NewID()
	return wrappingBody{
		Format: formatVersion, Repository: hex.EncodeToString(repository[:]), ID: hex.EncodeToString(id[:]),
		Kind: kind, KeySet: keySet, Key: key, Label: label, Created: time.Now().UTC().Truncate(time.Second),
	}, id
}

// encode signs a wrapping with the key set's own key: so whoever can read config can tell it from one that somebody
// else put there.
func (w *wrappingBody) encode(keys *seal.KeySet) ([]byte, error) {
	body, err := json.Marshal(w)
	if err != nil {
		return nil, err
	}
	private := ed25519.NewKeyFromSeed(keys.Seed[:])
	defer clear(private)
	signature := ed25519.Sign(private, append([]byte(signWrapping), body...))
	return json.Marshal(wrappingFile{Body: body, Signature: hex.EncodeToString(signature)})
}

func parseWrapping(p []byte) (w wrapping, err error) {
	var file wrappingFile
	if err := json.Unmarshal(p, &file); err != nil {
		return w, err
	}
	if file.Body == nil {
		return w, errors.New("there is no wrapping in it")
	}
	w.signed, w.signature = file.Body, file.Signature
	return w, json.Unmarshal(file.Body, &w.wrappingBody)
}

// problem says why what the wrapping says about itself is not to be believed; public is the repository's key.
func (w *wrapping) problem(public ed25519.PublicKey) string {
	if w.damage != nil {
		return "damaged: " + w.damage.Error()
	}
	if wrappingName(w.ID) != w.name {
		return "it was written under another name"
	}
	signature, err := hex.DecodeString(w.signature)
	if err != nil || len(signature) != ed25519.SignatureSize || !ed25519.Verify(public, append([]byte(signWrapping), w.signed...), signature) {
		return "not signed by this repository's key: altered or put there by somebody else"
	}
	return ""
}

func (w *wrapping) public(key ed25519.PublicKey) Wrapping {
	out := Wrapping{ID: w.ID, Kind: w.Kind, Key: w.Key, Created: w.Created, Label: w.Label, Problem: w.problem(key)}
	if out.Problem != "" {
		out.ID = strings.TrimSuffix(strings.TrimPrefix(w.name, keyFolder), ".json")
	}
	return out
}

// wrappings yields every wrapping of a repository, also those that are damaged. Others, left by a Create that did not
// finish or put there from another repository, are none of its.
func wrappings(ctx context.Context, b blob.Store, repository seal.ID) iter.Seq2[*wrapping, error] {
	return func(yield func(*wrapping, error) bool) {
		for info, err := range b.List(ctx, keyFolder) {
			if err != nil {
				yield(nil, fault.Context("read keys of repository", b.Location(), err))
				return
			}
			w, err := readWrapping(ctx, b, info.Name)
			if fault.KindOf(err) == fault.NotFound {
				continue // removed since the listing
			}
			if err != nil {
				yield(nil, fault.Context("read keys of repository", b.Location(), err))
				return
			}
			var of seal.ID
			if w.damage == nil && (!decodeID(w.Repository, &of) || of != repository) {
				continue
			}
			if !yield(w, nil) {
				return
			}
		}
	}
}

func readWrapping(ctx context.Context, b blob.Store, name string) (*wrapping, error) {
	p, err := blob.Get(ctx, b, name, smallObject)
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		return nil, err
	}
	var w wrapping
	if err == nil {
		w, err = parseWrapping(p)
	}
	w.name, w.damage = name, err
	return &w, nil
}

// sealTo wraps keys with a symmetric key.
func sealTo(k Key, kind, label string, repository seal.ID, keys *seal.KeySet) (wrappingBody, error) {
	w, id := newWrapping(kind, k.Fingerprint(), label, repository, keys.ID)
	salt := seal.NewSalt()
	box, err := seal.NewBox(k.secret, keys.ID, formatVersion, repository, id, salt)
	if err != nil {
		return w, err
	}
	plain := keys.Append(nil)
	defer clear(plain)
	w.Salt = hex.EncodeToString(salt[:])
	w.Sealed = hex.EncodeToString(box.Seal(nil, seal.KeyWrap, 0, wrapDetail(kind), plain))
	return w, nil
}

// wrapDetail binds the kind of a wrapping into its seal.
func wrapDetail(kind string) uint64 {
	if kind == wrapByPaper {
		return 1
	}
	return 0
}

// openWith opens a wrapping by a symmetric key.
func (w *wrapping) openWith(k Key, repository seal.ID) (*seal.KeySet, error) {
	var id seal.ID
	salt, err := hex.DecodeString(w.Salt)
	if err != nil || len(salt) != 32 || !decodeID(w.ID, &id) {
		return nil, errors.New("malformed")
	}
	sealed, err := hex.DecodeString(w.Sealed)
	if err != nil {
		return nil, errors.New("malformed")
	}
	box, err := seal.NewBox(k.secret, w.KeySet, formatVersion, repository, id, seal.Salt(salt))
	if err != nil {
		return nil, err
	}
	plain, err := box.Open(nil, seal.KeyWrap, 0, wrapDetail(w.Kind), sealed)
	defer clear(plain)
	if err != nil || len(plain) != keySetBytes {
		return nil, seal.ErrForged
	}
	return seal.ParseKeySet(w.KeySet, plain), nil
}

// agePlain is what an age wrapping holds. Anybody can encrypt to a recipient, so nothing in it proves where it comes
// from: it names repository and wrapping, so that it is of no use elsewhere, and the key set in it counts only if the
// repository's config is signed by it.
func agePlain(repository, id seal.ID, keys *seal.KeySet) []byte {
	plain := append([]byte(ageMagic), repository[:]...)
	plain = append(plain, id[:]...)
	plain = append(plain, byte(keys.ID), byte(keys.ID>>8), byte(keys.ID>>16), byte(keys.ID>>24))
	return keys.Append(plain)
}

func (w *wrapping) parseAgePlain(plain []byte, repository seal.ID) (*seal.KeySet, error) {
	var id seal.ID
	if !decodeID(w.ID, &id) {
		return nil, errors.New("malformed")
	}
	want := agePlain(repository, id, &seal.KeySet{ID: w.KeySet})
	at := len(want) - keySetBytes
	if len(plain) != len(want) || !bytes.Equal(plain[:at], want[:at]) {
		return nil, errors.New("it was made for another repository or another wrapping")
	}
	return seal.ParseKeySet(w.KeySet, plain[at:]), nil
}
