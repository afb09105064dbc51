package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/manifest"
	"github.com/cairn-backup/cairn/store/seal"
)

// record is the body of a manifest.
type record struct {
	Format       int          `json:"format"`
	PreviousHash string       `json:"previous_hash,omitempty"`
	Pieces       [][]Hash     `json:"pieces"` // of each document
	Point        RestorePoint `json:"point"`
}

// point is a restore point that was proven when it was loaded.
type point struct {
	RestorePoint
	pieces [][]Hash
	hash   Hash // of the record's bytes: the next one of the series names it

	previousHash string
}

const idPrefix = "rp_"

func newPointID() (string, seal.ID) {
	u := ulid.MustNew(ulid.Timestamp(time.Now()), rand.Reader)
	return idPrefix + strings.ToLower(u.String()), seal.ID(u)
}

// parsePointID is the inverse; any other spelling of an id is refused.
func parsePointID(id string) (seal.ID, error) {
	u, err := ulid.ParseStrict(strings.ToUpper(strings.TrimPrefix(id, idPrefix)))
	if err != nil || idPrefix+strings.ToLower(u.String()) != id {
		return seal.ID{}, fault.New(fault.NotFound, "find restore point", id, "there is no such restore point")
	}
	return seal.ID(u), nil
}

func manifestName(id string) string { return manifestFolder + id }

// loadPoint reads and proves one manifest.
func (r *Repository) loadPoint(ctx context.Context, id string) (p *point, err error) {
	err = r.again(ctx, manifestName(id), func() error {
		p, err = r.readPoint(ctx, id)
		return err
	})
	return p, err
}

func (r *Repository) readPoint(ctx context.Context, id string) (*point, error) {
	raw, err := parsePointID(id)
	if err != nil {
		return nil, err
	}
	p, err := blob.Get(ctx, r.b, manifestName(id), maxManifest)
	if err != nil {
		return nil, fault.Context("read restore point", id, err)
	}
	body, err := manifest.Decode(r.keys, r.id, raw, p)
	if errors.Is(err, manifest.ErrNewer) {
		return nil, fault.Wrap(fault.Unsupported, "read restore point", id, err).Explain(
			"This restore point was made by a newer version of Cairn.", "Use that version, or a later one.")
	}
	if err != nil {
		return nil, damagedPoint(id, err)
	}
	rec, err := parseRecord(body)
	if err != nil {
		return nil, damagedPoint(id, err)
	}
	if rec.Point.ID != id {
		return nil, damagedPoint(id, fmt.Errorf("it says that it is %q", rec.Point.ID))
	}
	return &point{RestorePoint: rec.Point, pieces: rec.Pieces, hash: r.hasher.Manifest(body), previousHash: rec.PreviousHash}, nil
}

func parseRecord(body []byte) (rec record, err error) {
	if err := json.Unmarshal(body, &rec); err != nil {
		return rec, err
	}
	if rec.Format != formatVersion || len(rec.Pieces) != len(rec.Point.Documents) {
		return rec, fmt.Errorf("record of format %d with %d documents and pieces of %d", rec.Format, len(rec.Point.Documents), len(rec.Pieces))
	}
	for i, d := range rec.Point.Documents {
		if d.SizeBytes < 0 || d.SizeBytes > maxDocument || int64(len(rec.Pieces[i])) != (d.SizeBytes+documentPiece-1)/documentPiece {
			return rec, fmt.Errorf("document %q of %d bytes in %d pieces", d.Name, d.SizeBytes, len(rec.Pieces[i]))
		}
	}
	return rec, nil
}

func damagedPoint(id string, err error) error {
	return fault.Wrap(fault.Corrupt, "read restore point", id, err).Explain(
		"The record of this restore point is damaged, or was put there by somebody without this repository's key. Other restore points are not touched by this.",
		"Restore from another restore point; put the file "+manifestName(id)+" back from a copy of the repository if there is one.")
}

