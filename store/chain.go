package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// checkChains compares the restore points of each series with what they say about each other. A point that was
// replaced, or that is gone without having been pruned, is told. What cannot be told from inside the repository: that
// the newest points of a series were taken away, or all of it put back to an earlier state.
func (r *Repository) checkChains(ctx context.Context, complete bool, report *CheckReport) error {
	r.mu.Lock()
	series := map[string][]*point{}
	for _, p := range r.points {
		series[p.Series] = append(series[p.Series], p)
	}
	r.mu.Unlock()
	lost, err := r.prunedOf(ctx, r.seriesKey(""))
	if err != nil {
		return err
	}
	for name, points := range series {
		slices.SortFunc(points, func(a, b *point) int { return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.ID, b.ID)) })
		gone, err := r.prunedOf(ctx, r.seriesKey(name))
		if err != nil {
			return err
		}
		c := chain{name: name, points: points, gone: gone, excused: !complete || len(lost.damaged) > 0, report: report}
		c.links()
		c.gaps()
		for _, p := range points {
			if gone.has(p.Sequence) && r.stillThere(ctx, p.ID) {
				report.Notes = append(report.Notes, fmt.Sprintf(
					"restore point %s was pruned but is here: that was interrupted, or somebody put it back", p.ID))
			}
		}
	}
	return nil
}

// chain is one series in order.
type chain struct {
	name    string
	points  []*point
	gone    pruned
	excused bool // there are, or were, damaged points whose series nobody knows
	report  *CheckReport
}

// links compares each point with the one it names as its predecessor.
func (c *chain) links() {
	known := map[string]*point{}
	for i, p := range c.points {
		known[p.ID] = p
		if i > 0 && c.points[i-1].Sequence == p.Sequence {
			c.report.Problems = append(c.report.Problems, fmt.Sprintf(
				"restore points %s and %s are both number %d of series %s", c.points[i-1].ID, p.ID, p.Sequence, c.name))
		}
	}
	for _, p := range c.points {
		if before := known[p.Previous]; before != nil && (before.hash.String() != p.previousHash || before.Sequence >= p.Sequence) {
			c.report.Problems = append(c.report.Problems, fmt.Sprintf(
				"restore point %s follows another %s than the one that is here: that was replaced", p.ID, p.Previous))
		}
	}
}

// gaps looks for numbers that are neither here nor pruned.
func (c *chain) gaps() {
	next := uint64(1)
	for _, p := range c.points {
		for next < p.Sequence {
			if i := slices.IndexFunc(c.gone.ranges, func(x [2]uint64) bool { return x[0] <= next && next <= x[1] }); i >= 0 {
				next = min(c.gone.ranges[i][1], p.Sequence-1) + 1
				continue
			}
			end := p.Sequence - 1
			for _, x := range c.gone.ranges {
				if x[0] > next {
					end = min(end, x[0]-1)
				}
			}
			c.missing(next, end, p)
			next = end + 1
		}
		next = max(next, p.Sequence+1)
	}
}

func (c *chain) missing(first, last uint64, before *point) {
	text := fmt.Sprintf("restore point number %d of series %s, before %s, is missing and was not pruned", first, c.name, before.ID)
	if last > first {
		text = fmt.Sprintf("restore points number %d to %d of series %s, before %s, are missing and were not pruned", first, last, c.name, before.ID)
	}
	if c.excused {
		c.report.Notes = append(c.report.Notes, text+" (it may be one of those that are damaged, or were when they were pruned)")
		return
	}
	c.report.Problems = append(c.report.Problems, text)
}
