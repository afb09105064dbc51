package store

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// formatVersion is the version of the repository as a whole.
const formatVersion = 1

// Names of objects; FORMAT.md describes each.
const (
	configName      = "config"
	reserveName     = "reserve"
	keyFolder       = "keys/"
	epochFolder     = "epochs/"
	leaseFolder     = "leases/"
	manifestFolder  = "manifests/"
	trashFolder     = "trash/"
	smallObject     = 1 << 20 // limit of config, keys, epochs and leases
	reserveBytes    = 1 << 20
	maxManifest     = 64 << 20
	signConfig      = "cairn config\x00"
	keySetBytes     = 96
	wrapByKeyFile   = "key-file"
	maxDocument     = 64 << 20
	documentPiece   = 256 << 10
	packTarget      = 32 << 20
	frameTarget     = 256 << 10
	maxDirtyLeaves  = 2048
	maxListedDamage = 1000
)

// configBody is what the config object's signature covers.
type configBody struct {
	Format     int       `json:"format"`
	Repository string    `json:"repository"`
	Name       string    `json:"name"`
	ChunkBytes int       `json:"chunk_bytes"`
	Created    time.Time `json:"created"`
}

// configFile is the config object. Body is kept as the bytes that were signed.
type configFile struct {
	Body      json.RawMessage `json:"config"`
	PublicKey string          `json:"public_key"`
	Signature string          `json:"signature"`
}

// keyFile is one wrapping of the key set; a repository may have several.
type keyFile struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"`
	ID         string `json:"id"`
	Kind       string `json:"kind"` // "key-file"; later also "age", "paper"
	KeySet     uint32 `json:"key_set"`
	Key        string `json:"key"` // fingerprint of the key that opens it
	Salt       string `json:"salt"`
	Sealed     string `json:"sealed"`
}

// Create makes a repository in b and leaves it closed. What is there when it returns an error is not a repository.
func Create(ctx context.Context, b blob.Store, k Key, o CreateOptions) error {
	keys, err := o.newKeys(b.Location())
	if err != nil {
		return err
	}
	if !chunk.ValidSize(o.ChunkBytes) {
		return fault.New(fault.Invalid, "create repository", b.Location(), "chunks of %d bytes; 16, 32, 64, 128 or 256 KiB are possible", o.ChunkBytes)
	}
	if _, err := b.Stat(ctx, configName); err == nil {
		return fault.New(fault.Exists, "create repository", b.Location(), "there is one already")
	} else if fault.KindOf(err) != fault.NotFound {
		return fault.Context("create repository", b.Location(), err)
	}
	if err := create(ctx, b, k, keys, o); err != nil {
		return fault.Context("create repository", b.Location(), err)
	}
	return nil
}

func create(ctx context.Context, b blob.Store, k Key, keys *seal.KeySet, o CreateOptions) error {
	repository := seal.NewID()
	if err := wrapKeys(ctx, b, k, repository, keys); err != nil {
		return err
	}
	fault.Point("store.create.keys-wrapped")
	if err := blob.Put(ctx, b, reserveName, make([]byte, reserveBytes)); err != nil && fault.KindOf(err) != fault.Exists {
		return err
	}
	fault.Point("store.create.reserve-written")
	body, err := json.Marshal(configBody{
		Format: formatVersion, Repository: hex.EncodeToString(repository[:]), Name: o.Name,
		ChunkBytes: o.ChunkBytes, Created: time.Now().UTC().Truncate(time.Second),
	})
	if err != nil {
		return err
	}
	private := ed25519.NewKeyFromSeed(keys.Seed[:])
	p, err := json.Marshal(configFile{
		Body: body, PublicKey: hex.EncodeToString(private.Public().(ed25519.PublicKey)),
		Signature: hex.EncodeToString(ed25519.Sign(private, append([]byte(signConfig), body...))),
	})
	if err != nil {
		return err
	}
	// With the config, last, it becomes a repository.
	return blob.Put(ctx, b, configName, p)
}

func wrapKeys(ctx context.Context, b blob.Store, k Key, repository seal.ID, keys *seal.KeySet) error {
	id, salt := seal.NewID(), seal.NewSalt()
	box, err := seal.NewBox(k.secret, keys.ID, formatVersion, repository, id, salt)
	if err != nil {
		return err
	}
	plain := append(append(append(make([]byte, 0, keySetBytes), keys.Data[:]...), keys.IDs[:]...), keys.Seed[:]...)
	p, err := json.Marshal(keyFile{
		Format: formatVersion, Repository: hex.EncodeToString(repository[:]), ID: hex.EncodeToString(id[:]),
		Kind: wrapByKeyFile, KeySet: keys.ID, Key: k.Fingerprint(), Salt: hex.EncodeToString(salt[:]),
		Sealed: hex.EncodeToString(box.Seal(nil, seal.KeyWrap, 0, 0, plain)),
	})
	if err != nil {
		return err
	}
	return blob.Put(ctx, b, keyFolder+hex.EncodeToString(id[:])+".json", p)
}

