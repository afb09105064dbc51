package erasure

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

const (
	memberName   = setFolder + "/member"
	memberCopy   = setFolder + "/member-copy"
	setPrefix    = setFolder + "/set-"
	maxDocument  = 1 << 20
	maxAncestors = 256
)

// identity says who a member is. It is written once, twice over, and never changed.
type identity struct {
	Format int    `json:"format"`
	Set    string `json:"set"`
	Member string `json:"member"`
	Group  int    `json:"group"`
	Slot   int    `json:"slot"`
}

// setDocument is the state of the whole set. Each change is a new version, kept by every member that could be reached.
type setDocument struct {
	Format    int        `json:"format"`
	Set       string     `json:"set"`
	Version   uint64     `json:"version"`
	ID        string     `json:"id"`        // of this version
	Ancestors []string   `json:"ancestors"` // ids of the versions before, newest last
	Time      time.Time  `json:"time"`
	Groups    []groupDoc `json:"groups"`
}

type groupDoc struct {
	Layout
	Members []memberDoc `json:"members"` // by slot
}

type memberDoc struct {
	ID     string `json:"id"`
	Domain string `json:"domain"`
	// Behind: it may have missed deletes or renames, so what it says about these does not count until it has caught up.
	Behind bool `json:"behind,omitempty"`
	// Filling: shards that were once written to its place may be gone: it is a new disk, or an older copy of one.
	Filling bool `json:"filling,omitempty"`
	// Incomplete: writes went on without it, so that it may lack shards.
	Incomplete bool `json:"incomplete,omitempty"`
	// Session is the last one that a member took part in before it fell behind, and Why in a word why it does not
	// count in full: away, failed, new, copy or distrusted.
	Session uint64 `json:"session,omitempty"`
	Why     string `json:"why,omitempty"`
}

// knows reports whether what the member says about deletes and renames counts.
func (md memberDoc) knows() bool { return !md.Behind }

// complete reports whether the member has a shard of every object that was acknowledged.
func (md memberDoc) complete() bool { return !md.Behind && !md.Filling && !md.Incomplete }

// settled returns what a member is that has caught up; lacks: it has not all its shards yet.
func (md memberDoc) settled(lacks bool) memberDoc {
	out := memberDoc{ID: md.ID, Domain: md.Domain, Incomplete: lacks, Filling: lacks && md.Filling}
	if lacks {
		out.Why = md.Why
	}
	return out
}

// fell returns what a member is that was not there, or did not answer, when something was deleted, renamed or written.
func (md memberDoc) fell(why string, session uint64) memberDoc {
	if !md.Behind {
		md.Behind, md.Session = true, session
	}
	md.Incomplete = true
	if md.Why == "" {
		md.Why = why
	}
	return md
}

// reason says in words why a member does not count in full; "": it does.
func (md memberDoc) reason() string {
	if md.complete() {
		return ""
	}
	what := "it may lack shards until it is rebuilt or scrubbed"
	if md.Behind {
		what = "it has to catch up, at the next opening or scrub"
	}
	switch md.Why {
	case whyAway:
		return "it was away while the others were used: " + what
	case whyFailed:
		return "it failed while the others were written to: " + what
	case whyNew:
		return "it is new and not filled yet: " + what
	case whyCopy:
		return "it is an older copy of itself, as one that was put back: " + what
	case whyDistrusted:
		return "it was written to apart from the others: " + what
	}
	return what
}

// Reasons why a member does not count in full.
const (
	whyAway       = "away"
	whyFailed     = "failed"
	whyNew        = "new"
	whyCopy       = "copy"
	whyDistrusted = "distrusted"
)

// next returns a copy to be changed.
func (d *setDocument) next() *setDocument {
	c := *d
	c.Version++
	c.Ancestors = append(slices.Clone(d.Ancestors), d.ID)
	c.Ancestors = c.Ancestors[max(0, len(c.Ancestors)-maxAncestors):]
	c.ID, c.Time = newID(), time.Now().UTC()
	c.Groups = slices.Clone(d.Groups)
	for i := range c.Groups {
		c.Groups[i].Members = slices.Clone(c.Groups[i].Members)
	}
	return &c
}

func (d *setDocument) name() string { return fmt.Sprintf("%s%016x-%s", setPrefix, d.Version, d.ID) }

// descends reports whether d is old or was made from it, as far as ancestors are kept.
func (d *setDocument) descends(old *setDocument) bool {
	return d.ID == old.ID || slices.Contains(d.Ancestors, old.ID) || old.Version+maxAncestors < d.Version
}

func (d *setDocument) check() error {
	switch {
	case d.Format > formatVersion:
		return fault.New(fault.Unsupported, "open erasure set", d.Set, "it has format %d, this program knows %d", d.Format, formatVersion).Explain(
			"The set was made or changed by a newer version of Cairn.", "Use that version, or a later one.")
	case d.Format != formatVersion || len(d.Groups) == 0 || !isID(d.ID) || !isID(d.Set):
		return errors.New("impossible values")
	}
	seen := map[string]bool{}
	for _, g := range d.Groups {
		if g.check() != nil || len(g.Members) != g.Layout.Members() {
			return errors.New("impossible layout")
		}
		for _, m := range g.Members {
			if m.ID == "" || seen[m.ID] {
				return errors.New("impossible members")
			}
			seen[m.ID] = true
		}
	}
	return nil
}

