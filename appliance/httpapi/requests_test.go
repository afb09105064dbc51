package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/erasure"
)

// TestAnswersConform calls every operation that needs nothing but a token; do compares with the document.
func TestAnswersConform(t *testing.T) {
	ts := ready(t)
	tests := []struct {
		method, path string
		body         any
		status       int
	}{
		{"GET", "/version", nil, 200},
		{"GET", "/livez", nil, 200},
		{"GET", "/readyz", nil, 200},
		{"GET", "/connections", nil, 200},
		{"GET", "/connections/conn_1", nil, 200},
		{"DELETE", "/connections/conn_1", nil, 204},
		{"POST", "/connections/conn_1/check", nil, 200},
		{"POST", "/connections/conn_1/refresh", nil, 200},
		{"GET", "/connections/conn_1/datastores", nil, 200},
		{"GET", "/connections/conn_1/networks", nil, 200},
		{"POST", "/connections", map[string]any{"name": "lab", "platform": "kvm", "address": "qemu:///system"}, 201},
		{"POST", "/connections", map[string]any{"name": "lab", "platform": "kvm", "address": "qemu:///system", "dry_run": true}, 200},
		{"GET", "/vms", nil, 200},
		{"GET", "/vms/vm_1", nil, 200},
		{"GET", "/repositories", nil, 200},
		{"GET", "/repositories/repo_1", nil, 200},
		{"POST", "/repositories", map[string]any{"name": "main", "path": "/backup"}, 201},
		{"DELETE", "/repositories/repo_1", nil, 204},
		{"GET", "/restore-points", nil, 200},
		{"GET", "/restore-points/rp_1", nil, 200},
		{"DELETE", "/restore-points/rp_1", nil, 204},
		{"GET", "/runs", nil, 200},
		{"GET", "/runs?page_token=more", nil, 200},
		{"GET", "/runs/run_1", nil, 200},
		{"POST", "/runs/run_1/cancel", nil, 202},
		{"GET", "/runs/run_1/events", nil, 200},
		{"GET", "/tasks", nil, 200},
		{"GET", "/tasks/task_1", nil, 200},
		{"POST", "/tasks/task_1/cancel", nil, 202},
		{"POST", "/vms/vm_1/backup", map[string]any{"repository": "repo_1"}, 202},
		{"POST", "/repositories/repo_1/collect", map[string]any{}, 202},
		{"PATCH", "/repositories/repo_1", `{"verification":{"every_days":0,"bytes_per_second":0}}`, 200},
		{"POST", "/repositories/repo_1/verify", map[string]any{}, 202},
		{"POST", "/repositories/repo_1/heal", map[string]any{}, 202},
		{"POST", "/repositories/repo_1/scrub", map[string]any{}, 202},
		{"POST", "/repositories/repo_1/members/m1/rebuild", map[string]any{}, 202},
		{"POST", "/repositories/repo_1/members", `{"members":[{"path":"/a"},{"path":"/b"}]}`, 200},
		{"GET", "/repositories/repo_1/damage", nil, 200},
		{"GET", "/repositories/repo_1/space", nil, 200},
		{"GET", "/repositories/repo_1/keys", nil, 200},
		{"POST", "/repositories/repo_1/keys", `{"kind":"paper"}`, 201},
		{"POST", "/repositories/repo_1/keys/rotate", nil, 200},
		{"POST", "/repositories/repo_1/keys/drill", `{"key_source":"env:K"}`, 200},
		{"DELETE", "/repositories/repo_1/keys/key_1", nil, 204},
		{"GET", "/movers", nil, 200},
		{"GET", "/movers/mover_1", nil, 200},
		{"GET", "/movers/mover_2", nil, 404},
		{"POST", "/mover-tokens", `{"name":"m2","expires_in_seconds":600}`, 201},
		{"POST", "/mover-tokens", `{"expires_in_seconds":1}`, 422},
		{"GET", "/mover-limits", nil, 200},
		{"POST", "/mover-limits", `{"kind":"mover","name":"m1","slots":2,"network_bytes_per_second":1048576,"from":"22:00","to":"06:00","days":["sat","sun"]}`, 201},
		{"POST", "/mover-limits", `{"kind":"mover","name":"m1","slots":2,"from":"22:00"}`, 422},
		{"POST", "/mover-limits", `{"kind":"mover","name":"m1","network_bytes_per_second":1}`, 422},
		{"POST", "/mover-limits", `{"kind":"mover","name":"m1","slots":1,"from":"24:00","to":"01:00"}`, 422},
		{"DELETE", "/mover-limits/limit_1", nil, 204},
		{"DELETE", "/mover-limits/limit_2", nil, 404},
		{"POST", "/movers/mover_1/drain", nil, 200},
		{"POST", "/movers/mover_1/resume", nil, 200},
		{"POST", "/movers/mover_1/revoke", nil, 200},
		{"DELETE", "/movers/mover_1", nil, 204},
		{"GET", "/audit?limit=2", nil, 200},
		{"GET", "/audit?page_token=2", nil, 200},
		{"GET", "/audit?page_token=x", nil, 422},
		{"POST", "/restore-points/rp_1/verify", nil, 202},
		{"GET", "/policies", nil, 200},
		{"POST", "/policies", `{"name":"gold","filter":"all","schedule":"22:00","repository":"repo_1","retention":{"daily":7},"retries":0,"limits":{"host":2}}`, 201},
		{"POST", "/policies?dry_run=true", `{"name":"gold","filter":"all","schedule":"22:00","repository":"repo_1"}`, 200},
		{"POST", "/policies", `{"name":"gold","filter":"all","schedule":"22:00"}`, 422},
		{"POST", "/policies", `{"name":"gold","filter":"all","schedule":"22:00","repository":"repo_1","retention":{"daily":-1}}`, 422},
		{"GET", "/policies/pol_1", nil, 200},
		{"GET", "/policies/pol_2", nil, 404},
		{"PUT", "/policies/pol_1", `{"name":"gold","filter":"all","schedule":"22:00","repository":"repo_1"}`, 200},
		{"PUT", "/policies/pol_1?dry_run=true", `{"name":"gold","filter":"all","schedule":"22:00","repository":"repo_1"}`, 200},
		{"DELETE", "/policies/pol_1", nil, 204},
		{"POST", "/policies/pol_1/run", nil, 200},
		{"POST", "/policies/pol_1/preview", `{"retention":{"last":1},"all":true,"vm":"vm_1"}`, 200},
		{"GET", "/policies/pol_1/turns?state=failed&vm=vm_1", nil, 200},
		{"GET", "/policies/pol_1/turns?state=late", nil, 422},
		{"GET", "/exclusions", nil, 200},
		{"GET", "/exclusions/excl_1", nil, 200},
		{"GET", "/exclusions/excl_2", nil, 404},
		{"POST", "/exclusions", `{"filter":"name = old","reason":"moves","ends_at":"2027-01-31T00:00:00Z"}`, 201},
		{"POST", "/exclusions", `{"filter":"name = old"}`, 422},
		{"DELETE", "/exclusions/excl_1", nil, 204},
		{"POST", "/support-bundle", nil, 200},
		{"GET", "/maintenance", nil, 200},
		{"GET", "/maintenance/verify", nil, 200},
		{"PUT", "/maintenance/verify", `{"schedule":"*:00","windows":["20:00-06:00"],"budget_bytes":1}`, 200},
		{"POST", "/maintenance/verify/run", nil, 200},
		{"GET", "/coverage?state=late&policy=pol_1&filter=all", nil, 200},
		{"GET", "/coverage?state=bad", nil, 422},
		{"GET", "/vms?filter=all", nil, 200},
		{"POST", "/restore-points/rp_1/hold", `{"reason":"before the upgrade","ends_at":"2027-01-31T00:00:00Z"}`, 200},
		{"POST", "/restore-points/rp_1/release", nil, 200},
		{"POST", "/restores", map[string]any{"restore_point": "rp_1", "mode": "new", "name": "web2"}, 202},
		{"POST", "/restores", map[string]any{"restore_point": "rp_1", "mode": "new", "name": "web2", "dry_run": true}, 200},
		{"POST", "/restores/vms", `{"filter":"all","mode":"new"}`, 202},
		{"POST", "/restores/vms", `{"filter":"all","mode":"in-place","dry_run":true}`, 200},
	}
	for _, tt := range tests {
		ts.do(tt.method, tt.path, tt.body).want(t, tt.status, "")
	}
}

