package server

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/support"
	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	// recentLog is how many bytes of the log are kept for support bundles.
	recentLog = 1 << 20
	// bundleTime bounds the gathering of a bundle; what has no place in it is named as missing.
	bundleTime = 90 * time.Second
)

// supporting is what support bundles are made of; one is made at a time.
type supporting struct {
	making sync.Mutex
	from   bundled
}

// SupportBundle implements httpapi.Core.
func (a *Appliance) SupportBundle(ctx context.Context, who fleet.Who) (name string, archive []byte, err error) {
	if !a.supporting.making.TryLock() {
		return "", nil, fault.New(fault.Conflict, "gather support bundle", "", "another one is being gathered").Explain(
			"One is made at a time, and that takes at most two minutes.", "Wait for it, then ask again.")
	}
	defer a.supporting.making.Unlock()
	if err := a.catalog.Audit(ctx, catalog.AuditEntry{Actor: who.User, Source: who.Source, Action: "support.bundle"}); err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, bundleTime)
	defer cancel()
	from := a.supporting.from
	redactor, unknown := from.redactor(ctx)
	parts := append(from.parts(unknown), []support.Part{
		{Name: "goroutines.txt", Gather: func(context.Context) (any, error) { return goroutines(), nil }},
		{Name: "metrics.txt", Gather: a.measured},
		{Name: "capabilities.json", Gather: a.capabilities},
		{Name: "movers.json", Gather: gather(a.ListMovers)},
		{Name: "mover-limits.json", Gather: gather(a.ListMoverLimits)},
		{Name: "maintenance.json", Gather: gather(a.ListMaintenance)},
		{Name: "coverage.json", Gather: func(ctx context.Context) (any, error) {
			return a.ListCoverage(ctx, httpapi.CoverageFilter{}, catalog.Page{Limit: catalog.MaxLimit})
		}},
		{Name: "space.json", Gather: a.repositorySpace}, // the last: what does not answer most likely is a repository's backend
		{Name: "disks.json", Gather: from.disks},
	}...)
	name, now := bundleName(), time.Now()
	var out bytes.Buffer
	if err := support.Write(ctx, &out, name, now, redactor, parts); err != nil {
		return "", nil, fault.Wrap(fault.Internal, "gather support bundle", "", err)
	}
	return name + ".zip", out.Bytes(), nil
}

// bundleName is cairn-support-HOST-TIME.
func bundleName() string {
	host, _ := os.Hostname() //nolint:errcheck // "" says that it is not known
	return "cairn-support-" + host + "-" + time.Now().UTC().Format("20060102T150405Z")
}

// gather makes a part of something that is listed.
func gather[T any](list func(context.Context) (T, error)) func(context.Context) (any, error) {
	return func(ctx context.Context) (any, error) { return list(ctx) }
}

// goroutines are the stacks of all.
func goroutines() []byte {
	buf := make([]byte, 4<<20)
	return buf[:runtime.Stack(buf, true)]
}

// capabilities are what the drivers say of the connections' platforms.
func (a *Appliance) capabilities(ctx context.Context) (any, error) {
	list, err := everyPage(func(p catalog.Page) (catalog.List[httpapi.ConnectionInfo], error) { return a.ListConnections(ctx, p) })
	out := map[string]any{}
	for _, c := range list {
		out[c.Name] = c.Capabilities
	}
	return out, err
}

// repositorySpace is what the repositories hold, as far as they can be opened here.
func (a *Appliance) repositorySpace(ctx context.Context) (any, error) {
	list, err := everyPage(func(p catalog.Page) (catalog.List[httpapi.RepositoryInfo], error) { return a.ListRepositories(ctx, p) })
	type space struct {
		Usage        *httpapi.Usage           `json:"usage"`
		Set          *httpapi.SetInfo         `json:"set,omitempty"`
		Verification httpapi.VerificationInfo `json:"verification"`
	}
	out := map[string]space{}
	for _, r := range list {
		out[r.Name] = space{r.Usage, r.Set, r.Verification}
	}
	return out, err
}

// measured is all that there is to measure, as /metrics has it.
func (a *Appliance) measured(ctx context.Context) (any, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	w := kept{header: http.Header{}}
	a.metrics.ServeHTTP(&w, req)
	return w.body.Bytes(), nil
}

// kept is an answer that nobody gets.
type kept struct {
	header http.Header
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (k *kept) Header() http.Header { return k.header }

// WriteHeader implements http.ResponseWriter.
func (k *kept) WriteHeader(int) {}

// Write implements http.ResponseWriter.
func (k *kept) Write(p []byte) (int, error) { return k.body.Write(p) }
