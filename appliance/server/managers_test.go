package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/internal/postgrestest"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

const testLease = 3 * time.Second

// site is some managers on one database, with a platform in memory.
type site struct {
	t        *testing.T
	root     string
	address  string
	platform *memplatform.Platform
	vm       hypervisors.VM
}

// member is a manager of a site, with its API.
type member struct {
	*Appliance
	s     *site
	api   string
	token string // for setting up
	http  *http.Client
	end   func()
}

func newSite(t *testing.T) *site {
	t.Helper()
	p, err := memplatform.New(memplatform.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	s := &site{t: t, root: t.TempDir(), address: postgrestest.Database(t), platform: p}
	s.vm = p.AddVM(memplatform.VMSpec{Name: "web", Disks: []int64{1 << 20}})
	return s
}

// start starts a manager with a data directory of its own; any but the first is given the key of the catalog.
func (s *site) start(name string) *member {
	s.t.Helper()
	dir := filepath.Join(s.root, name)
	if key, err := os.ReadFile(filepath.Join(s.root, "a", "keys", "catalog.key")); err == nil && name != "a" {
		if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "keys", "catalog.key"), key, 0o400); err != nil {
			s.t.Fatal(err)
		}
	}
	a, err := Open(s.t.Context(), Options{
		Dir: dir, Database: catalog.Secret(s.address), Log: slog.New(slog.DiscardHandler), Beat: 200 * time.Millisecond, Lease: testLease,
		Drivers: map[hypervisors.Platform]OpenDriver{
			memplatform.PlatformName: func(_ context.Context, t Target) (hypervisors.Driver, error) {
				return s.platform.Confirmed(t.Confirm), nil
			},
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	m := &member{Appliance: a, s: s}
	m.serve()
	return m
}

var printed = regexp.MustCompile(`API: +(\S+)\n(?s:.*?)(?:set-up token: +(\S+)\n|$)`)

// serve answers the API until the member ends.
func (m *member) serve() {
	m.s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var out locked.Buffer
	over := make(chan error, 1)
	go func() {
		over <- m.Appliance.serve(ctx, settings{listen: "127.0.0.1:0", movers: noMovers, hosts: []string{"127.0.0.1", "127.0.0.1"}}, &out)
	}()
	m.end = sync.OnceFunc(func() {
		stop()
		<-over
		m.http.CloseIdleConnections()
	})
	roots := x509.NewCertPool()
	roots.AddCert(m.authority.Certificate())
	m.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	m.s.t.Cleanup(func() {
		m.end()
		_ = m.Close(context.Background())
	})
	m.s.until("the API answers", func() bool {
		found := printed.FindStringSubmatch(out.String())
		return found != nil && m.lives(found[1])
	})
	found := printed.FindStringSubmatch(out.String()) // all of it, since it answers
	m.api, m.token = found[1], found[2]
}

// lives asks an API whether it answers, which it does after it has said everything to a person.
func (m *member) lives(api string) bool {
	r, err := http.NewRequestWithContext(m.s.t.Context(), http.MethodGet, api+"/api/v1/livez", nil)
	if err != nil {
		m.s.t.Fatal(err)
	}
	res, err := m.http.Do(r)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// until asks again and again until something is so, with patience.
func (s *site) until(what string, so func() bool) {
	s.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !so() {
		select {
		case <-tick.C:
		case <-limit:
			s.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// call asks a member's API.
func (m *member) call(token, method, path string, body, into any) int {
	m.s.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		m.s.t.Fatal(err)
	}
	if body == nil {
		raw = nil
	}
	r, err := http.NewRequestWithContext(m.s.t.Context(), method, m.api+"/api/v1"+path, bytes.NewReader(raw))
	if err != nil {
		m.s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Prefer", "wait=60")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := m.http.Do(r)
	if err != nil {
		m.s.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		m.s.t.Fatal(err)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		m.s.t.Fatalf("%s %s: %v: %s", method, path, err, answer)
	}
	return res.StatusCode
}

// owned waits until a member works with some repositories and no others.
func (m *member) owned(want ...string) {
	m.s.t.Helper()
	slices.Sort(want)
	m.s.until("the repositories are shared out", func() bool {
		var got []string
		list, err := m.catalog.Repositories(m.s.t.Context(), catalog.Page{})
		if err != nil {
			m.s.t.Fatal(err)
		}
		for _, r := range list.Items {
			if _, err := m.opened(m.s.t.Context(), r.ID); err == nil {
				got = append(got, r.ID)
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// twoRepositories makes two, which are this member's at first.
func (m *member) twoRepositories() []string {
	m.s.t.Helper()
	ids := make([]string, 2)
	for i, name := range []string{"one", "two"} {
		r, err := m.AddRepository(m.s.t.Context(), httpapi.NewRepository{Name: name, Path: filepath.Join(m.s.root, name)})
		if err != nil {
			m.s.t.Fatal(err)
		}
		ids[i] = r.ID
	}
	return ids
}

func TestManagersShareOneDatabase(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")
	if _, err := a.AddConnection(t.Context(), httpapi.NewConnection{Name: "lab", Platform: memplatform.PlatformName, Address: "here"}); err != nil {
		t.Fatal(err)
	}
	repos := a.twoRepositories()
	vms, err := a.ListVMs(t.Context(), catalog.VMFilter{}, catalog.Page{})
	if err != nil || len(vms.Items) != 1 {
		t.Fatalf("VMs = %+v, %v", vms, err)
	}
	vm := vms.Items[0].ID
	var admin struct {
		Token string `json:"secret"`
	}
	setUp := map[string]string{"token": a.token, "username": "ann", "password": "correct horse battery"}
	if status := a.call("", http.MethodPost, "/setup", setUp, &admin); status != http.StatusCreated {
		t.Fatalf("set-up = %d", status)
	}

	b := s.start("b")
	if b.token != "" {
		t.Error("the second manager wants to be set up again")
	}
	s.until("one repository is the second manager's", func() bool {
		i := slices.IndexFunc(repos, func(r string) bool {
			o, err := a.catalog.OwnerOf(t.Context(), r)
			return err == nil && o.ID == b.catalog.ManagerID()
		})
		if i > 0 {
			slices.Reverse(repos) // the first is b's
		}
		return i >= 0
	})
	a.owned(repos[1])
	b.owned(repos[0])

	// Either manager takes every order, and waits for what the other one does.
	for _, repo := range repos {
		for _, m := range []*member{a, b} {
			var run struct {
				State string `json:"state"`
			}
			status := m.call(admin.Token, http.MethodPost, "/vms/"+vm+"/backup", map[string]string{"repository": repo}, &run)
			if status != http.StatusOK || run.State != "succeeded" {
				t.Errorf("backup to %s at %s: %d, %+v", repo, m.api, status, run)
			}
		}
	}
	points, err := a.ListRestorePoints(t.Context(), catalog.PointFilter{RepositoryID: repos[0]}, catalog.Page{})
	if err != nil || len(points.Items) != 2 {
		t.Fatalf("restore points = %+v, %v, want 2", points, err)
	}
	if _, err := b.RotateKey(t.Context(), repos[0]); err != nil {
		t.Fatal(err)
	}

	// The second manager loses the database: the first takes over what it had, with the key as it is now.
	b.end()
	lost, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.Abandon(lost); err != nil {
		t.Fatal(err)
	}
	a.owned(repos...)
	var restore struct {
		Run struct {
			State string `json:"state"`
		} `json:"run"`
	}
	order := map[string]any{"restore_point": points.Items[0].ID, "mode": "new", "name": "again"}
	if status := a.call(admin.Token, http.MethodPost, "/restores", order, &restore); status != http.StatusOK || restore.Run.State != "succeeded" {
		t.Errorf("restore of what the other manager backed up: %d, %+v", status, restore)
	}
	c := s.start("b") // the same machine again
	s.until("it has a part again", func() bool {
		return slices.ContainsFunc(repos, func(r string) bool { return c.peers.Owns(r) })
	})
}