func TestInstanceIsAReference(t *testing.T) {
	ts := ready(t)
	p := ts.do("GET", "/vms/a%00%2Fb%20c", nil).want(t, http.StatusNotFound, "/problems/not-found")
	if p.Instance != "/api/v1/vms/a%00%2Fb%20c" {
		t.Errorf("instance %q", p.Instance)
	}
}

func TestNothingSecretIsAnswered(t *testing.T) {
	ts := ready(t)
	for _, path := range []string{"/connections", "/connections/conn_1"} {
		if a := ts.do("GET", path, nil); strings.Contains(string(a.body), "sealed") {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

func TestRefusedRequests(t *testing.T) {
	ts := ready(t)
	conn := `"name":"a","platform":"kvm","address":"qemu:///system"`
	tests := []struct {
		name, method, path string
		body               any
		status             int
		problem            string
		at                 []string // pointers or parameters of the errors
	}{
		{"no JSON", "POST", "/connections", `{`, 400, "json", nil},
		{"empty body", "POST", "/connections", "", 400, "json", nil},
		{"two values", "POST", "/connections", `{` + conn + `} {}`, 400, "json", nil},
		{"not an object", "POST", "/connections", `[]`, 422, "body", []string{"#"}},
		{"null", "POST", "/connections", `null`, 422, "body", []string{"#"}},
		{"unknown member", "POST", "/connections", `{` + conn + `,"nmae":1}`, 422, "body", []string{"#/nmae"}},
		{"other case", "POST", "/connections", `{` + conn + `,"Name":"b"}`, 422, "body", []string{"#/Name"}},
		{"missing members", "POST", "/connections", `{"name":"a"}`, 422, "body", []string{"#/address", "#/platform"}},
		{"wrong type", "POST", "/connections", `{"name":1,"platform":"kvm","address":"x"}`, 422, "body", []string{"#/name"}},
		{"wrong types", "POST", "/connections", `{"name":"a","platform":"kvm","address":"x","dry_run":"yes","options":{"k":1}}`, 422, "body", []string{"#/dry_run", "#/options/k"}},
		{"empty name", "POST", "/connections", `{"name":"","platform":"kvm","address":"x"}`, 422, "body", []string{"#/name", "#/name"}},
		{"slash in name", "POST", "/connections", `{"name":"a/b","platform":"kvm","address":"x"}`, 422, "body", []string{"#/name"}},
		{"relative path", "POST", "/repositories", `{"name":"a","path":"backup"}`, 422, "body", []string{"#/path"}},
		{"unknown mode", "POST", "/repositories", `{"name":"a","path":"/b","mode":"steal"}`, 422, "body", []string{"#/mode"}},
		{"key for a new one", "POST", "/repositories", `{"name":"a","path":"/b","key_file":"/k"}`, 422, "body", []string{"#/key_file"}},
		{"neither path nor set", "POST", "/repositories", `{"name":"a"}`, 422, "body", []string{"#/path"}},
		{"path and set", "POST", "/repositories", `{"name":"a","path":"/b","set":{"data":1,"parity":1,"members":[{"path":"/a"}]}}`, 422, "body", []string{"#/path"}},
		{"set without layout", "POST", "/repositories", `{"name":"a","set":{"members":[{"path":"/a"}]}}`, 422, "body", []string{"#/set/data", "#/set/parity"}},
		{"trust in members of a new set", "POST", "/repositories", `{"name":"a","set":{"data":1,"parity":1,"trust":["m"],"accept_loss":true,"members":[{"path":"/a"},{"path":"/b"}]}}`, 422, "body", []string{"#/set/trust"}},
		{"trust without a word", "POST", "/repositories", `{"name":"a","mode":"attach","set":{"trust":["m"],"members":[{"path":"/a"}]}}`, 422, "body", []string{"#/set/accept_loss"}},
		{"layout of one that is there", "POST", "/repositories", `{"name":"a","mode":"attach","set":{"data":1,"parity":1,"members":[{"path":"/a"}]}}`, 422, "body", []string{"#/set/data"}},
		{"two keys", "POST", "/repositories", `{"name":"a","path":"/b","mode":"attach","key_file":"/k","key_source":"env:K"}`, 422, "body", []string{"#/key_source"}},
		{"domain of one that is there", "POST", "/repositories", `{"name":"a","path":"/b","mode":"attach","domain_of":"repo_1"}`, 422, "body", []string{"#/domain_of"}},
		{"key file without a place", "POST", "/repositories/repo_1/keys", `{"kind":"key-file"}`, 422, "body", []string{"#/key_file"}},
		{"by two keys", "POST", "/repositories/repo_1/keys", `{"kind":"key-file","by":{"key":"a","identity":"b"}}`, 422, "body", []string{"#/by"}},
		{"age without recipient", "POST", "/repositories/repo_1/keys", `{"kind":"age","key_file":"/k"}`, 422, "body", []string{"#/recipient", "#/key_file"}},
		{"paper with recipient", "POST", "/repositories/repo_1/keys", `{"kind":"paper","recipient":"age1x"}`, 422, "body", []string{"#/recipient"}},
		{"drill without a key", "POST", "/repositories/repo_1/keys/drill", `{}`, 422, "body", []string{"#"}},
		{"drill with two keys", "POST", "/repositories/repo_1/keys/drill", `{"key":"a","identity":"b"}`, 422, "body", []string{"#"}},
		{"verified too often", "PATCH", "/repositories/repo_1", `{"verification":{"every_days":366,"bytes_per_second":-1}}`, 422, "body", []string{"#/verification/every_days", "#/verification/bytes_per_second"}},
		{"compact more than all", "POST", "/repositories/repo_1/collect", `{"compact_below":1.5}`, 422, "body", []string{"#/compact_below"}},
		{"unknown quiesce", "POST", "/vms/vm_1/backup", `{"repository":"repo_1","quiesce":"maybe"}`, 422, "body", []string{"#/quiesce"}},
		{"disk twice", "POST", "/vms/vm_1/backup", `{"repository":"repo_1","exclude_disks":["vda","vda"]}`, 422, "body", []string{"#/exclude_disks"}},
		{"new without name", "POST", "/restores", `{"restore_point":"rp_1","mode":"new"}`, 422, "body", []string{"#/name"}},
		{"in place with name", "POST", "/restores", `{"restore_point":"rp_1","mode":"in-place","name":"x","connection":"c"}`, 422, "body", []string{"#/name", "#/connection"}},
		{"into no VM", "POST", "/restores", `{"restore_point":"rp_1","mode":"into","name":"x","connection":"c","start":true}`, 422, "body", []string{"#/vm", "#/name", "#/connection", "#/start"}},
		{"a VM for a new one", "POST", "/restores", `{"restore_point":"rp_1","mode":"new","name":"x","vm":"vm_1"}`, 422, "body", []string{"#/vm"}},
		{"disks with networks", "POST", "/restores", `{"restore_point":"rp_1","mode":"disks","networks":{"a":"b"},"keep_macs":true}`, 422, "body", []string{"#/networks", "#/keep_macs"}},
		{"restore of many disks alone", "POST", "/restores/vms", `{"filter":"all","mode":"disks"}`, 422, "body", []string{"#/mode"}},
		{"restore of many without a filter", "POST", "/restores/vms", `{"mode":"new"}`, 422, "body", []string{"#/filter"}},
		{"restore of many in place with a suffix", "POST", "/restores/vms", `{"filter":"all","mode":"in-place","name_suffix":"x","connection":"c"}`, 422, "body", []string{"#/name_suffix", "#/connection"}},
		{"chosen disk twice", "POST", "/restores", `{"restore_point":"rp_1","mode":"in-place","only_disks":["vda","vda"]}`, 422, "body", []string{"#/only_disks/1"}},
		{"no disk chosen", "POST", "/restores", `{"restore_point":"rp_1","mode":"in-place","only_disks":[]}`, 422, "body", []string{"#/only_disks"}},
		{"restore disk twice", "POST", "/restores", `{"restore_point":"rp_1","mode":"new","name":"x","disks":[{"id":"vda"},{"id":"vda"}]}`, 422, "body", []string{"#/disks/1/id"}},
		{"restore disk format", "POST", "/restores", `{"restore_point":"rp_1","mode":"new","name":"x","disks":[{"id":"vda","format":"vmdk"}]}`, 422, "body", []string{"#/disks/0/format"}},
		{"number beyond int", "POST", "/tokens", `{"name":"x","expires_in_days":1e30}`, 422, "body", []string{"#/expires_in_days"}},
		{"fraction", "POST", "/tokens", `{"name":"x","expires_in_days":1.5}`, 422, "body", []string{"#/expires_in_days"}},
		{"odd integer", "POST", "/tokens", `{"name":"x","expires_in_days":1.0}`, 422, "body", []string{"#/expires_in_days"}},
		{"body where none is", "POST", "/restore-points/rp_1/verify", `{}`, 400, "body", nil},
		{"unknown parameter", "GET", "/vms?nmae=x&zzz=1", nil, 422, "parameter", []string{"nmae", "zzz"}},
		{"parameter twice", "GET", "/vms?name=x&name=y", nil, 422, "parameter", []string{"name"}},
		{"parameter of another call", "GET", "/connections?power=on", nil, 422, "parameter", []string{"power"}},
		{"header as parameter", "GET", "/events?Last-Event-ID=1", nil, 422, "parameter", []string{"Last-Event-ID"}},
		{"limit 0", "GET", "/vms?limit=0", nil, 422, "parameter", []string{"limit"}},
		{"limit 1001", "GET", "/vms?limit=1001", nil, 422, "parameter", []string{"limit"}},
		{"limit x", "GET", "/vms?limit=x", nil, 422, "parameter", []string{"limit"}},
		{"limit as a list", "GET", "/vms?limit=[1]", nil, 422, "parameter", []string{"limit"}},
		{"limit 1.0", "GET", "/vms?limit=1.0", nil, 400, "", nil},
		{"power", "GET", "/vms?power=maybe", nil, 422, "parameter", []string{"power"}},
		{"gone", "GET", "/vms?gone=maybe", nil, 422, "parameter", []string{"gone"}},
		{"topic", "GET", "/events?topics=run,nothing", nil, 422, "parameter", []string{"topics"}},
		{"bad escape", "GET", "/vms?name=%zz", nil, 400, "query", nil},
		{"page token", "GET", "/vms?page_token=zzz", nil, 422, "", nil},
		{"event page token", "GET", "/runs/run_1/events?page_token=-1", nil, 422, "", nil},
		{"no such path", "GET", "/nothing", nil, 404, "route", nil},
		{"no such method", "PUT", "/vms", nil, 405, "method", nil},
		{"too large", "POST", "/connections", `{"name":"` + strings.Repeat("x", maxBodyBytes) + `"}`, 413, "too-large", nil},
	}
	before := ts.core.count()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			problem := "/problems/invalid"
			if tt.status == 404 {
				problem = "/problems/not-found"
			}
			if tt.problem != "" {
				problem += "/" + tt.problem
			}
			p := ts.do(tt.method, tt.path, tt.body).want(t, tt.status, problem)
			var at []string
			for _, f := range p.Errors {
				at = append(at, f.Pointer+f.Parameter)
				if f.Detail == "" {
					t.Errorf("no detail at %s", f.Pointer+f.Parameter)
				}
			}
			if diff := cmp.Diff(tt.at, at, cmpopts.SortSlices(strings.Compare)); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
	if got := ts.core.count() - before; got != 1 { // the page token of a VM list is the core's to judge
		t.Errorf("%d refused requests reached the core, want 1", got)
	}
}

func TestMediaType(t *testing.T) {
	ts := ready(t)
	body := `{"name":"x"}`
	ts.do("POST", "/tokens", body, "Content-Type", "text/plain").want(t, 415, "/problems/invalid/media-type")
	ts.do("POST", "/tokens", body, "Content-Type", "").want(t, 415, "/problems/invalid/media-type")
	ts.do("POST", "/tokens", body, "Content-Type", "application/json; charset=utf-8").want(t, 201, "")
}

// TestRequestsReachTheCore shows that nothing is lost or swapped between the document and the core.
func TestRequestsReachTheCore(t *testing.T) {
	ts := ready(t)
	asker := fleet.Who{User: "admin", Source: "127.0.0.1"}
	tests := []struct {
		method, path, body string
		want               any
	}{
		{
			"POST", "/connections", `{"name":"n","platform":"kvm","address":"a","user":"u","password":"p","options":{"k":"v"}}`,
			NewConnection{Name: "n", Platform: hypervisors.KVM, Address: "a", User: "u", Password: "p", Options: map[string]string{"k": "v"}},
		},
		{
			"POST", "/repositories", `{"name":"n","path":"/p","mode":"attach","key_file":"/k"}`,
			NewRepository{Name: "n", Path: "/p", Attach: true, KeyFile: "/k", By: asker},
		},
		{"POST", "/repositories", `{"name":"n","path":"/p","mode":"create"}`, NewRepository{Name: "n", Path: "/p", By: asker}},
		{
			"POST", "/vms/vm_1/backup", `{"repository":"repo_1"}`,
			BackupRequest{VMID: "vm_1", RepositoryID: "repo_1", Quiesce: hypervisors.QuiesceTry},
		},
		{
			"POST", "/vms/vm_1/backup", `{"repository":"repo_1","quiesce":"require","exclude_disks":["vdb"],"full":true}`,
			BackupRequest{VMID: "vm_1", RepositoryID: "repo_1", Quiesce: hypervisors.QuiesceRequire, ExcludeDisks: []string{"vdb"}, Full: true},
		},
		{"POST", "/repositories/repo_1/collect", `{"dry_run":true}`, CollectRequest{DryRun: true}},
		{"POST", "/repositories/repo_1/collect", `{"compact_below":0.25}`, CollectRequest{Compact: 0.25}},
		{"POST", "/repositories/repo_1/collect", `{"compact_below":0}`, CollectRequest{Compact: -1}},
		{
			"POST", "/repositories", `{"name":"n","set":{"data":2,"parity":1,"members":[{"path":"/a","domain":"d"},{"path":"/b"},{"path":"/c"}],"force":true},"key_source":"env:K"}`,
			NewRepository{Name: "n", By: asker, KeySource: "env:K", Set: &NewSet{
				Layout: erasure.Layout{Data: 2, Parity: 1}, Members: []NewMember{{"/a", "d"}, {"/b", ""}, {"/c", ""}}, Force: true,
			}},
		},
		{
			"POST", "/repositories", `{"name":"n","mode":"attach","set":{"members":[{"path":"/a"}],"trust":["/a","m1"],"accept_loss":true}}`,
			NewRepository{Name: "n", By: asker, Attach: true, Set: &NewSet{Members: []NewMember{{"/a", ""}}, Trust: []string{"/a", "m1"}}},
		},
		{
			"PATCH", "/repositories/repo_1", `{"verification":{"every_days":7,"bytes_per_second":1000}}`,
			RepositoryChange{Verification: &VerificationSettings{EveryDays: 7, BytesPerSecond: 1000}},
		},
		{
			"POST", "/repositories/repo_1/verify", `{"budget_bytes":5,"bytes_per_second":6}`,
			SweepRequest{BudgetBytes: 5, BytesPerSecond: 6},
		},
		{"POST", "/repositories/repo_1/heal", `{"from":["a","b"],"dry_run":true}`, HealRequest{From: []string{"a", "b"}, DryRun: true}},
		{"POST", "/repositories/repo_1/scrub", `{"bytes_per_second":6}`, int64(6)},
		{"POST", "/repositories/repo_1/members/m1/rebuild", `{"path":"/new"}`, []string{"m1", "/new"}},
		{
			"POST", "/repositories/repo_1/members", `{"members":[{"path":"/a","domain":"d"},{"path":"/b"}],"force":true}`,
			[]any{[]NewMember{{"/a", "d"}, {"/b", ""}}, true},
		},
		{"GET", "/repositories/repo_1/space?without=rp_1,rp_2", ``, []string{"rp_1", "rp_2"}},
		{"POST", "/repositories/repo_1/keys", `{"kind":"age","recipient":"age1x","label":"l"}`, NewKey{Kind: "age", Recipient: "age1x", Label: "l"}},
		{"POST", "/repositories/repo_1/keys", `{"kind":"key-file","key_file":"/k"}`, NewKey{Kind: "key-file", KeyFile: "/k"}},
		{
			"POST", "/repositories/repo_1/keys", `{"kind":"key-file","by":{"paper_key":"p"}}`,
			NewKey{Kind: "key-file", By: GivenKey{Paper: "p"}},
		},
		{"POST", "/repositories", `{"name":"n","path":"/p","domain_of":"repo_2"}`, NewRepository{Name: "n", Path: "/p", DomainOf: "repo_2", By: asker}},
		{"POST", "/repositories/repo_1/keys/drill", `{"paper_key":"p"}`, GivenKey{Paper: "p"}},
		{"POST", "/repositories/repo_1/keys/drill", `{"identity":"i"}`, GivenKey{Identity: "i"}},
		{"POST", "/repositories/repo_1/keys/drill", `{"key":"k"}`, GivenKey{Key: "k"}},
		{"POST", "/restore-points/rp_1/verify", ``, "rp_1"},
		{
			"POST", "/restores", `{"restore_point":"rp_1","mode":"new","name":"w","connection":"c","datastore":"d","disks":[{"id":"vda","datastore":"e","format":"raw"}],"networks":{"a":"b","c":""},"keep_macs":true,"start":true}`,
			RestoreRequest{
				RestorePointID: "rp_1", Mode: hypervisors.RestoreNew, Name: "w", ConnectionID: "c", Datastore: "d",
				Disks:    []hypervisors.RestoreDisk{{ID: "vda", Datastore: "e", Format: hypervisors.Raw}},
				Networks: map[string]string{"a": "b", "c": ""}, KeepMACs: true, Start: true,
			},
		},
		{
			"POST", "/restores", `{"restore_point":"rp_1","mode":"in-place","dry_run":true}`,
			RestoreRequest{RestorePointID: "rp_1", Mode: hypervisors.RestoreInPlace},
		},
		{
			"POST", "/restores", `{"restore_point":"rp_1","mode":"into","vm":"vm_1","only_disks":["vdb"]}`,
			RestoreRequest{RestorePointID: "rp_1", Mode: hypervisors.RestoreInto, IntoVMID: "vm_1", OnlyDisks: []string{"vdb"}},
		},
		{
			"POST", "/restores", `{"restore_point":"rp_1","mode":"in-place","only_disks":["vdb","vdc"]}`,
			RestoreRequest{RestorePointID: "rp_1", Mode: hypervisors.RestoreInPlace, OnlyDisks: []string{"vdb", "vdc"}},
		},
		{
			"POST", "/restores/vms", `{"filter":"tag = a","before":"2026-11-20T18:00:00Z","repository":"r","mode":"new","name_prefix":"a-","name_suffix":"-b","connection":"c","datastore":"d","networks":{"n":""},"keep_macs":true,"start":true,"mover":"m","transport":"san","fallback":true,"leave_out":true}`,
			RestoresRequest{
				Filter: "tag = a", Before: time.Date(2026, 11, 20, 18, 0, 0, 0, time.UTC), RepositoryID: "r", Mode: hypervisors.RestoreNew, NamePrefix: "a-", NameSuffix: "-b",
				ConnectionID: "c", Datastore: "d", Networks: map[string]string{"n": ""}, KeepMACs: true, Start: true, Mover: "m", Transport: "san", Fallback: true, LeaveOut: true,
			},
		},
		{
			"GET", "/vms?connection=c&name=w*&power=paused&gone=true", ``,
			catalog.VMFilter{ConnectionID: "c", Name: "w*", Power: hypervisors.PowerPaused, Gone: true},
		},
		{"GET", "/restore-points?vm=v&repository=r", ``, catalog.PointFilter{VMID: "v", RepositoryID: "r"}},
		{"GET", "/runs?state=warning&kind=collect&vm=v", ``, catalog.RunFilter{State: catalog.Warning, Kind: catalog.KindCollect, VMID: "v"}},
		{"GET", "/tasks?state=running&run=r&vm=v", ``, catalog.TaskFilter{States: []catalog.State{catalog.Running}, RunID: "r", VMID: "v"}},
	}
	for _, tt := range tests {
		var body any
		if tt.body != "" {
			body = tt.body
		}
		a := ts.do(tt.method, tt.path, body)
		if a.status >= 300 {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, a.status, a.body)
			continue
		}
		if diff := cmp.Diff(tt.want, ts.core.last()); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.method, tt.path, diff)
		}
	}
}

