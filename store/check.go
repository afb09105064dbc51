package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// Check looks at the structure: every pack describes itself, every manifest is proven, and everything that restore
// points name is in a pack. It reads no disk data; Verify does.
func (r *Repository) Check(ctx context.Context) (CheckReport, error) {
	ctx, leave, err := r.enter(ctx, "check")
	if err != nil {
		return CheckReport{}, err
	}
	defer leave()
	var report CheckReport
	var complete bool
	if r.o.ReadOnly {
		r.catchUp(true) // what the owner has removed rightly is not missing
	}
	points, err := r.RestorePoints(ctx)
	if err != nil {
		if fault.KindOf(err) != fault.Corrupt {
			return report, err
		}
		report.Problems = append(report.Problems, err.Error())
	}
	report.RestorePoints, complete = len(points), err == nil
	if err := r.checkKeys(ctx, &report); err != nil {
		return report, err
	}
	if err := r.checkSaved(ctx, &report); err != nil {
		return report, err
	}
	if err := r.checkPacks(ctx, &report); err != nil {
		return report, err
	}
	for _, p := range points {
		if err := r.checkPoint(ctx, p.ID); err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				return report, err
			}
			report.Problems = append(report.Problems, fmt.Sprintf("restore point %s: %v", p.ID, err))
		}
	}
	return report, r.checkChains(ctx, complete, &report)
}

// checkKeys looks for wrappings of the keys that are damaged or were not made by a holder of a key.
func (r *Repository) checkKeys(ctx context.Context, report *CheckReport) error {
	for w, err := range wrappings(ctx, r.b, r.id) {
		if err != nil {
			return err
		}
		if problem := w.problem(r.keys.Public()); problem != "" {
			report.Problems = append(report.Problems, w.name+": "+problem)
		}
	}
	return nil
}

func (r *Repository) checkPacks(ctx context.Context, report *CheckReport) error {
	there, err := r.listPacks(ctx)
	if err != nil {
		return err
	}
	report.Packs = len(there)
	for id, size := range there {
		err := r.checkPack(ctx, id, size)
		switch kind := fault.KindOf(err); {
		case err == nil:
		case kind == fault.NotFound: // collected since the listing
		case kind == fault.Corrupt || kind == fault.Unsupported:
			report.Problems = append(report.Problems, err.Error())
		default:
			return err
		}
	}
	gone, err := r.goneSince(ctx, there)
	if err != nil {
		return err
	}
	for _, id := range gone {
		problem := missingPack(id)
		r.suspect(id, problem)
		report.Problems = append(report.Problems, problem.Error())
	}
	slices.Sort(report.Problems)
	return nil
}

// checkPack reads everything in a pack that is not frames.
func (r *Repository) checkPack(ctx context.Context, id seal.ID, size int64) error {
	rd, err := r.openPack(ctx, id, size)
	if err != nil {
		return err
	}
	if _, err := rd.Prints(ctx); err != nil {
		return r.packError(id, err)
	}
	return nil
}

func (r *Repository) checkPoint(ctx context.Context, id string) error {
	p, err := r.point(ctx, id)
	if fault.KindOf(err) == fault.NotFound {
		return nil // pruned since
	}
	if err != nil {
		return err
	}
	err = r.current(ctx, named(id), func() error {
		m := newMarker(r)
		m.fresh = true
		return m.mark(ctx, pointRoots(p))
	})
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return nil // pruned and collected since
	}
	return err
}

func missingPack(id seal.ID) error {
	return fault.New(fault.Corrupt, "find pack", pack.Name(id), "it is missing or has another size")
}
