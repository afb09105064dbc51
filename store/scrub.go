package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/pack"
)

// Scrub reads every pack and manifest and compares it with its stored-bytes hash. It needs no key, so a storage host can run it;
// it finds rot, not forgery, and not objects that are missing.
func Scrub(ctx context.Context, b blob.Store) (CheckReport, error) {
	var report CheckReport
	for info, err := range b.List(ctx, pack.Folder) {
		if err != nil {
			return report, fault.Context("scrub", b.Location(), err)
		}
		if _, err := pack.ParseName(info.Name); err != nil {
			report.Notes = append(report.Notes, info.Name+" is not a pack")
			continue
		}
		report.Packs++
		err := pack.Scrub(ctx, b, info.Name, info.Size)
		if f, ok := errors.AsType[*fault.Error](err); ok && f.Kind != fault.Corrupt {
			return report, fault.Context("scrub", b.Location(), err)
		}
		if ctxErr := ctx.Err(); ctxErr != nil {
			return report, ctxErr
		}
		if err != nil {
			report.Problems = append(report.Problems, fmt.Sprintf("%s: %v", info.Name, err))
		}
	}
	return report, scrubManifests(ctx, b, &report)
}