func TestUnknownIDs(t *testing.T) {
	ts := ready(t)
	bodies := map[string]string{
		"startBackup": `{"repository":"repo_1"}`, "updateRepository": `{"verification":{"every_days":1,"bytes_per_second":0}}`,
		"trustMembers":   `{"members":["m1"],"accept_loss":true}`,
		"growRepository": `{"members":[{"path":"/a"},{"path":"/b"}]}`, "addKey": `{"kind":"paper"}`, "drillKey": `{"key":"k"}`,
		"replacePolicy": `{"name":"gold","filter":"all","schedule":"22:00","repository":"repo_1"}`, "holdRestorePoint": `{"reason":"r"}`,
		"replaceMaintenance": `{"schedule":"daily"}`, "replaceConnection": `{"address":"x"}`,
	}
	for key, op := range ts.contract.operations {
		method, path, _ := strings.Cut(key, " ")
		if !strings.Contains(path, ":") {
			continue
		}
		parts := strings.Split(strings.TrimPrefix(path, api.BasePath), "/")
		for i, p := range parts {
			if strings.HasPrefix(p, ":") {
				parts[i] = "nothing_1"
			}
		}
		var body any
		if op.body != nil {
			body = `{}`
			if wanted, ok := bodies[op.id]; ok {
				body = wanted
			}
		}
		ts.do(method, strings.Join(parts, "/"), body).want(t, http.StatusNotFound, "/problems/not-found")
	}
	ts.do("POST", "/restores", map[string]any{"restore_point": "nothing", "mode": "in-place"}).
		want(t, http.StatusNotFound, "/problems/not-found")
}