// refresh brings r.points up to what is stored. All good points are loaded even if it answers an error. A point that
// is published or pruned meanwhile stays what it then is: a collect after it frees what no point in r.points needs.
func (r *Repository) refresh(ctx context.Context) error {
	r.mu.Lock()
	known := slices.Collect(maps.Keys(r.points))
	r.mu.Unlock()
	there := map[string]bool{}
	for info, err := range r.b.List(ctx, manifestFolder) {
		if err != nil {
			return fault.Context("list restore points of repository", r.b.Location(), err)
		}
		there[strings.TrimPrefix(info.Name, manifestFolder)] = true
	}
	r.mu.Lock()
	for _, id := range known {
		if !there[id] {
			delete(r.points, id)
		}
	}
	var missing []string
	for id := range there {
		if r.points[id] == nil {
			missing = append(missing, id)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, id := range missing {
		p, err := r.loadPoint(ctx, id)
		if err != nil {
			if fault.KindOf(err) == fault.NotFound && !r.stillThere(ctx, id) {
				continue // pruned since the listing
			}
			errs = append(errs, err)
			continue
		}
		r.learn(ctx, p)
	}
	return worst(errs)
}

// learn adds a point that was read, unless it was pruned since.
func (r *Repository) learn(ctx context.Context, p *point) {
	r.mu.Lock()
	r.points[p.ID] = p
	r.mu.Unlock()
	if !r.stillThere(ctx, p.ID) {
		r.mu.Lock()
		delete(r.points, p.ID)
		r.mu.Unlock()
	}
}

func (r *Repository) stillThere(ctx context.Context, id string) bool {
	_, err := r.b.Stat(ctx, manifestName(id))
	return err == nil || fault.KindOf(err) != fault.NotFound
}

// worst joins errors under one kind: the first that is not Corrupt decides.
func worst(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	kind := fault.Corrupt
	for _, err := range errs {
		if k := fault.KindOf(err); k != fault.Corrupt {
			kind = k
			break
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return fault.Wrap(kind, "read restore points", "", errors.Join(errs...))
}

// RestorePoints returns all restore points, oldest first, each proven by its signature. If some are damaged it
// returns the others together with an error of kind Corrupt that names them.
func (r *Repository) RestorePoints(ctx context.Context) ([]RestorePoint, error) {
	err := r.refresh(ctx)
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]RestorePoint, 0, len(r.points))
	for _, p := range r.points {
		out = append(out, p.RestorePoint)
	}
	slices.SortFunc(out, func(a, b RestorePoint) int {
		return cmp.Or(a.Published.Compare(b.Published), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.ID, b.ID))
	})
	return out, err
}

// Records lists the restore points, also those that cannot be read, with the bytes of their records. It reads none of these.
func (r *Repository) Records(ctx context.Context) (map[string]int64, error) {
	out := map[string]int64{}
	for info, err := range r.b.List(ctx, manifestFolder) {
		if err != nil {
			return nil, fault.Context("list restore points of repository", r.b.Location(), err)
		}
		out[strings.TrimPrefix(info.Name, manifestFolder)] = info.Size
	}
	return out, nil
}

// point returns one proven restore point.
func (r *Repository) point(ctx context.Context, id string) (*point, error) {
	r.mu.Lock()
	p := r.points[id]
	r.mu.Unlock()
	if p != nil && r.stillThere(ctx, id) {
		return p, nil
	}
	p, err := r.loadPoint(ctx, id)
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return nil, fault.New(fault.NotFound, "find restore point", id, "there is no such restore point")
		}
		return nil, err
	}
	r.learn(ctx, p)
	return p, nil
}

// RestorePoint returns one restore point.
func (r *Repository) RestorePoint(ctx context.Context, id string) (RestorePoint, error) {
	p, err := r.point(ctx, id)
	if err != nil {
		return RestorePoint{}, err
	}
	return p.RestorePoint, nil
}

// Document returns the content of a restore point's document.
func (r *Repository) Document(ctx context.Context, id, name string) ([]byte, error) {
	ctx, leave, err := r.enter(ctx, "read document")
	if err != nil {
		return nil, err
	}
	defer leave()
	p, err := r.point(ctx, id)
	if err != nil {
		return nil, err
	}
	for i, d := range p.Documents {
		if d.Name != name {
			continue
		}
		var data []byte
		err := r.current(ctx, named(id), func() (err error) {
			data, err = r.document(ctx, d, p.pieces[i])
			return err
		})
		if err != nil {
			return nil, fault.Context("read document "+name+" of restore point", id, err)
		}
		return data, nil
	}
	return nil, fault.New(fault.NotFound, "find document", name, "restore point %s has none of that name", id)
}

// head returns the newest restore point of a series that is known, or nil.
func (r *Repository) head(series string) *point {
	r.mu.Lock()
	defer r.mu.Unlock()
	var head *point
	for _, p := range r.points {
		if p.Series == series && (head == nil || p.Sequence > head.Sequence) {
			head = p
		}
	}
	return head
}

// Usage returns how full the repository is.
func (r *Repository) Usage(ctx context.Context) (Usage, error) {
	points, err := r.RestorePoints(ctx)
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		return Usage{}, err
	}
	u := Usage{RestorePoints: len(points)}
	for _, p := range points {
		for _, im := range p.Images {
			u.LogicalBytes = sum(u.LogicalBytes, im.Ref.SizeBytes)
		}
	}
	for _, p := range r.idx.Packs() {
		u.Packs++
		u.StoredBytes += p.Size
	}
	return u, nil
}

// sum adds sizes. One disk may have the largest size there is, and a few of them more: then it stays at that.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// knownPoints returns the restore points that are known, by series and time.
func (r *Repository) knownPoints() []*point {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*point, 0, len(r.points))
	for _, p := range r.points {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *point) int {
		return cmp.Or(cmp.Compare(a.Series, b.Series), a.Time.Compare(b.Time), cmp.Compare(a.ID, b.ID))
	})
	return out
}
