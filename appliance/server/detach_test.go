package server

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// A repository that policies back up into is not detached; the error names them.
func TestRepositoryOfPoliciesIsNotDetached(t *testing.T) {
	b := newBench(t)
	point := b.backup()
	var ids []string
	for _, name := range []string{"silver", "gold"} {
		change := b.change(policy.Spec{Filter: "name = " + name})
		change.Name = name
		p, err := b.CreatePolicy(t.Context(), admin, change)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.ID)
	}
	refused := func(text string) {
		t.Helper()
		_, err := b.DetachRepository(t.Context(), b.repo)
		if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), text) || meaning == "" || advice == "" {
			t.Errorf("got %v, want a conflict with %s", err, text)
		}
		if got, err := b.catalog.RestorePoint(t.Context(), point.ID); err != nil || got.RepositoryID != b.repo {
			t.Errorf("the restore point is %+v, %v", got, err)
		}
	}
	refused(`policies "gold", "silver"`)
	if err := b.RemovePolicy(t.Context(), admin, ids[1]); err != nil {
		t.Fatal(err)
	}
	refused(`policy "silver"`)
	b.backup() // it is as good as before
	if err := b.RemovePolicy(t.Context(), admin, ids[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := b.DetachRepository(t.Context(), b.repo); err != nil {
		t.Errorf("without policies: %v", err)
	}
}
