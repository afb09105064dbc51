package server

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// replace sends a policy to a member, if it still is what an ETag says.
func (m *member) replace(token, id, etag string, policy map[string]any) int {
	m.s.t.Helper()
	raw, err := json.Marshal(policy)
	if err != nil {
		m.s.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(m.s.t.Context(), http.MethodPut, m.api+"/api/v1/policies/"+id, bytes.NewReader(raw))
	if err != nil {
		m.s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("If-Match", etag)
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := m.http.Do(r)
	if err != nil {
		m.s.t.Error(err)
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// etag asks a member for the tag of a policy.
func (m *member) etag(token, id string) string {
	m.s.t.Helper()
	r, err := http.NewRequestWithContext(m.s.t.Context(), http.MethodGet, m.api+"/api/v1/policies/"+id, nil)
	if err != nil {
		m.s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := m.http.Do(r)
	if err != nil {
		m.s.t.Fatal(err)
	}
	defer res.Body.Close()
	return res.Header.Get("ETag")
}

// TestOneOfTwoManagersChangesAPolicy: of changes that two people make at two managers at the same time, knowing the same, one is made.
func TestOneOfTwoManagersChangesAPolicy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")
	if _, err := a.AddConnection(t.Context(), httpapi.NewConnection{Name: "lab", Platform: memplatform.PlatformName, Address: "here"}); err != nil {
		t.Fatal(err)
	}
	repo, err := a.AddRepository(t.Context(), httpapi.NewRepository{Name: "one", Path: s.root + "/one"})
	if err != nil {
		t.Fatal(err)
	}
	var first struct {
		Token string `json:"secret"`
	}
	setUp := map[string]string{"token": a.token, "username": "ann", "password": "correct horse battery"}
	if status := a.call("", http.MethodPost, "/setup", setUp, &first); status != http.StatusCreated {
		t.Fatalf("set-up = %d", status)
	}
	policy := map[string]any{"name": "gold", "filter": "all", "schedule": "22:00", "repository": repo.ID}
	var made struct {
		ID string `json:"id"`
	}
	if status := a.call(first.Token, http.MethodPost, "/policies", policy, &made); status != http.StatusCreated {
		t.Fatalf("policy = %d", status)
	}
	b := s.start("b")
	for round := range 10 {
		seen := a.etag(first.Token, made.ID)
		if seen == "" || seen != b.etag(first.Token, made.ID) {
			t.Fatalf("the managers show %q and another one", seen)
		}
		status := make([]int, 2)
		var wg sync.WaitGroup
		for i, m := range []*member{a, b} {
			wg.Go(func() {
				mine := map[string]any{"name": "gold", "filter": "all", "schedule": "22:00", "repository": repo.ID, "priority": 1 + 2*round + i}
				status[i] = m.replace(first.Token, made.ID, seen, mine)
			})
		}
		wg.Wait()
		slices.Sort(status)
		if !slices.Equal(status, []int{http.StatusOK, http.StatusPreconditionFailed}) {
			t.Fatalf("round %d: answers %v, want one change and one refusal", round, status)
		}
	}
}

// TestMaintenanceSaysThatItIsAnotherManagers instead of doing nothing and showing how it went the time before.
func TestMaintenanceSaysThatItIsAnotherManagers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")
	repo, err := a.AddRepository(t.Context(), httpapi.NewRepository{Name: "one", Path: s.root + "/one"})
	if err != nil {
		t.Fatal(err)
	}
	a.owned(repo.ID)
	b := s.start("b")
	for _, kind := range []catalog.MaintenanceKind{catalog.MaintainVerify, catalog.MaintainPrune, catalog.MaintainCollect, catalog.MaintainReread} {
		err := b.RunMaintenance(t.Context(), fleet.Who{User: "ann"}, kind)
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "this manager works with no repository") {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if err := b.RunMaintenance(t.Context(), fleet.Who{User: "ann"}, catalog.MaintainInventory); err != nil {
		t.Error(err)
	}
	did, err := b.maintainPrune(t.Context(), catalog.Maintenance{Kind: catalog.MaintainPrune}, time.Now())
	if want := "0 of 1 repositories are pruned, 1 are left to other managers"; err != nil || did.text != want {
		t.Errorf("got %q, %v, want %q", did.text, err, want)
	}
	if err := a.RunMaintenance(t.Context(), fleet.Who{User: "ann"}, catalog.MaintainPrune); err != nil {
		t.Error(err)
	}
}
