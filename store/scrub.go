package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/pack"
)

// ScrubOptions are choices of one ScrubPart.
type ScrubOptions struct {
	BytesPerSecond int64                   // 0: as fast as it goes
	Budget         int64                   // bytes of packs that this call reads, at least one pack; 0: all that is left
	After          string                  // where the last call ended: its report's Next; "" begins anew
	Progress       func(done, total int64) // of bytes of packs, in all calls; may be nil
}

// ScrubReport is the outcome of one ScrubPart.
type ScrubReport struct {
	CheckReport
	Bytes int64  `json:"bytes"`          // of packs, read by this call
	Next  string `json:"next,omitempty"` // where to go on; "" when all was looked at
}

// Scrub reads every pack and manifest and compares it with its stored-bytes hash, what was saved with its signature,
// and looks whether config, keys, leases and epochs are well-formed. It needs no key, so a storage host can run it; it
// finds rot, not forgery, and not objects that are missing.
func Scrub(ctx context.Context, b blob.Store) (CheckReport, error) {
	report, err := ScrubPart(ctx, b, ScrubOptions{})
	return report.CheckReport, err
}

// ScrubPart is a Scrub in steps, within a budget: packs in the order of their names, then everything else. Who has the
// keys gives the names of damaged packs to Repository.Touched.
func ScrubPart(ctx context.Context, b blob.Store, o ScrubOptions) (ScrubReport, error) {
	var report ScrubReport
	packs, err := scrubList(ctx, b, &report)
	if err != nil {
		return report, err
	}
	var done, total int64
	for _, info := range packs {
		total += info.Size
	}
	m := newMeter(b, o.BytesPerSecond)
	for i, info := range packs {
		done += info.Size
		if info.Name <= o.After {
			continue
		}
		if o.Budget > 0 && report.Packs > 0 && report.Bytes+info.Size > o.Budget {
			report.Next = packs[i-1].Name
			return report, nil
		}
		report.Packs++
		report.Bytes += info.Size
		if err := scrubPack(ctx, b, m, info, &report); err != nil {
			return report, err
		}
		if o.Progress != nil {
			o.Progress(done, total)
		}
	}
	if err := scrubManifests(ctx, b, &report.CheckReport); err != nil {
		return report, err
	}
	if err := scrubSaved(ctx, b, &report.CheckReport); err != nil {
		return report, err
	}
	return report, scrubSmall(ctx, b, &report)
}

func scrubList(ctx context.Context, b blob.Store, report *ScrubReport) ([]blob.Info, error) {
	var packs []blob.Info
	for info, err := range b.List(ctx, pack.Folder) {
		if err != nil {
			return nil, fault.Context("scrub", b.Location(), err)
		}
		if _, err := pack.ParseName(info.Name); err != nil {
			report.Notes = append(report.Notes, info.Name+" is not a pack")
			continue
		}
		packs = append(packs, info)
	}
	slices.SortFunc(packs, func(a, b blob.Info) int { return cmp.Compare(a.Name, b.Name) })
	return packs, nil
}

func scrubPack(ctx context.Context, b blob.Store, m *meter, info blob.Info, report *ScrubReport) error {
	err := pack.Scrub(ctx, m, info.Name, info.Size)
	if ctxErr := ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	if fault.KindOf(err) == fault.NotFound {
		if _, statErr := b.Stat(ctx, info.Name); fault.KindOf(statErr) == fault.NotFound {
			return nil // collected since the listing
		}
	}
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Kind != fault.Corrupt {
		return fault.Context("scrub", b.Location(), err)
	}
	if err != nil {
		report.Problems = append(report.Problems, fmt.Sprintf("%s: %v", info.Name, err))
	}
	return nil
}

// scrubSmall looks at the objects that have no hash. Without keys all that can be said is whether they are JSON.
func scrubSmall(ctx context.Context, b blob.Store, report *ScrubReport) error {
	names := []string{configName}
	for _, folder := range []string{keyFolder, leaseFolder, epochFolder} {
		for info, err := range b.List(ctx, folder) {
			if err != nil {
				return fault.Context("scrub", b.Location(), err)
			}
			if folder != keyFolder || strings.HasSuffix(info.Name, ".json") {
				names = append(names, info.Name)
			}
		}
	}
	for _, name := range names {
		p, err := blob.Get(ctx, b, name, smallObject)
		switch kind := fault.KindOf(err); {
		case err == nil && !json.Valid(p):
			report.Problems = append(report.Problems, name+": it is not JSON")
		case err == nil || (kind == fault.NotFound && name != configName): // a lease or epoch that has ended
		case kind == fault.Corrupt || kind == fault.NotFound:
			report.Problems = append(report.Problems, fmt.Sprintf("%s: %v", name, err))
		default:
			return fault.Context("scrub", b.Location(), err)
		}
	}
	return nil
}
