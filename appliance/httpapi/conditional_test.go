package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/internal/fault"
)

// things are paths of single things and of lists.
var things = []string{
	"/connections", "/connections/conn_1", "/vms/vm_1", "/repositories/repo_1", "/restore-points/rp_1", "/runs", "/runs/run_1", "/tasks/task_1",
	"/movers/mover_1", "/mover-limits/limit_1", "/repositories/repo_1/keys/key_1",
}

func TestETags(t *testing.T) {
	ts := ready(t)
	for _, path := range things {
		first := ts.do("GET", path, nil)
		etag := first.header.Get("ETag")
		if first.status != 200 || !strings.HasPrefix(etag, `"`) || strings.Count(etag, ".") != 1 {
			t.Errorf("%s: %d, ETag %s", path, first.status, etag)
		}
		again := ts.do("GET", path, nil, "If-None-Match", `"x.y", W/`+etag)
		if again.status != http.StatusNotModified || len(again.body) > 0 || again.header.Get("ETag") != etag {
			t.Errorf("%s seen already: %d %s, ETag %s", path, again.status, again.body, again.header.Get("ETag"))
		}
		ts.do("GET", path, nil, "If-None-Match", `"x.y"`).want(t, http.StatusOK, "")
	}
	if a := ts.do("GET", "/runs/nothing", nil, "If-None-Match", "*"); a.status != http.StatusNotFound || a.header.Get("ETag") != "" {
		t.Errorf("what is not there: %d, ETag %q", a.status, a.header.Get("ETag"))
	}
}

// TestIfMatch takes what changes and deletes things from the document.
func TestIfMatch(t *testing.T) {
	ts := ready(t)
	bodies := map[string]string{
		"updateRepository":   `{"verification":{"every_days":1,"bytes_per_second":0}}`,
		"replaceMaintenance": `{"schedule":"daily"}`, "replaceConnection": `{"address":"x"}`,
		"replacePolicy": `{"name":"gold","filter":"all","schedule":"22:00","repository":"repo_1"}`,
	}
	tested := 0
	for key, op := range ts.contract.operations {
		method, path, _ := strings.Cut(key, " ")
		if method != "PATCH" && method != "DELETE" && method != "PUT" {
			continue
		}
		path = strings.NewReplacer(":connection_id", "conn_1", ":repository_id", "repo_1", ":restore_point_id", "rp_1", ":mover_id", "mover_1",
			":limit_id", "limit_1", ":policy_id", "pol_1", ":kind", "verify", ":exclusion_id", "excl_1", ":key_id", "key_1", ":token_id", "nothing").Replace(strings.TrimPrefix(path, api.BasePath))
		if strings.HasSuffix(path, "nothing") {
			continue // TestIfMatchOfTokens
		}
		var body any
		if b, ok := bodies[op.id]; ok {
			body = b
		} else if op.body != nil {
			t.Fatalf("no body for %s", op.id)
		}
		tested++
		etag := ts.do("GET", path, nil).header.Get("ETag")
		p := ts.do(method, path, body, "If-Match", "").want(t, http.StatusPreconditionRequired, "/problems/invalid/if-match")
		if p.Advice == "" {
			t.Errorf("%s: no advice", key)
		}
		for _, wrong := range []string{`"0000.0000"`, "W/" + etag, `x`, strings.ReplaceAll(etag, `"`, "")} {
			a := ts.do(method, path, body, "If-Match", wrong)
			a.want(t, http.StatusPreconditionFailed, "/problems/conflict/changed")
			if a.header.Get("ETag") != etag {
				t.Errorf("%s: 412 names %q, want %q", key, a.header.Get("ETag"), etag)
			}
		}
		if a := ts.do(method, path, body, "If-Match", `"0.0", `+etag); a.status >= 300 {
			t.Errorf("%s with its ETag: %d %s", key, a.status, a.body)
		}
		if a := ts.do(method, path, body, "If-Match", "*"); a.status >= 300 {
			t.Errorf("%s with *: %d %s", key, a.status, a.body)
		}
	}
	if tested < 6 {
		t.Errorf("only %d operations were tried", tested)
	}
}

