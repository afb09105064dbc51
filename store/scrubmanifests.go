package store

import (
	"context"
	"fmt"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/manifest"
)

// scrubManifests compares every manifest with its stored-bytes hash.
func scrubManifests(ctx context.Context, b blob.Store, report *CheckReport) error {
	for info, err := range b.List(ctx, manifestFolder) {
		if err != nil {
			return fault.Context("scrub", b.Location(), err)
		}
		p, err := blob.Get(ctx, b, info.Name, maxManifest)
		switch kind := fault.KindOf(err); {
		case err == nil:
		case kind == fault.NotFound:
			continue // pruned since the listing
		case kind != fault.Corrupt:
			return fault.Context("scrub", b.Location(), err)
		}
		report.RestorePoints++
		if err == nil {
			err = manifest.Scrub(p)
		}
		if err != nil {
			report.Problems = append(report.Problems, fmt.Sprintf("%s: %v", info.Name, err))
		}
	}
	return nil
}
