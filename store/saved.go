package store

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// Texts can be saved in a repository beside its restore points, in versions: Cairn keeps the configuration of the appliance
// there. They are sealed and signed, no restore point needs them, and nothing but RemoveSaved takes them away.

const (
	savedFolder = "saved/"
	signSaved   = "cairn saved\x00"
	// maxSaved is how long a text may be. In its object it is a third longer.
	maxSaved       = 32 << 20
	maxSavedObject = 48 << 20
	savedOwner     = 32 // hex digits of the owner's hash in a name
)

// SavedVersion is one version of a text that was saved.
type SavedVersion struct {
	Name  string    // of its object
	Owner string    // 32 hex digits, a keyed hash of whose it is
	Time  time.Time // later than that of the version before, also after the clock was put back
	Bytes int64     // of its object
	id    ulid.ULID
}

// savedBody is what the signature covers.
type savedBody struct {
	Format     int         `json:"format"`
	Repository string      `json:"repository"`
	Owner      string      `json:"owner"` // H[manifest]("cairn saved" ‖ 0 ‖ owner): the name itself stays sealed
	ID         string      `json:"id"`    // the ULID in the name
	Key        uint32      `json:"key"`
	Cipher     seal.Cipher `json:"cipher"`
	Salt       []byte      `json:"salt"`
	Sealed     []byte      `json:"sealed"`
}

// savedFile is the object. Body is kept as the bytes that were signed.
type savedFile struct {
	Body      json.RawMessage `json:"saved"`
	Signature string          `json:"signature"`
}

// Saves reads what was saved in a repository, with its key and nothing else: it takes no lock and reads no index.
type Saves struct {
	b      blob.Store
	config configBody
	id     seal.ID
	keys   *seal.KeySet
	hasher *chunk.Hasher
}

// OpenSaves reads config and keys of a repository. b stays the caller's.
func OpenSaves(ctx context.Context, b blob.Store, by Opener) (*Saves, error) {
	config, id, keys, err := loadConfig(ctx, b, by)
	if err != nil {
		return nil, err
	}
	return &Saves{b, config, id, keys, chunk.NewHasher(keys.IDs)}, nil
}

// Saves reads what was saved in an open repository.
func (r *Repository) Saves() *Saves { return &Saves{r.b, r.config, r.id, r.keys, r.hasher} }

// Repository returns the id and the name of the repository.
func (s *Saves) Repository() (id, name string) { return s.config.Repository, s.config.Name }

// OwnerHash is the Owner of the versions that somebody has saved.
func (s *Saves) OwnerHash(owner string) string { return s.ownerKey(owner)[:savedOwner] }

func (s *Saves) ownerKey(owner string) string {
	h := s.hasher.Manifest([]byte("cairn saved\x00" + owner))
	return hex.EncodeToString(h[:])
}

// Versions lists what is there by names alone, the newest first. owner is an OwnerHash; "" is anybody's.
func (s *Saves) Versions(ctx context.Context, owner string) ([]SavedVersion, error) {
	var out []SavedVersion
	for info, err := range s.b.List(ctx, savedFolder) {
		if err != nil {
			return nil, fault.Context("list what was saved in repository", s.b.Location(), err)
		}
		if v, ok := parseSavedName(info); ok && (owner == "" || v.Owner == owner) {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b SavedVersion) int { return b.id.Compare(a.id) })
	return out, nil
}

func parseSavedName(info blob.Info) (v SavedVersion, ok bool) {
	owner, id, ok := strings.Cut(strings.TrimPrefix(info.Name, savedFolder), "-")
	if _, err := hex.DecodeString(owner); !ok || err != nil || len(owner) != savedOwner {
		return v, false
	}
	u, err := ulid.ParseStrict(strings.ToUpper(id))
	if err != nil || savedName(owner, u) != info.Name {
		return v, false
	}
	return SavedVersion{Name: info.Name, Owner: owner, Time: ulid.Time(u.Time()).UTC(), Bytes: info.Size, id: u}, true
}

