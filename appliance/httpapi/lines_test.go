package httpapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestWantsLines(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "application/x-ndjson": true, "application/json": false, "*/*": false, "application/*": false, "text/html, application/x-ndjson;q=0.5": true,
		"application/json, application/x-ndjson": true, "application/json, application/x-ndjson;q=0.9": false, "application/json;q=0.1,application/x-ndjson;q=0.2": true,
		"application/x-ndjson;q=0": false, "application/x-ndjson;q=x": false, ";;, application/x-ndjson": true, "Application/X-NDJSON; charset=utf-8": true,
	} {
		if got := wantsLines([]string{accept}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

// TestEveryListHasLines asks every list of the document for lines; do compares each of them with the schema of the items.
func TestEveryListHasLines(t *testing.T) {
	ts := ready(t)
	ids := strings.NewReplacer("{connection_id}", "conn_1", "{repository_id}", "repo_1", "{run_id}", "run_1", "{policy_id}", "pol_1")
	lists := 0
	for path := range ts.contract.object("/paths") {
		op := ts.contract.operations[routeKey(http.MethodGet, "/api/v1"+path)]
		if op == nil || op.members == nil {
			continue
		}
		if content := ts.contract.object(ts.contract.resolve("/paths/"+escapePointer(path)+"/get/responses/200") + "/content"); content[linesType] == nil {
			continue // it has items, and more besides
		}
		lists++
		document := ts.do("GET", ids.Replace(path), nil)
		document.want(t, 200, "")
		lines := ts.do("GET", ids.Replace(path), nil, "Accept", linesType)
		lines.want(t, 200, "")
		if got := lines.header.Get("Content-Type"); got != linesType || lines.header.Get("Vary") != "Accept" || lines.header.Get("ETag") != "" {
			t.Errorf("%s: headers %v", path, lines.header)
		}
		var list struct{ Items []any }
		if err := json.Unmarshal(document.body, &list); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(lines.body, []byte("\n")); got != len(list.Items) {
			t.Errorf("%s: %d lines for %d items", path, got, len(list.Items))
		}
	}
	if lists < 19 {
		t.Errorf("%d lists only", lists)
	}
}

// All pages are read, or with limit one, and what the other parameters say holds.
func TestLinesArePaged(t *testing.T) {
	ts := ready(t)
	get := func(path string) answer { return ts.do("GET", path, nil, "Accept", linesType) }
	calls := func(f func() answer) (answer, int) {
		before := ts.core.calls
		a := f()
		return a, ts.core.calls - before
	}
	all, n := calls(func() answer { return get("/vms?include_total=true") })
	if all.status != 200 || n != 2 || bytes.Count(all.body, []byte("\n")) != 1 || all.header.Get("Link") != "" {
		t.Errorf("all: %d calls, %d %v %s", n, all.status, all.header, all.body)
	}
	one, n := calls(func() answer { return get("/vms?limit=1&filter=all") })
	const next = `</api/v1/vms?filter=all&limit=1&page_token=more>; rel="next"`
	if one.status != 200 || n != 1 || one.header.Get("Link") != next {
		t.Errorf("one: %d calls, %d, Link %q", n, one.status, one.header.Get("Link"))
	}
	if a := get("/vms?limit=1&page_token=more"); a.status != 200 || len(a.body) != 0 || a.header.Get("Link") != "" {
		t.Errorf("the last: %d %v %q", a.status, a.header, a.body)
	}
	if a := get("/vms?fields=id,name"); string(a.body) != `{"id":"vm_1","name":"web"}`+"\n" {
		t.Errorf("fields: %s", a.body)
	}
	get("/vms?fields=nothing").want(t, 422, "/problems/invalid/parameter")
	get("/vms?page_token=x").want(t, 422, "/problems/invalid")
	get("/vms?limit=0").want(t, 422, "/problems/invalid/parameter")
	ts.do("GET", "/vms", nil, "Accept", "application/json").want(t, 200, "")
}

// A list that cannot be read to its end is no list: the client sees that it was cut off.
func TestLinesAreCutOff(t *testing.T) {
	ts := ready(t)
	ts.core.cutOff = true
	resp, err := ts.client.Do(ts.request(t.Context(), "GET", "/vms", nil, "Accept", linesType))
	check(t, err)
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || resp.StatusCode != 200 {
		t.Errorf("got %d %q and no error", resp.StatusCode, b)
	}
}
