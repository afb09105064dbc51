package repo

import (
	"context"
	"fmt"
	"time"

	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/store"
)

// Result is what a command prints, as one line of JSON.
type Result struct {
	Backup  *BackupReport        `json:"backup,omitempty"`
	Restore *transfer.Result     `json:"restore,omitempty"`
	Points  []Point              `json:"restore_points,omitempty"`
	Verify  *store.SweepReport   `json:"verify,omitempty"`
	Collect *store.CollectReport `json:"collect,omitempty"`
	Usage   *store.Usage         `json:"usage,omitempty"`
}

// Point names a restore point.
type Point struct {
	ID       string    `json:"id"`
	Series   string    `json:"series"`
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
}

// Points lists all restore points, oldest first.
func Points(ctx context.Context, r *store.Repository) ([]Point, error) {
	points, err := r.RestorePoints(ctx)
	out := make([]Point, 0, len(points))
	for _, p := range points {
		out = append(out, Point{ID: p.ID, Series: p.Series, Sequence: p.Sequence, Time: p.Time})
	}
	return out, err
}

// Find returns the id of a series' restore point by its sequence; 0 is the newest.
func Find(ctx context.Context, r *store.Repository, series string, sequence uint64) (string, error) {
	points, err := Points(ctx, r)
	if err != nil {
		return "", err
	}
	var found Point
	for _, p := range points {
		if p.Series == series && (p.Sequence == sequence || sequence == 0 && p.Sequence > found.Sequence) {
			found = p
		}
	}
	if found.ID == "" {
		return "", fmt.Errorf("no restore point %d of %s", sequence, series)
	}
	return found.ID, nil
}

// VerifyAll reads every pack back once and proves every restore point whole by it.
func VerifyAll(ctx context.Context, r *store.Repository) (store.SweepReport, error) {
	points, err := r.RestorePoints(ctx)
	if err != nil {
		return store.SweepReport{}, err
	}
	report, err := r.Sweep(ctx, store.SweepOptions{})
	if err == nil && (!report.Complete || report.Proven != len(points)) {
		err = fmt.Errorf("of %d restore points %d are proven", len(points), report.Proven)
	}
	return report, err
}

// KeepLast prunes all but the last n restore points of each series and collects.
func KeepLast(ctx context.Context, r *store.Repository, n int) (store.CollectReport, error) {
	points, err := Points(ctx, r)
	if err != nil {
		return store.CollectReport{}, err
	}
	later := map[string]int{}
	var old []string
	for i := len(points) - 1; i >= 0; i-- {
		later[points[i].Series]++
		if later[points[i].Series] > n {
			old = append(old, points[i].ID)
		}
	}
	if err := r.Prune(ctx, old...); err != nil {
		return store.CollectReport{}, err
	}
	return r.Collect(ctx, store.CollectOptions{})
}
