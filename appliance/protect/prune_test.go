package protect

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// TestWhatChangedSinceThePlanCounts lets a plan grow old: a restore point that is held by then, or that is the last good one by then, stays.
func TestWhatChangedSinceThePlanCounts(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(s *series, older, newer string) error
		kept      string // why
	}{
		"nothing": {func(*series, string, string) error { return nil }, ""},
		"the newer one is damaged": {func(s *series, _, newer string) error {
			return s.catalog.SetVerified(s.t.Context(), newer, fault.New(fault.Corrupt, "verify", newer, "planted"))
		}, "the last one of its VM"},
		"it is held": {func(s *series, older, _ string) error {
			return s.catalog.SetHold(s.t.Context(), catalog.Hold{RestorePointID: older, Reason: "wait"})
		}, "held: wait"},
		"it is gone": {func(s *series, older, _ string) error { return s.catalog.DeleteRestorePoint(s.t.Context(), older) }, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSeries(t)
			s.repositories = func(context.Context, string) (*store.Repository, error) { return s.repo, nil }
			older, newer := s.point(1, ""), s.point(2, "")
			verdicts, err := s.PlanRetention(t.Context(), policy.Retention{Last: 1}, time.UTC, s.vm.ID, s.spec.RepositoryID, "")
			if err != nil || len(verdicts) != 2 || verdicts[1].ID != older || verdicts[1].Keep() {
				t.Fatalf("verdicts %+v, %v", verdicts, err)
			}
			if err := tt.meanwhile(s, older, newer); err != nil {
				t.Fatal(err)
			}
			w := &pruning{Protector: s.Protector, repositoryID: s.spec.RepositoryID, budget: -1}
			if err := w.carryOut(t.Context(), verdicts); err != nil {
				t.Fatal(err)
			}
			_, err = s.repo.RestorePoint(t.Context(), older)
			there := fault.KindOf(err) != fault.NotFound || err == nil
			if why := strings.Join(w.inTheWay, " "); (tt.kept == "") == there || tt.kept != "-" && (tt.kept == "") != (why == "") || !strings.Contains(why+"-", tt.kept) {
				t.Errorf("it is there: %v, because of %q; pruned %v", there, why, w.pruned)
			}
		})
	}
}
