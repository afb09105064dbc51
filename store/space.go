package store

import (
	"cmp"
	"context"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// Space is what a restore point or a series takes. Bytes but the logical ones are of packs, compressed.
type Space struct {
	LogicalBytes   int64 `json:"logical_bytes"`    // sizes of the disks
	UniqueBytes    int64 `json:"unique_bytes"`     // needed by nothing else
	SharedBytes    int64 `json:"shared_bytes"`     // needed by others too
	FairShareBytes int64 `json:"fair_share_bytes"` // of what several restore points need, each has an equal part
}

// PointSpace is what a restore point takes.
type PointSpace struct {
	ID     string `json:"id"`
	Series string `json:"series"`
	Space
}

// SeriesSpace is what the restore points of a series take together; unique is what no other series needs.
type SeriesSpace struct {
	Series        string `json:"series"`
	RestorePoints int    `json:"restore_points"`
	Space
}

// SpaceReport says who takes the space. StoredBytes, the size of all packs, is exactly the sum of the fair shares of
// all restore points, equally of all series, and UnreferencedBytes, which no restore point needs.
type SpaceReport struct {
	StoredBytes       int64         `json:"stored_bytes"`
	UnreferencedBytes int64         `json:"unreferenced_bytes"`
	Series            []SeriesSpace `json:"series"`         // by name
	RestorePoints     []PointSpace  `json:"restore_points"` // by series and sequence
	Unknown           int           `json:"unknown"`        // damaged nodes and documents: what they need is not counted
}

// Space works out who needs what. Its cost is that of a collect that finds nothing to do; it waits for a running one.
func (r *Repository) Space(ctx context.Context) (SpaceReport, error) {
	ctx, leave, err := r.enter(ctx, "measure space")
	if err != nil {
		return SpaceReport{}, err
	}
	defer leave()
	r.collecting.Lock()
	defer r.collecting.Unlock()
	report, err := r.space(ctx)
	if err != nil {
		return report, fault.Context("measure space of repository", r.b.Location(), err)
	}
	return report, nil
}

func (r *Repository) space(ctx context.Context) (report SpaceReport, err error) {
	if err := r.refresh(ctx); err != nil && fault.KindOf(err) != fault.Corrupt {
		return report, err
	}
	points := r.knownPoints()
	slices.SortFunc(points, func(a, b *point) int {
		return cmp.Or(cmp.Compare(a.Series, b.Series), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.ID, b.ID))
	})
	o := newOwnership(r)
	for i, p := range points {
		if err := o.owns(ctx, uint32(i), pointRoots(p)); err != nil {
			return report, err
		}
	}
	bytes, err := o.weigh(ctx)
	if err != nil {
		return report, err
	}
	report.Unknown = o.unknown
	report.UnreferencedBytes = bytes[0]
	for _, n := range bytes {
		report.StoredBytes += n
	}
	report.RestorePoints = make([]PointSpace, len(points))
	for i, p := range points {
		s := PointSpace{ID: p.ID, Series: p.Series}
		for _, im := range p.Images {
			s.LogicalBytes = sum(s.LogicalBytes, im.Ref.SizeBytes)
		}
		report.RestorePoints[i] = s
	}
	report.Series = seriesOf(report.RestorePoints)
	for set, n := range bytes {
		if set > 0 && n > 0 {
			report.share(o.sets.list[set], n)
		}
	}
	for i := range report.Series {
		s := &report.Series[i]
		for _, p := range report.RestorePoints {
			if p.Series == s.Series {
				s.FairShareBytes += p.FairShareBytes
			}
		}
	}
	return report, nil
}

func seriesOf(points []PointSpace) (out []SeriesSpace) {
	for _, p := range points {
		if len(out) == 0 || out[len(out)-1].Series != p.Series {
			out = append(out, SeriesSpace{Series: p.Series})
		}
		last := &out[len(out)-1]
		last.RestorePoints++
		last.LogicalBytes = sum(last.LogicalBytes, p.LogicalBytes)
	}
	return out
}