func savedName(owner string, id ulid.ULID) string {
	return savedFolder + owner + "-" + strings.ToLower(id.String())
}

// Text proves a version and returns its text.
func (s *Saves) Text(ctx context.Context, v SavedVersion) ([]byte, error) {
	p, err := blob.Get(ctx, s.b, v.Name, maxSavedObject)
	if err != nil {
		return nil, fault.Context("read what was saved", v.Name, err)
	}
	text, err := s.parse(v, p)
	if err != nil {
		if fault.KindOf(err) == fault.Unsupported {
			return nil, err
		}
		return nil, fault.Wrap(fault.Corrupt, "read what was saved", v.Name, err).Explain(
			"This version is damaged or was tampered with.", "Use another version.")
	}
	return text, nil
}

func (s *Saves) parse(v SavedVersion, p []byte) ([]byte, error) {
	body, err := proveSaved(s.keys.Public(), p)
	if err != nil {
		return nil, err
	}
	if body.Format > formatVersion {
		return nil, fault.New(fault.Unsupported, "read what was saved", v.Name, "it has format %d, this program knows %d", body.Format, formatVersion).Explain(
			"It was written by a newer version of Cairn.", "Use that version, or a later one.")
	}
	if body.Format != formatVersion || body.Repository != s.config.Repository || len(body.Owner) != 64 || body.Owner[:savedOwner] != v.Owner ||
		body.ID != strings.ToLower(v.id.String()) {
		return nil, errors.New("it belongs to another repository or name")
	}
	if body.Key != s.keys.ID || len(body.Salt) != len(seal.Salt{}) || len(body.Sealed) < seal.Overhead {
		return nil, errors.New("it was not sealed with this key set")
	}
	box, err := seal.NewCipherBox(body.Cipher, s.keys.Data, body.Key, formatVersion, s.id, seal.ID(v.id), seal.Salt(body.Salt))
	if err != nil {
		return nil, err
	}
	return box.Open(nil, seal.Saved, 0, uint64(len(body.Sealed)-seal.Overhead), body.Sealed)
}

// proveSaved checks the signature of an object.
func proveSaved(public ed25519.PublicKey, p []byte) (body savedBody, err error) {
	var file savedFile
	if err := errors.Join(json.Unmarshal(p, &file), json.Unmarshal(file.Body, &body)); err != nil {
		return body, err
	}
	signature, err := hex.DecodeString(file.Signature)
	if err != nil || len(signature) != ed25519.SignatureSize || len(public) != ed25519.PublicKeySize ||
		!ed25519.Verify(public, append([]byte(signSaved), file.Body...), signature) {
		return body, errors.New("its signature is not by this repository's key")
	}
	return body, nil
}

// Save stores a text as the newest version of its owner's, durably. Only the owner of the repository may.
func (r *Repository) Save(ctx context.Context, owner string, text []byte) (SavedVersion, error) {
	if err := r.writable("save"); err != nil {
		return SavedVersion{}, err
	}
	ctx, leave, err := r.enter(ctx, "save")
	if err != nil {
		return SavedVersion{}, err
	}
	defer leave()
	if len(text) > maxSaved {
		return SavedVersion{}, fault.New(fault.Invalid, "save", r.b.Location(), "%d bytes, at most %d are possible", len(text), maxSaved)
	}
	r.saving.Lock()
	defer r.saving.Unlock()
	s := r.Saves()
	key := s.ownerKey(owner)
	older, err := s.Versions(ctx, key[:savedOwner])
	if err != nil {
		return SavedVersion{}, err
	}
	at := ulid.Timestamp(time.Now())
	for _, v := range older {
		if v.id.Time() < at {
			break
		}
		if _, err := s.Text(ctx, v); err == nil { // one that is not proven says nothing of the time
			at = v.id.Time() + 1
			break
		}
	}
	id, err := ulid.New(at, rand.Reader)
	if err != nil {
		return SavedVersion{}, fault.Wrap(fault.Internal, "save", r.b.Location(), err)
	}
	p, err := r.encodeSaved(key, id, seal.NewSalt(), text)
	if err != nil {
		return SavedVersion{}, fault.Wrap(fault.Internal, "save", r.b.Location(), err)
	}
	if err := r.fence(ctx); err != nil {
		return SavedVersion{}, err
	}
	name := savedName(key[:savedOwner], id)
	if err := blob.Put(ctx, r.b, name, p); err != nil {
		return SavedVersion{}, fault.Context("save", r.b.Location(), r.overtaken(ctx, err))
	}
	v, _ := parseSavedName(blob.Info{Name: name, Size: int64(len(p))})
	return v, nil
}

