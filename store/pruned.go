package store

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

const (
	prunedFolder = "pruned/"
	signPruned   = "cairn pruned\x00"
)

// prunedBody records which restore points of a series were removed on purpose, so that one that somebody took away can
// be told from them, and that no sequence number is given twice.
type prunedBody struct {
	Format     int         `json:"format"`
	Repository string      `json:"repository"`
	Series     string      `json:"series"`            // H[manifest]("cairn series" ‖ 0 ‖ name): the name itself stays sealed
	Ranges     [][2]uint64 `json:"ranges"`            // of sequence numbers, ascending, both ends included
	Damaged    []string    `json:"damaged,omitempty"` // ids of points that could not be read any more: series and number unknown
	Time       time.Time   `json:"time"`
}

// prunedFile is the object. Body is kept as the bytes that were signed.
type prunedFile struct {
	Body      json.RawMessage `json:"pruned"`
	Signature string          `json:"signature"`
}

// pruned is what the records of one series say together.
type pruned struct {
	ranges  [][2]uint64
	damaged []string
	names   []string // of the records
}

// seriesKey names a series in the records; points whose series is unknown are under "".
func (r *Repository) seriesKey(series string) string {
	h := r.hasher.Manifest([]byte("cairn series\x00" + series))
	return hex.EncodeToString(h[:])
}

// prunedOf reads the records of a series. A record is replaced by one that says more before it is removed.
func (r *Repository) prunedOf(ctx context.Context, key string) (p pruned, err error) {
	for range 4 { // another process may be replacing the records
		again := false
		p = pruned{}
		for info, err := range r.b.List(ctx, prunedFolder) {
			if err != nil {
				return p, fault.Context("read what was pruned from repository", r.b.Location(), err)
			}
			if !strings.HasPrefix(info.Name, prunedFolder+key[:32]+"-") {
				continue
			}
			raw, err := blob.Get(ctx, r.b, info.Name, maxManifest)
			if err != nil && fault.KindOf(err) == fault.NotFound {
				again = true
				break
			}
			if err != nil && fault.KindOf(err) != fault.Corrupt {
				return p, fault.Context("read what was pruned from repository", r.b.Location(), err)
			}
			body, ok := r.parsePruned(raw, key)
			if err != nil || !ok {
				r.log.Warn("record of pruned restore points is damaged or forged", "object", info.Name)
				continue
			}
			p.ranges = joinRanges(append(p.ranges, body.Ranges...))
			p.damaged = append(p.damaged, body.Damaged...)
			p.names = append(p.names, info.Name)
		}
		if !again {
			return p, nil
		}
	}
	return p, fault.New(fault.Transient, "read what was pruned from repository", r.b.Location(), "it keeps changing")
}

func (r *Repository) parsePruned(raw []byte, key string) (body prunedBody, ok bool) {
	var file prunedFile
	if json.Unmarshal(raw, &file) != nil || json.Unmarshal(file.Body, &body) != nil {
		return body, false
	}
	signature, err := hex.DecodeString(file.Signature)
	if err != nil || len(signature) != ed25519.SignatureSize || !ed25519.Verify(r.keys.Public(), append([]byte(signPruned), file.Body...), signature) {
		return body, false
	}
	return body, body.Format == formatVersion && body.Repository == r.ID() && body.Series == key
}

// doomed is what is about to be pruned, by key of the series.
type doomed map[string]*pruned

// planPruned reads what the records will say about points, while they are there.
func (r *Repository) planPruned(ctx context.Context, ids []string) (doomed, error) {
	plan := doomed{}
	of := func(series string) *pruned {
		key := r.seriesKey(series)
		if plan[key] == nil {
			plan[key] = &pruned{}
		}
		return plan[key]
	}
	for _, id := range ids {
		p, err := r.point(ctx, id)
		switch {
		case err == nil:
			x := of(p.Series)
			x.ranges = append(x.ranges, [2]uint64{p.Sequence, p.Sequence})
		case fault.KindOf(err) == fault.Corrupt || fault.KindOf(err) == fault.Unsupported:
			x := of("")
			x.damaged = append(x.damaged, id)
		case fault.KindOf(err) == fault.NotFound:
		default:
			return nil, err
		}
	}
	return plan, nil
}

// recordPruned stores, durably, that points are gone on purpose.
func (r *Repository) recordPruned(ctx context.Context, plan doomed) error {
	for key, more := range plan {
		if err := r.writePruned(ctx, key, more); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repository) writePruned(ctx context.Context, key string, more *pruned) error {
	old, err := r.prunedOf(ctx, key)
	if err != nil {
		return err
	}
	body, err := json.Marshal(prunedBody{
		Format: formatVersion, Repository: r.ID(), Series: key, Ranges: joinRanges(append(old.ranges, more.ranges...)),
		Damaged: once(append(old.damaged, more.damaged...)), Time: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	private := ed25519.NewKeyFromSeed(r.keys.Seed[:])
	defer clear(private)
	p, err := json.Marshal(prunedFile{Body: body, Signature: hex.EncodeToString(ed25519.Sign(private, append([]byte(signPruned), body...)))})
	if err != nil {
		return err
	}
	name := prunedFolder + key[:32] + "-" + strings.ToLower(ulid.MustNew(ulid.Timestamp(time.Now()), rand.Reader).String())
	if err := blob.Put(ctx, r.b, name, p); err != nil {
		return fault.Context("record what is pruned", r.b.Location(), err)
	}
	fault.Point("store.prune.recorded")
	for _, name := range old.names {
		if err := r.b.Delete(ctx, name); err != nil {
			r.log.Warn("older record of pruned restore points stays", "object", name, "err", err) // it says nothing that is not true
		}
	}
	return nil
}

// joinRanges sorts ranges and joins those that touch.
func joinRanges(ranges [][2]uint64) [][2]uint64 {
	slices.SortFunc(ranges, func(a, b [2]uint64) int { return slices.Compare(a[:], b[:]) })
	out := [][2]uint64{}
	for _, x := range ranges {
		if n := len(out); n > 0 && (x[0] <= out[n-1][1] || x[0] == out[n-1][1]+1) {
			out[n-1][1] = max(out[n-1][1], x[1])
		} else if x[0] <= x[1] {
			out = append(out, x)
		}
	}
	return out
}

// has reports whether the number n was pruned.
func (p *pruned) has(n uint64) bool {
	return slices.ContainsFunc(p.ranges, func(x [2]uint64) bool { return x[0] <= n && n <= x[1] })
}

// last returns the highest number that was pruned, or 0.
func (p *pruned) last() uint64 {
	if len(p.ranges) == 0 {
		return 0
	}
	return p.ranges[len(p.ranges)-1][1]
}