func isID(s string) bool {
	p, err := hex.DecodeString(s)
	return err == nil && len(p) == len(id{})
}

// encode returns v as JSON and, on a line of its own, the BLAKE3 of that.
func encode(v any) ([]byte, error) {
	p, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, err
	}
	p = append(p, '\n')
	sum := blake3.Sum256(p)
	return append(p, hex.EncodeToString(sum[:])+"\n"...), nil
}

func decode(p []byte, v any) error {
	end := len(p) - 2*hashBytes - 1
	if end < 1 {
		return errors.New("too short")
	}
	sum := blake3.Sum256(p[:end])
	if want := hex.EncodeToString(sum[:]) + "\n"; !bytes.Equal(p[end:], []byte(want)) {
		return errors.New("damaged")
	}
	return json.Unmarshal(p[:end], v)
}

// readIdentity answers NotFound if there is none, Corrupt if none of its copies can be read.
func readIdentity(ctx context.Context, b blob.Store) (i identity, err error) {
	var errs []error
	for _, name := range []string{memberName, memberCopy} {
		p, err := blob.Get(ctx, b, name, maxDocument)
		if err == nil {
			i = identity{}
			if err = decode(p, &i); err == nil && (!isID(i.Set) || i.Member == "" || i.Group < 0 || i.Slot < 0) {
				err = errors.New("impossible values")
			}
			if err == nil {
				return i, nil
			}
			err = fault.Wrap(fault.Corrupt, "read member's identity", b.Location(), err)
		}
		errs = append(errs, err)
	}
	for _, err := range errs {
		if fault.KindOf(err) != fault.NotFound {
			return i, err
		}
	}
	return i, errs[0]
}

func putIdentity(ctx context.Context, b blob.Store, i identity) error {
	p, err := encode(i)
	if err != nil {
		return err
	}
	for _, name := range []string{memberCopy, memberName} {
		if err := blob.Put(ctx, b, name, p); err != nil && fault.KindOf(err) != fault.Exists {
			return err
		}
	}
	return nil
}

// readDocuments returns the set documents of a member that can be read.
func readDocuments(ctx context.Context, b blob.Store) (all []*setDocument, err error) {
	for info, err := range b.List(ctx, setFolder+"/") {
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(info.Name, setPrefix) {
			continue
		}
		p, err := blob.Get(ctx, b, info.Name, maxDocument)
		if err != nil {
			continue // another member has it too
		}
		var d setDocument
		if err := decode(p, &d); err != nil {
			continue
		}
		if err := d.check(); fault.KindOf(err) == fault.Unsupported {
			return nil, err
		} else if err == nil {
			all = append(all, &d)
		}
	}
	return all, nil
}

func putDocument(ctx context.Context, b blob.Store, d *setDocument) error {
	p, err := encode(d)
	if err != nil {
		return err
	}
	if err := blob.Put(ctx, b, d.name(), p); err != nil && fault.KindOf(err) != fault.Exists {
		return err
	}
	return nil
}

// dropDocuments removes the versions before d from a member. That some may stay does no harm.
func dropDocuments(ctx context.Context, b blob.Store, d *setDocument) {
	var old []string
	for info, err := range b.List(ctx, setFolder+"/") {
		if err != nil {
			return
		}
		if strings.HasPrefix(info.Name, setPrefix) && info.Name != d.name() {
			old = append(old, info.Name)
		}
	}
	for _, name := range old {
		_ = b.Delete(ctx, name)
	}
}

// choose returns the document that counts among those that members have, and one that contradicts it, if there is one.
// A version counts when enough members of every group have it, or may have it because they are not there: what a crash
// cut short was never acted on. docs is by member id; need is how many members of a group make a version count.
func choose(docs map[string][]*setDocument, need func(groupDoc) int) (newest, apart *setDocument) {
	var candidates []*setDocument
	for _, id := range slices.Sorted(maps.Keys(docs)) {
		for _, d := range docs[id] {
			if effective(d, docs, need) && !slices.ContainsFunc(candidates, func(c *setDocument) bool { return c.ID == d.ID }) {
				candidates = append(candidates, d)
			}
		}
	}
	for _, d := range candidates {
		if newest == nil || d.Version > newest.Version || (d.Version == newest.Version && d.ID > newest.ID) {
			newest = d
		}
	}
	for _, d := range candidates {
		if !newest.descends(d) {
			apart = d
		}
	}
	return newest, apart
}

func effective(d *setDocument, docs map[string][]*setDocument, need func(groupDoc) int) bool {
	for _, g := range d.Groups {
		n := 0
		for _, m := range g.Members {
			has, there := docs[m.ID]
			if !there || slices.ContainsFunc(has, func(o *setDocument) bool { return o.descends(d) }) {
				n++
			}
		}
		if n < need(g) {
			return false
		}
	}
	return true
}