func TestKindsOfErrors(t *testing.T) {
	ts := ready(t)
	tests := []struct {
		err     error
		status  int
		problem string
		shown   bool
	}{
		{fault.New(fault.Invalid, "op", "s", "planted"), 422, "/problems/invalid", true},
		{fault.New(fault.NotFound, "op", "s", "planted"), 404, "/problems/not-found", true},
		{fault.New(fault.Exists, "op", "s", "planted"), 409, "/problems/exists", true},
		{fault.New(fault.Conflict, "op", "s", "planted"), 409, "/problems/conflict", true},
		{fault.New(fault.Denied, "op", "s", "planted"), 403, "/problems/denied", true},
		{fault.New(fault.Unsupported, "op", "s", "planted"), 501, "/problems/unsupported", true},
		{fault.New(fault.Transient, "op", "s", "planted"), 503, "/problems/transient", true},
		{fault.New(fault.Corrupt, "op", "s", "planted"), 500, "/problems/corrupt", true},
		{fault.New(fault.Canceled, "op", "s", "planted"), 499, "/problems/canceled", true},
		{fault.New(fault.Internal, "op", "s", "planted"), 500, "/problems/internal", false},
		{errors.New("planted"), 500, "/problems/internal", false},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), 503, "/problems/transient", true},
		{fmt.Errorf("outer: %w", fault.New(fault.Conflict, "op", "s", "planted").Explain("m", "a")), 409, "/problems/conflict", true},
	}
	for _, tt := range tests {
		ts.core.set(tt.err)
		a := ts.do("GET", "/connections", nil)
		p := a.want(t, tt.status, tt.problem)
		if shown := p.Detail == tt.err.Error(); shown != tt.shown || (!shown && p.Detail != "") {
			t.Errorf("%v: detail %q", tt.err, p.Detail)
		}
		why := catalog.FailureOf(tt.err) // its own words, or those of its kind
		if !tt.shown {
			why = &catalog.Failure{}
		}
		if p.Meaning != why.Meaning || p.Advice != why.Advice || p.Instance != "/api/v1/connections" || p.Title == "" {
			t.Errorf("%v: problem %+v", tt.err, p)
		}
		if p.Retryable != (tt.status == 503) || (a.header.Get("Retry-After") != "") != (tt.status == 503) {
			t.Errorf("%v: retryable %v, Retry-After %q", tt.err, p.Retryable, a.header.Get("Retry-After"))
		}
		if logged := strings.Contains(ts.logs.String(), p.RequestID+" kind="); logged != (tt.status == 500) {
			t.Errorf("%v: logged as an error: %v", tt.err, logged)
		}
	}
	p := ts.do("GET", "/readyz", nil).want(t, 503, "/problems/transient")
	if strings.Contains(p.Detail, "planted") {
		t.Errorf("readyz tells strangers %q", p.Detail)
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	ts := ready(t)
	ts.core.panics = true
	p := ts.do("GET", "/connections", nil).want(t, 500, "/problems/internal")
	if p.Detail != "" || !strings.Contains(ts.logs.String(), "planted panic") {
		t.Errorf("detail %q; logged: %v", p.Detail, strings.Contains(ts.logs.String(), "planted panic"))
	}
}