func TestIfMatchOfTokens(t *testing.T) {
	ts := ready(t)
	a := ts.do("POST", "/tokens", map[string]any{"name": "robot"})
	var issued server.IssuedToken
	a.decode(t, &issued)
	path := "/tokens/" + issued.Token.ID
	etag := ts.do("GET", path, nil).header.Get("ETag")
	check(t, ts.catalog.TouchToken(t.Context(), issued.Token.ID, time.Now()))
	if used := ts.do("GET", path, nil).header.Get("ETag"); used == etag || keptPart(used) != keptPart(etag) {
		t.Errorf("ETag of a token that was used: %s, before %s", used, etag)
	}
	ts.do("DELETE", path, nil, "If-Match", etag).want(t, http.StatusNoContent, "")
	ts.do("DELETE", path, nil, "If-Match", etag).want(t, http.StatusNotFound, "/problems/not-found")
}

// TestOnlyOneOfManyChangesWins: with one ETag, one of several simultaneous changes is done.
func TestOnlyOneOfManyChangesWins(t *testing.T) {
	ts := ready(t)
	var issued server.IssuedToken
	ts.do("POST", "/tokens", map[string]any{"name": "robot"}).decode(t, &issued)
	path := "/tokens/" + issued.Token.ID
	etag := ts.do("GET", path, nil).header.Get("ETag")
	var wg sync.WaitGroup
	answers := make([]int, 8)
	for i := range answers {
		wg.Go(func() { answers[i] = ts.do("DELETE", path, nil, "If-Match", etag).status })
	}
	wg.Wait()
	count := map[int]int{}
	for _, a := range answers {
		count[a]++
	}
	if diff := cmp.Diff(map[int]int{204: 1, 404: 7}, count); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

func TestFields(t *testing.T) {
	ts := ready(t)
	var list struct {
		Items []map[string]json.RawMessage
		Next  string
	}
	check(t, json.Unmarshal(ts.do("GET", "/vms?fields=id,name", nil).body, &list))
	if len(list.Items) != 1 || len(list.Items[0]) != 2 || string(list.Items[0]["name"]) != `"web"` || list.Next != "more" {
		t.Errorf("list %+v", list)
	}
	for _, wrong := range []string{"id,nmae", ",", "id,id", "id,"} {
		ts.do("GET", "/vms?fields="+wrong, nil).want(t, http.StatusUnprocessableEntity, "/problems/invalid/parameter")
	}
}

func TestSortAndTotal(t *testing.T) {
	ts := ready(t)
	for _, lifetime := range []int{1, 2} {
		ts.do("POST", "/tokens", map[string]any{"name": fmt.Sprint("t", lifetime), "expires_in_days": lifetime}).want(t, http.StatusCreated, "")
	}
	var oldest, newest server.TokenList
	ts.do("GET", "/tokens?sort=created_at&limit=2&include_total=true", nil).decode(t, &oldest)
	ts.do("GET", "/tokens?limit=2", nil).decode(t, &newest)
	if oldest.Total == nil || *oldest.Total != 3 || newest.Total != nil || oldest.Items[1].ID != newest.Items[1].ID {
		t.Errorf("oldest first %+v, newest first %+v", oldest, newest)
	}
	ts.do("GET", "/tokens?page_token="+oldest.Next, nil).want(t, http.StatusUnprocessableEntity, "/problems/invalid")
	for _, wrong := range []string{"", "name", "created_at,id", "--created_at"} {
		ts.do("GET", "/tokens?sort="+wrong, nil).want(t, http.StatusUnprocessableEntity, "/problems/invalid/parameter")
	}
}

func TestKeyOfWhatMakesSomething(t *testing.T) {
	ts := ready(t)
	const key = "a-key-of-mine"
	body := map[string]any{"name": "robot"}
	first := ts.do("POST", "/tokens", body, "Idempotency-Key", key)
	first.want(t, http.StatusCreated, "")
	again := ts.do("POST", "/tokens", body, "Idempotency-Key", key)
	if again.status != first.status || string(again.body) != string(first.body) {
		t.Errorf("repeated: %d %s, first %d %s", again.status, again.body, first.status, first.body)
	}
	ts.do("POST", "/tokens", map[string]any{"name": "other"}, "Idempotency-Key", key).want(t, 422, "/problems/invalid/idempotency-key")
	ts.do("POST", "/tokens", body, "Idempotency-Key", "short").want(t, 422, "/problems/invalid/parameter")

	repository := map[string]any{"name": "main", "path": "/backup"}
	calls := ts.core.count()
	made := ts.do("POST", "/repositories", repository, "Idempotency-Key", key+"2")
	repeated := ts.do("POST", "/repositories", repository, "Idempotency-Key", key+"2")
	if got := ts.core.count() - calls; got != 1 || repeated.header.Get("Location") != made.header.Get("Location") {
		t.Errorf("%d calls reached the core; Location %q, first %q", got, repeated.header.Get("Location"), made.header.Get("Location"))
	}
	ts.core.set(fault.New(fault.Transient, "op", "s", "planted"))
	ts.do("POST", "/repositories", repository, "Idempotency-Key", key+"3").want(t, 503, "/problems/transient")
	ts.core.set(nil)
	ts.do("POST", "/repositories", repository, "Idempotency-Key", key+"3").want(t, 201, "")
	if raw := ts.logs.String(); strings.Contains(raw, "answer was not kept") || strings.Contains(raw, "was not forgotten") {
		t.Error(raw)
	}
}

// TestRequestWithoutAnswer is one whose appliance was stopped in it.
func TestRequestWithoutAnswer(t *testing.T) {
	ts := ready(t)
	const key = "a-key-of-mine"
	ts.do("POST", "/tokens", map[string]any{"name": "robot"}, "Idempotency-Key", key).want(t, http.StatusCreated, "")
	known, found, err := ts.catalog.BeginKeyed(t.Context(), adminName, key, "")
	if err != nil || !found {
		t.Fatalf("the request is not known: %v", err)
	}
	check(t, ts.catalog.ForgetKeyed(t.Context(), adminName, key))
	if _, found, err := ts.catalog.BeginKeyed(t.Context(), adminName, key, known.Fingerprint); err != nil || found {
		t.Fatalf("begun again: %v, %v", found, err)
	}
	p := ts.do("POST", "/tokens", map[string]any{"name": "robot"}, "Idempotency-Key", key).want(t, http.StatusConflict, "/problems/conflict/under-way")
	if p.Advice == "" {
		t.Error("no advice")
	}
}

func TestKeyOfAPanic(t *testing.T) {
	ts := ready(t)
	ts.core.panics = true
	repository := map[string]any{"name": "main", "path": "/backup"}
	ts.do("POST", "/repositories", repository, "Idempotency-Key", "a-key-of-mine").want(t, 500, "/problems/internal")
	ts.core.panics = false
	ts.do("POST", "/repositories", repository, "Idempotency-Key", "a-key-of-mine").want(t, 201, "")
}

func TestRateLimit(t *testing.T) {
	ts := ready(t)
	other, err := ts.identity.IssueToken(t.Context(), identity.Caller{UserID: userID(t, ts), User: adminName}, "other", "", time.Hour)
	check(t, err)
	ts.limiter = newLimiter(Rate{PerSecond: 1, Burst: 3})
	throttled := 0
	for range 6 {
		a := ts.do("GET", "/version", nil)
		if a.status == http.StatusOK {
			continue
		}
		throttled++
		if p := a.want(t, http.StatusTooManyRequests, "/problems/transient/throttled"); !p.Retryable || p.Advice == "" || a.header.Get("Retry-After") == "" {
			t.Errorf("Retry-After %q, problem %+v", a.header.Get("Retry-After"), p)
		}
	}
	if throttled == 0 {
		t.Error("six requests at once were answered, with three allowed")
	}
	ts.token = other.Secret
	ts.do("GET", "/version", nil).want(t, http.StatusOK, "")
}

func userID(t *testing.T, ts *testServer) string {
	t.Helper()
	u, err := ts.catalog.UserByName(t.Context(), adminName)
	check(t, err)
	return u.ID
}

func TestLimiter(t *testing.T) {
	l := newLimiter(Rate{PerSecond: 10, Burst: 5})
	now := time.Now()
	for i := range 5 {
		if wait := l.allow("a", now); wait != 0 {
			t.Fatalf("request %d has to wait %v", i, wait)
		}
	}
	if wait := l.allow("a", now); wait != 100*time.Millisecond {
		t.Errorf("the sixth waits %v", wait)
	}
	if wait := l.allow("a", now.Add(100*time.Millisecond)); wait != 0 {
		t.Errorf("after that it waits %v", wait)
	}
	if wait := l.allow("b", now); wait != 0 {
		t.Errorf("another one waits %v", wait)
	}
	for i := range 3 * maxAsking {
		l.allow(fmt.Sprint(i), now.Add(time.Duration(i)*time.Microsecond))
	}
	if len(l.even) > maxAsking {
		t.Errorf("%d are remembered", len(l.even))
	}
}

func TestTraceparent(t *testing.T) {
	ts := ready(t)
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	a := ts.do("GET", "/runs/nothing", nil, "traceparent", good)
	if p := a.want(t, http.StatusNotFound, "/problems/not-found"); a.header.Get("traceparent") != good || p.TraceID != good[3:35] {
		t.Errorf("sent back %q, problem %+v", a.header.Get("traceparent"), p)
	}
	if !strings.Contains(ts.logs.String(), "trace_id="+good[3:35]) {
		t.Error("the log does not have it")
	}
	for _, bad := range []string{
		"x", good + "x", "ff" + good[2:], strings.ToUpper(good), "00-" + strings.Repeat("0", 32) + good[35:], good[:36] + strings.Repeat("0", 16) + good[52:],
	} {
		if got := ts.do("GET", "/version", nil, "traceparent", bad).header.Get("traceparent"); got != "" {
			t.Errorf("%q is sent back as %q", bad, got)
		}
	}
}

func TestMetricsToken(t *testing.T) {
	ts := ready(t)
	var issued server.IssuedToken
	ts.do("POST", "/tokens", map[string]any{"name": "prometheus", "scope": "metrics"}).decode(t, &issued)
	if issued.Token.Scope != server.ScopeMetrics {
		t.Errorf("token %+v", issued.Token)
	}
	ts.token = issued.Secret
	resp, err := ts.client.Do(ts.request(t.Context(), "GET", ts.url+"/metrics", nil))
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/metrics: %s", resp.Status)
	}
	for _, path := range []string{"/version", "/tokens", "/vms", "/nothing"} {
		ts.do("GET", path, nil).want(t, http.StatusForbidden, "/problems/denied/scope")
	}
	ts.do("POST", "/tokens", map[string]any{"name": "more"}).want(t, http.StatusForbidden, "/problems/denied/scope")
	ts.token = ""
	resp, err = ts.client.Do(ts.request(t.Context(), "GET", ts.url+"/metrics", nil))
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("/metrics without a token: %s", resp.Status)
	}
}