// share gives bytes that a set of restore points needs to each of them. What does not divide goes to the first ones.
func (report *SpaceReport) share(owners []ownerRun, n int64) {
	count := int64(0)
	for _, run := range owners {
		count += int64(run.end - run.from)
	}
	each, more := n/count, n%count
	series := map[string]bool{}
	for _, run := range owners {
		for i := run.from; i < run.end; i++ {
			p := &report.RestorePoints[i]
			series[p.Series] = true
			p.add(n, count == 1)
			p.FairShareBytes += each
			if more > 0 {
				p.FairShareBytes++
				more--
			}
		}
	}
	for i := range report.Series {
		if s := &report.Series[i]; series[s.Series] {
			s.add(n, len(series) == 1)
		}
	}
}

func (s *Space) add(n int64, unique bool) {
	if unique {
		s.UniqueBytes += n
	} else {
		s.SharedBytes += n
	}
}

func pointRoots(p *point) roots {
	out := roots{map[ImageRef]struct{}{}, map[Hash]struct{}{}}
	out.add(p)
	return out
}

// WouldFree returns how many bytes only these restore points need: pruned, these bytes are dead. The next Collect
// gives them back as far as their packs are then wholly dead or sparse enough to be rewritten, and nothing that runs
// needs them; it counts them all in DeadBytes.
func (r *Repository) WouldFree(ctx context.Context, ids ...string) (int64, error) {
	ctx, leave, err := r.enter(ctx, "measure space")
	if err != nil {
		return 0, err
	}
	defer leave()
	r.collecting.Lock()
	defer r.collecting.Unlock()
	if err := r.refresh(ctx); err != nil {
		return 0, fault.Context("measure space of repository", r.b.Location(), err)
	}
	const doomed, others = 0, 1
	mine := roots{map[ImageRef]struct{}{}, map[Hash]struct{}{}}
	for _, id := range ids {
		p, err := r.point(ctx, id)
		if err != nil {
			return 0, err
		}
		mine.add(p)
	}
	o := newOwnership(r)
	err = o.owns(ctx, doomed, mine)
	if err == nil {
		err = o.owns(ctx, others, r.rootsBut(ids...))
	}
	var bytes []int64
	if err == nil {
		bytes, err = o.weigh(ctx)
	}
	if err == nil && o.unknown > 0 {
		err = fault.New(fault.Corrupt, "mark", "", "%d nodes or documents are damaged", o.unknown)
	}
	if err != nil {
		return 0, fault.Context("measure space of repository", r.b.Location(), err)
	}
	if set := o.sets.of(doomed); int(set) < len(bytes) {
		return bytes[set], nil
	}
	return 0, nil
}

// weigh returns the bytes of packs by the set of who needs them; set 0 is nobody.
func (o *ownership) weigh(ctx context.Context) ([]int64, error) {
	if err := o.descend(ctx); err != nil {
		return nil, err
	}
	there, err := o.r.listPacks(ctx)
	if err != nil {
		return nil, err
	}
	bytes := make([]int64, len(o.sets.list))
	for id, size := range there {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		slots := o.packs[id]
		switch {
		case len(slots) == 0:
			bytes[0] += size
		case slices.Max(slots) == slices.Min(slots):
			bytes[slots[0]] += size
		default:
			rd, err := o.r.openPack(ctx, id, size)
			if err != nil && !damaged(err) {
				return nil, err
			}
			for slot, n := range sharesOf(rd, size, len(slots)) {
				bytes[slots[slot]] += n
			}
		}
	}
	return bytes, nil
}

// sharesOf divides the size of a pack among its entries, equally if its directory is damaged.
func sharesOf(rd *pack.Reader, size int64, n int) []int64 {
	if rd != nil && len(rd.Directory().Entries) == n {
		return rd.Directory().Shares()
	}
	out := make([]int64, n)
	for i := range out {
		out[i] = size*int64(i+1)/int64(n) - size*int64(i)/int64(n)
	}
	return out
}
