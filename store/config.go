package store

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// formatVersion is the version of the repository as a whole.
const formatVersion = 1

// Names of objects; FORMAT.md describes each.
const (
	configName      = "config"
	formatName      = "FORMAT.md"
	readerName      = "cairn_reader.py"
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
	maxDocument     = 64 << 20
	documentPiece   = 256 << 10
	packTarget      = 32 << 20
	frameTarget     = carry.PieceFrame // of frames put together of pieces: parts of chunks, nodes
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

// Create makes a repository in b and leaves it closed. What is there when it returns an error is not a repository.
func Create(ctx context.Context, b blob.Store, k Key, o CreateOptions) error {
	keys, err := o.newKeys(b.Location())
	if err != nil {
		return err
	}
	if !chunk.ValidSize(o.ChunkBytes) {
		return fault.New(fault.Invalid, "create repository", b.Location(), "chunks of %d bytes; 16, 32, 64, 128 or 256 KiB are possible", o.ChunkBytes)
	}
	if err := checkText("create repository", "name of a repository", o.Name, maxSeries); err != nil {
		return err
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
	if err := describe(ctx, b); err != nil {
		return err
	}
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
	w, err := sealTo(k, wrapByKeyFile, "", repository, keys)
	if err != nil {
		return err
	}
	return putWrapping(ctx, b, &w, keys)
}

// readConfig reads config without a key: what it claims, and how to prove that with a key set.
func readConfig(ctx context.Context, b blob.Store) (c configBody, file configFile, id seal.ID, err error) {
	p, err := blob.Get(ctx, b, configName, smallObject)
	if fault.KindOf(err) == fault.NotFound {
		return c, file, id, fault.New(fault.NotFound, "open repository", b.Location(), "there is no repository here").Explain(
			"The directory is there but holds no repository, or its file \"config\" is missing.",
			"Check the path and that the right disk is mounted; or create a repository here.")
	}
	if err != nil {
		return c, file, id, fault.Context("open repository", b.Location(), err)
	}
	if err := errors.Join(json.Unmarshal(p, &file), json.Unmarshal(file.Body, &c)); err != nil {
		return c, file, id, damagedConfig(b, err)
	}
	if c.Format > formatVersion {
		return c, file, id, fault.New(fault.Unsupported, "open repository", b.Location(), "it has format %d, this program knows %d", c.Format, formatVersion).Explain(
			"The repository was made by a newer version of Cairn.", "Use that version, or a later one, to open it.")
	}
	if !decodeID(c.Repository, &id) || c.Format != formatVersion || !chunk.ValidSize(c.ChunkBytes) {
		return c, file, seal.ID{}, damagedConfig(b, errors.New("impossible values"))
	}
	return c, file, id, nil
}

// prove checks that config was signed by the key set: it proves both, since only who made the one has the other.
func (f *configFile) prove(b blob.Store, keys *seal.KeySet) error {
	signature, err := hex.DecodeString(f.Signature)
	if err != nil || len(signature) != ed25519.SignatureSize {
		return damagedConfig(b, errors.New("no signature"))
	}
	public := keys.Public()
	if f.PublicKey != hex.EncodeToString(public) || !ed25519.Verify(public, append([]byte(signConfig), f.Body...), signature) {
		return damagedConfig(b, errors.New("its signature is not by this repository's key"))
	}
	return nil
}

// loadConfig reads config and keys and proves that they belong together.
func loadConfig(ctx context.Context, b blob.Store, by Opener) (c configBody, id seal.ID, keys *seal.KeySet, err error) {
	c, file, id, err := readConfig(ctx, b)
	if err != nil {
		return c, id, nil, err
	}
	keys, _, err = unlock(ctx, b, by, id, "", func(keys *seal.KeySet) error { return file.prove(b, keys) })
	return c, id, keys, err
}

func damagedConfig(b blob.Store, err error) error {
	return fault.Wrap(fault.Corrupt, "open repository", b.Location()+"/"+configName, err).Explain(
		"The file that describes the repository is damaged or was tampered with, or a wrapping of its keys was forged.",
		"Put back \"config\" and \"keys\" from a copy of the repository; packs and restore points are not touched by this.")
}

func decodeID(text string, id *seal.ID) bool {
	if len(text) != 2*len(id) {
		return false
	}
	_, err := hex.Decode(id[:], []byte(text))
	return err == nil
}