func TestRunEventPages(t *testing.T) {
	ts := ready(t)
	var got []string
	next := ""
	for range 3 {
		path := "/runs/run_1/events?limit=2"
		if next != "" {
			path += "&page_token=" + next
		}
		var page server.RunEventList
		ts.do("GET", path, nil).decode(t, &page)
		for _, e := range page.Items {
			got = append(got, e.Message)
		}
		if next = page.Next; next == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"one", "two", "three"}, got); diff != "" || next != "" {
		t.Errorf("events (-want +got):\n%s next %q", diff, next)
	}
}

// TestSecretsOfKeysAreNotLogged sends and gets keys and looks into the log, also when the request is refused.
func TestSecretsOfKeysAreNotLogged(t *testing.T) {
	ts := ready(t)
	ts.do("POST", "/repositories/repo_1/keys", `{"kind":"paper"}`).want(t, http.StatusCreated, "")
	for _, member := range []string{"paper_key", "identity", "key"} {
		ts.do("POST", "/repositories/repo_1/keys/drill", `{"`+member+`":"tell-nobody"}`).want(t, http.StatusOK, "")
		ts.do("POST", "/repositories/repo_1/keys/drill", `{"`+member+`":["tell-nobody"]}`).want(t, 422, "/problems/invalid/body")
		if last, ok := ts.core.last().(GivenKey); !ok || strings.Contains(fmt.Sprintf("%v %+v %#v", last, last, last), "tell-nobody") {
			t.Errorf("printed: %v", last)
		}
	}
	if logs := ts.logs.String(); strings.Contains(logs, "tell-nobody") || strings.Contains(logs, "the page") || logs == "" {
		t.Errorf("logged: %s", logs)
	}
}

// FuzzBody: whatever the body is, checking and decoding it ends in an answer below 500.
func FuzzBody(f *testing.F) {
	c, err := loadContract(api.Document)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		``, `{}`, `[]`, `null`, `1e999`, `"`, `{"name":"a","platform":"kvm","address":"x"}`, `{"expires_in_days":9223372036854775808,"name":"x"}`,
		`{"expires_in_days":3650,"name":"\ud800"}`, `{"name":"a","name":"b"}`, strings.Repeat("[", 10001), `{"":{"":[]}}`, `{"name":"x"}{`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for key, op := range c.operations {
			if op.body == nil {
				continue
			}
			if _, err := op.accept(http.Header{"Content-Type": {"application/json"}}, []byte(body)); err != nil {
				if p := problemOf(err); p.Status >= 500 {
					t.Errorf("%s: %q: %d %v", key, body, p.Status, err)
				}
			}
		}
	})
}