func (r *Repository) encodeSaved(key string, id ulid.ULID, salt seal.Salt, text []byte) ([]byte, error) {
	box, err := seal.NewCipherBox(r.o.Cipher, r.keys.Data, r.keys.ID, formatVersion, r.id, seal.ID(id), salt)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(savedBody{
		Format: formatVersion, Repository: r.ID(), Owner: key, ID: strings.ToLower(id.String()), Key: r.keys.ID, Cipher: r.o.Cipher, Salt: salt[:],
		Sealed: box.Seal(nil, seal.Saved, 0, uint64(len(text)), text),
	})
	if err != nil {
		return nil, err
	}
	private := ed25519.NewKeyFromSeed(r.keys.Seed[:])
	defer clear(private)
	return json.Marshal(savedFile{Body: body, Signature: hex.EncodeToString(ed25519.Sign(private, append([]byte(signSaved), body...)))})
}

// RemoveSaved takes versions away.
func (r *Repository) RemoveSaved(ctx context.Context, versions ...SavedVersion) error {
	if err := r.writable("remove what was saved"); err != nil {
		return err
	}
	ctx, leave, err := r.enter(ctx, "remove what was saved")
	if err != nil {
		return err
	}
	defer leave()
	for _, v := range versions {
		if err := r.fence(ctx); err != nil {
			return err
		}
		if err := r.b.Delete(ctx, v.Name); err != nil && fault.KindOf(err) != fault.NotFound {
			return fault.Context("remove what was saved", v.Name, err)
		}
	}
	return nil
}

// checkSaved looks for versions that are damaged or forged.
func (r *Repository) checkSaved(ctx context.Context, report *CheckReport) error {
	s := r.Saves()
	versions, err := s.Versions(ctx, "")
	if err != nil {
		return err
	}
	for _, v := range versions {
		_, err := s.Text(ctx, v)
		switch kind := fault.KindOf(err); {
		case err == nil || kind == fault.NotFound: // removed since the listing
		case kind == fault.Corrupt || kind == fault.Unsupported:
			report.Problems = append(report.Problems, err.Error())
		default:
			return err
		}
	}
	return nil
}

// scrubSaved proves the signatures with the public key that config claims. It needs no key: config, without one, may be forged, too.
func scrubSaved(ctx context.Context, b blob.Store, report *CheckReport) error {
	_, file, _, err := readConfig(ctx, b)
	if err != nil {
		return nil //nolint:nilerr // scrubSmall says what is wrong with config
	}
	public, err := hex.DecodeString(file.PublicKey)
	if err != nil {
		return nil //nolint:nilerr // it is not for a scrub to prove config
	}
	for info, err := range b.List(ctx, savedFolder) {
		if err != nil {
			return fault.Context("scrub", b.Location(), err)
		}
		p, err := blob.Get(ctx, b, info.Name, maxSavedObject)
		switch kind := fault.KindOf(err); {
		case err == nil:
			_, err = proveSaved(public, p)
		case kind == fault.NotFound:
			continue // removed since the listing
		case kind != fault.Corrupt:
			return fault.Context("scrub", b.Location(), err)
		}
		if err != nil {
			report.Problems = append(report.Problems, fmt.Sprintf("%s: %v", info.Name, err))
		}
	}
	return nil
}
