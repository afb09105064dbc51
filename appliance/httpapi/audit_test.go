package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestWhoRemovedWhat: what cannot be undone, or gives or takes access, is in the audit log with who did it.
func TestWhoRemovedWhat(t *testing.T) {
	ts := ready(t)
	for _, tt := range []struct {
		method, path string
		body         any
		status       int
		want         string
	}{
		{"POST", "/connections", map[string]any{"name": "lab", "platform": "kvm", "address": "qemu:///system"}, http.StatusCreated, "connection.add "},
		{"DELETE", "/connections/conn_1", nil, http.StatusNoContent, "connection.remove "},
		{"POST", "/repositories", map[string]any{"name": "main", "path": "/backup"}, http.StatusCreated, "repository.add "},
		{"PATCH", "/repositories/repo_1", map[string]any{"compression": "high", "verification": map[string]any{"every_days": 30, "bytes_per_second": 0}}, http.StatusOK, "repository.change main compression high, verification every 30 days"},
		{"POST", "/repositories/repo_1/members", map[string]any{"members": []map[string]any{{"path": "/a"}, {"path": "/b"}}}, http.StatusOK, "repository.grow main 2 more members"},
		{"DELETE", "/repositories/repo_1", nil, http.StatusNoContent, "repository.detach main repo_1"},
		{"DELETE", "/restore-points/rp_1", nil, http.StatusNoContent, "point.prune rp_1 VM "},
		{"POST", "/repositories/repo_1/keys", map[string]any{"kind": "paper"}, http.StatusCreated, "key.add "},
		{"POST", "/repositories/repo_1/keys/rotate", nil, http.StatusOK, "key.rotate "},
		{"DELETE", "/repositories/repo_1/keys/key_1", nil, http.StatusNoContent, "key.remove key_1 "},
		{"POST", "/tokens", map[string]any{"name": "robot"}, http.StatusCreated, "token.create robot "},
	} {
		ts.do(tt.method, tt.path, tt.body).want(t, tt.status, "")
		if notes := ts.core.noted(); !slices.ContainsFunc(notes, func(n string) bool { return strings.HasPrefix(n, adminName+" "+tt.want) }) {
			t.Errorf("%s %s: %q is not in the audit log: %q", tt.method, tt.path, tt.want, notes)
		}
	}
	before := len(ts.core.noted())
	ts.do("POST", "/connections", map[string]any{"name": "lab", "platform": "kvm", "address": "qemu:///system", "dry_run": true}).want(t, http.StatusOK, "")
	if notes := ts.core.noted(); len(notes) != before {
		t.Errorf("a dry run is in the audit log: %q", notes[before:])
	}
}

func (f *fakeCore) noted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.notes)
}