// loadConfig reads config and keys and proves that they belong together.
func loadConfig(ctx context.Context, b blob.Store, k Key) (c configBody, id seal.ID, keys *seal.KeySet, err error) {
	p, err := blob.Get(ctx, b, configName, smallObject)
	if fault.KindOf(err) == fault.NotFound {
		return c, id, nil, fault.New(fault.NotFound, "open repository", b.Location(), "there is no repository here").Explain(
			"The directory is there but holds no repository, or its file \"config\" is missing.",
			"Check the path and that the right disk is mounted; or create a repository here.")
	}
	if err != nil {
		return c, id, nil, fault.Context("open repository", b.Location(), err)
	}
	var file configFile
	if err := errors.Join(json.Unmarshal(p, &file), json.Unmarshal(file.Body, &c)); err != nil {
		return c, id, nil, damagedConfig(b, err)
	}
	if c.Format > formatVersion {
		return c, id, nil, fault.New(fault.Unsupported, "open repository", b.Location(), "it has format %d, this program knows %d", c.Format, formatVersion).Explain(
			"The repository was made by a newer version of Cairn.", "Use that version, or a later one, to open it.")
	}
	if !decodeID(c.Repository, &id) || c.Format != formatVersion || !chunk.ValidSize(c.ChunkBytes) {
		return c, id, nil, damagedConfig(b, errors.New("impossible values"))
	}
	keys, err = unwrapKeys(ctx, b, k, id)
	if err != nil {
		return c, id, nil, err
	}
	var signature [ed25519.SignatureSize]byte
	if n, err := hex.Decode(signature[:], []byte(file.Signature[:min(len(file.Signature), 128)])); err != nil || n != len(signature) {
		return c, id, nil, damagedConfig(b, errors.New("no signature"))
	}
	public := ed25519.NewKeyFromSeed(keys.Seed[:]).Public().(ed25519.PublicKey)
	if file.PublicKey != hex.EncodeToString(public) || !ed25519.Verify(public, append([]byte(signConfig), file.Body...), signature[:]) {
		return c, id, nil, damagedConfig(b, errors.New("its signature is not by this repository's key"))
	}
	return c, id, keys, nil
}

func damagedConfig(b blob.Store, err error) error {
	return fault.Wrap(fault.Corrupt, "open repository", b.Location()+"/"+configName, err).Explain(
		"The file that describes the repository is damaged or was tampered with.",
		"Put back \"config\" from a copy of the repository; packs and restore points are not touched by this.")
}

func decodeID(text string, id *seal.ID) bool {
	if len(text) != 2*len(id) {
		return false
	}
	_, err := hex.Decode(id[:], []byte(text))
	return err == nil
}

// unwrapKeys tries every wrapping that k could open.
func unwrapKeys(ctx context.Context, b blob.Store, k Key, repository seal.ID) (*seal.KeySet, error) {
	var others []string
	var damaged error
	for info, err := range b.List(ctx, keyFolder) {
		if err != nil {
			return nil, fault.Context("read keys of repository", b.Location(), err)
		}
		p, err := blob.Get(ctx, b, info.Name, smallObject)
		if err != nil {
			return nil, fault.Context("read keys of repository", b.Location(), err)
		}
		var f keyFile
		if err := json.Unmarshal(p, &f); err != nil {
			damaged = fault.Wrap(fault.Corrupt, "read keys of repository", info.Name, err)
			continue
		}
		var of seal.ID
		if !decodeID(f.Repository, &of) || of != repository {
			continue // left by a Create that did not finish
		}
		if f.Kind != wrapByKeyFile || f.Key != k.Fingerprint() {
			others = append(others, f.Kind+" "+f.Key)
			continue
		}
		keys, err := f.open(k, repository)
		if err == nil {
			return keys, nil
		}
		damaged = fault.Wrap(fault.Corrupt, "read keys of repository", info.Name, err).Explain(
			"The repository's copy of its keys is damaged or was tampered with.",
			"Put back the folder \"keys\" from a copy of the repository.")
	}
	if damaged != nil {
		return nil, damaged
	}
	if len(others) == 0 {
		return nil, fault.New(fault.Corrupt, "open repository", b.Location(), "its folder \"keys\" holds no key").Explain(
			"The repository's wrapped keys are missing; nothing in it can be read without them.",
			"Put back the folder \"keys\" from a copy of the repository.")
	}
	return nil, fault.New(fault.Denied, "open repository", b.Location(), "key %s does not open it (it opens with %q)", k.Fingerprint(), others).Explain(
		"This key does not open this repository: it belongs to another one.",
		"Give the key file that was made with this repository.")
}

func (f *keyFile) open(k Key, repository seal.ID) (*seal.KeySet, error) {
	var id seal.ID
	salt, err := hex.DecodeString(f.Salt)
	if err != nil || len(salt) != 32 || !decodeID(f.ID, &id) {
		return nil, errors.New("malformed")
	}
	sealed, err := hex.DecodeString(f.Sealed)
	if err != nil {
		return nil, errors.New("malformed")
	}
	box, err := seal.NewBox(k.secret, f.KeySet, formatVersion, repository, id, seal.Salt(salt))
	if err != nil {
		return nil, err
	}
	plain, err := box.Open(nil, seal.KeyWrap, 0, 0, sealed)
	if err != nil || len(plain) != keySetBytes {
		return nil, seal.ErrForged
	}
	keys := &seal.KeySet{ID: f.KeySet}
	r := bytes.NewReader(plain)
	for _, p := range [][]byte{keys.Data[:], keys.IDs[:], keys.Seed[:]} {
		_, _ = r.Read(p)
	}
	return keys, nil
}
