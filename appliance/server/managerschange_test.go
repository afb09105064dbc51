package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
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

// TestMaintenanceAskedOfAnyManager is done by those that work with the repositories, and seen to its end where it was asked for.
func TestMaintenanceAskedOfAnyManager(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")
	if err := a.catalog.UpdateMaintenance(t.Context(), catalog.MaintainCollect, func(m *catalog.Maintenance) { m.Paused = true }); err != nil {
		t.Fatal(err) // it would be begun by the clock, too
	}
	repos := a.twoRepositories()
	b, c := s.start("b"), s.start("c") // c is left without one
	s.until("both have a repository", func() bool { return len(a.works(repos))+len(b.works(repos)) == 2 && len(b.works(repos)) == 1 })
	for _, asked := range []*member{a, b, c} {
		began := time.Now()
		if err := asked.RunMaintenance(t.Context(), fleet.Who{User: "ann"}, catalog.MaintainCollect); err != nil {
			t.Fatal(err)
		}
		var m httpapi.MaintenanceInfo
		s.until("all have done it", func() bool { m = asked.maintenance(catalog.MaintainCollect); return !m.Busy })
		for _, p := range m.LastParts {
			if p.RunID == "" || p.At.Before(began.Truncate(time.Microsecond)) || p.At.Before(*m.LastStarted) {
				t.Errorf("%s: run %q at %v, begun at %v", p.Name, p.RunID, p.At, m.LastStarted)
			}
		}
		if len(m.LastParts) != 2 {
			t.Errorf("parts are %+v", m.LastParts)
		}
		for _, p := range m.LastParts {
			s.until("the run has ended", func() bool {
				run, err := asked.catalog.Run(t.Context(), p.RunID)
				return err == nil && run.State.Final()
			})
		}
	}
}

// maintenance is one kind as a member shows it.
func (m *member) maintenance(kind catalog.MaintenanceKind) httpapi.MaintenanceInfo {
	m.s.t.Helper()
	list, err := m.ListMaintenance(m.s.t.Context())
	if err != nil {
		m.s.t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(i httpapi.MaintenanceInfo) bool { return i.Kind == kind })
	return list[i]
}

// works returns with which of these repositories a member works.
func (m *member) works(repos []string) (out []string) {
	for _, id := range repos {
		if m.mayOpen(m.s.t.Context(), id) == nil {
			out = append(out, id)
		}
	}
	return out
}

// TestARepositoryThatIsGivenAwayIsNotOpenedAgain: who waits for it, as for one that is being closed, is told whose it is now.
func TestARepositoryThatIsGivenAwayIsNotOpenedAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")
	repos := a.twoRepositories()
	var held []*openRepository
	for _, id := range repos {
		entry, err := a.repositories.hold(id)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, entry)
	}
	release := sync.OnceFunc(func() {
		for _, entry := range held {
			entry.mu.Unlock()
		}
	})
	defer release()
	got := make([]error, len(repos))
	var wg sync.WaitGroup
	for i, id := range repos {
		wg.Go(func() { _, got[i] = a.opened(t.Context(), id) })
	}
	b := s.start("b")
	s.until("both have a repository", func() bool { return len(a.works(repos)) == 1 && len(b.works(repos)) == 1 })
	release()
	wg.Wait()
	for i, id := range repos {
		if given := slices.Contains(b.works(repos), id); given != errors.Is(got[i], catalog.ErrElsewhere) || !given && got[i] != nil {
			t.Errorf("repository %d, given to another manager %v: %v", i, given, got[i])
		}
	}
}