func TestStoppingIsNotReady(t *testing.T) {
	ts := ready(t)
	ts.do("GET", "/readyz", nil).want(t, http.StatusOK, "")
	ts.Close()
	ts.do("GET", "/readyz", nil).want(t, http.StatusServiceUnavailable, "/problems/transient")
	ts.do("GET", "/livez", nil).want(t, http.StatusOK, "")
}

// TestDocumentationNeedsNothingElse: every operation and schema is there, every link within it leads somewhere, and
// nothing comes from another place.
func TestDocumentationNeedsNothingElse(t *testing.T) {
	c, err := loadContract(api.Document)
	check(t, err)
	page, err := c.docs()
	check(t, err)
	html := string(page)
	for _, op := range c.operations {
		if !strings.Contains(html, `<section id="`+op.id+`">`) {
			t.Errorf("%s is not there", op.id)
		}
	}
	for name := range c.object("/components/schemas") {
		if !strings.Contains(html, `<section id="schema-`+name+`">`) {
			t.Errorf("schema %s is not there", name)
		}
	}
	for _, part := range strings.Split(html, `href="`)[1:] {
		target, _, _ := strings.Cut(part, `"`)
		id, local := strings.CutPrefix(target, "#")
		if local && !strings.Contains(html, `id="`+id+`"`) {
			t.Errorf("link to %s, which is not there", target)
		}
		if !local && !pages["GET "+target] {
			t.Errorf("link to %s", target)
		}
	}
	for _, bad := range []string{"<script", "src=", "@import", "url("} {
		if strings.Contains(html, bad) || strings.Contains(string(docsStyle), bad) {
			t.Errorf("%s is in it", bad)
		}
	}
}

func TestProseEscapes(t *testing.T) {
	got := string(prose("a <b> `x < y`\n\n- one\n  more\n- `two"))
	want := "<p>a &lt;b&gt; <code>x &lt; y</code></p><ul><li>one more</li><li>`two</li></ul>"
	want = strings.ReplaceAll(want, "`two", "two")
	if got != want {
		t.Errorf("prose is %s, want %s", got, want)
	}
}

var _ Requests = (*catalog.Catalog)(nil)
