package command

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

// TestVerbs checks what is sent for each command that changes something, and what is said then.
func TestVerbs(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("pass word\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	verified := client.Run{ID: "run_7", Kind: client.RunVerify, State: client.StateSucceeded, Tasks: []client.Task{{
		ID: "task_7", Kind: client.RunVerify, VMName: "web01", State: client.StateSucceeded, RestorePointID: "rp_02", Result: client.TaskResult{BytesVerified: 12 << 30},
	}}}
	collected := client.Run{ID: "run_8", Kind: client.RunCollect, State: client.StateSucceeded, Tasks: []client.Task{{
		ID: "task_8", Kind: client.RunCollect, State: client.StateSucceeded, Result: client.TaskResult{BytesFreed: 3 << 30},
	}}}
	restored := client.Run{ID: "run_9", Kind: client.RunRestore, State: client.StateSucceeded, Tasks: []client.Task{{
		ID: "task_9", Kind: client.RunRestore, VMName: "web01", State: client.StateSucceeded, RestorePointID: "rp_02", Result: client.TaskResult{VMName: "copy", Started: true},
	}}}
	deployed := client.Run{ID: "run_10", Kind: client.RunDeploy, State: client.StateSucceeded, Tasks: []client.Task{{
		ID: "task_10", Kind: client.RunDeploy, VMName: "m3", State: client.StateSucceeded, Result: client.TaskResult{VMName: "cairn-m3", MoverID: "mover_03"},
	}}}
	answers := map[string]struct {
		status int
		v      any
	}{
		"POST /connections":                  {201, lab},
		"POST /connections/conn_01/check":    {200, client.ConnectionHealth{Product: "QEMU", Host: "host1", VMs: 3, Movers: 2}},
		"POST /connections/conn_01/refresh":  {200, client.InventoryReport{VMs: 3, Added: 1, Gone: 2}},
		"POST /repositories":                 {201, mainRepo},
		"POST /repositories/repo_01/collect": {202, collected},
		"POST /restore-points/rp_02/verify":  {202, verified},
		"POST /restores":                     {200, client.RestoreOutcome{Run: restored}},
		"POST /tasks/task_03/cancel":         {202, runningRun.Tasks[0]},
		"POST /tokens":                       {201, client.IssuedToken{Secret: "cairn_new", Token: client.Token{ID: "tok_2", Name: "ci", ExpiresAt: noon}}},
		"POST /movers":                       {202, deployed},
		"DELETE /connections/conn_01":        {204, nil},
		"DELETE /repositories/repo_01":       {204, nil},
		"DELETE /tokens/tok_2":               {204, nil},
	}
	for pattern, answer := range answers {
		a.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			if answer.v == nil {
				w.WriteHeader(answer.status)
				return
			}
			reply(w, answer.status, answer.v)
		})
	}
	targets := filepath.Join(t.TempDir(), "targets")
	if err := os.WriteFile(targets, []byte("iscsi://u:p@h/iqn.a\niscsi://h/iqn.c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := a.run(t, "mover", "deploy", "m3", "--connection", "lab", "--manager", "h", "--session", "iscsi://u:p@h/iqn.a")
	if requests := a.seen(); got.code != 2 || !strings.Contains(got.stderr, "--sessions-file") || strings.Contains(got.stderr, "u:p") || strings.HasPrefix(requests[len(requests)-1], "POST") {
		t.Errorf("a secret on the command line: %d, %s, %v", got.code, got.stderr, requests)
	}
	tests := []struct{ args, request, stdout, stderr string }{
		{
			"connection add lab qemu:///system --user root --password-file " + secret + " --option a=b --option c=d,e=,f=g=h -o name",
			`POST /connections {"address":"qemu:///system","name":"lab","options":{"a":"b","c":"d","e":"","f":"g=h"},"password":"pass word","platform":"kvm","user":"root"}`, "lab\n", "Connected \"lab\".\n",
		},
		{"connection check lab", "POST /connections/conn_01/check", "State:    ok\nProduct:  QEMU\nHost:     host1\nVMs:      3\nMovers:   2\n", ""},
		{"connection refresh lab", "POST /connections/conn_01/refresh", "3 VMs: 1 new, 0 changed, 2 gone.\n", ""},
		{"connection remove lab --yes", "DELETE /connections/conn_01", "", "Forgot \"lab\". Nothing was changed on the hypervisor.\n"},
		{
			"repository create main /srv/backup -o name", `POST /repositories {"mode":"create","name":"main","path":"/srv/backup"}`, "main\n",
			"\nIts key is /var/lib/cairn/keys/repo_01.key on the appliance. Keep a copy apart from the appliance:\nwithout the key nobody can read these backups.\n",
		},
		{
			"repository create main /srv/backup --attach --key-file /k -o name", `POST /repositories {"key_file":"/k","mode":"attach","name":"main","path":"/srv/backup"}`, "main\n",
			"\nIts key is /var/lib/cairn/keys/repo_01.key on the appliance. Keep a copy apart from the appliance:\nwithout the key nobody can read these backups.\n",
		},
		{"repository collect --wait --dry-run", `POST /repositories/repo_01/collect {"dry_run":true}`, "collect succeeded  freed 3 GiB\n", "collect  succeeded\n"},
		{
			"mover deploy m3 --connection lab --manager 192.0.2.1 --memory 512 --wait",
			`POST /movers {"connection":"conn_01","manager":"192.0.2.1","memory_bytes":536870912,"name":"m3"}`, "m3  deploy succeeded  VM cairn-m3\n", "deploy of m3  succeeded\n",
		},
		{
			"mover deploy m3 --connection lab --manager 192.0.2.1 --session nvme+tcp://h/nqn.b --sessions-file " + targets + " -o name",
			`POST /movers {"connection":"conn_01","manager":"192.0.2.1","name":"m3","sessions":["nvme+tcp://h/nqn.b","iscsi://u:p@h/iqn.a","iscsi://h/iqn.c"]}`, "run_10\n", "",
		},
		{"repository detach main -y", "DELETE /repositories/repo_01", "", "Forgot \"main\". Its files are still in /srv/backup.\n"},
		{"point verify rp_02 --wait", "POST /restore-points/rp_02/verify", "web01  verify succeeded  restore point rp_02  verified 12 GiB\n", "verify of web01  succeeded\n"},
		{
			"restore start rp_02 --name copy --start --wait", `POST /restores {"mode":"new","name":"copy","restore_point":"rp_02","start":true}`,
			"web01  restore succeeded  restore point rp_02  restored as copy  started yes\n", "restore of web01  succeeded\n",
		},
		{"task cancel task_03 -o name", "POST /tasks/task_03/cancel", "task_03\n", ""},
		{"token create ci --days 30", `POST /tokens {"expires_in_days":30,"name":"ci"}`, "cairn_new\n", "Token tok_2, valid until 2026-11-21 12:00:00 UTC. It is shown only now:\n"},
		{"token create ci --days 30 -o name", `POST /tokens {"expires_in_days":30,"name":"ci"}`, "cairn_new\n", "Token tok_2, valid until 2026-11-21 12:00:00 UTC. It is shown only now:\n"},
		{"token remove tok_2", "DELETE /tokens/tok_2", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got := a.run(t, strings.Fields(tt.args)...)
			requests := a.seen()
			if got.code != 0 || requests[len(requests)-1] != tt.request {
				t.Errorf("exit code %d, last request\n%s\nwant\n%s\n%s", got.code, requests[len(requests)-1], tt.request, got.stderr)
			}
			if diff := cmp.Diff(got.stdout+"|"+got.stderr, tt.stdout+"|"+tt.stderr); diff != "" {
				t.Errorf("-got +want:\n%s", diff)
			}
		})
	}
}

func TestWhichRepository(t *testing.T) {
	second := mainRepo
	second.ID, second.Name = "repo_02", "copy"
	tests := []struct {
		name string
		have []client.Repository
		args string
		code int
		word string
	}{
		{"none", nil, "", 5, "cairn repository create"},
		{"two and none is named", []client.Repository{mainRepo, second}, "", 2, "main, copy"},
		{"by name", []client.Repository{mainRepo, second}, "copy", 0, ""},
		{"by id", []client.Repository{mainRepo, second}, "repo_02", 0, ""},
		{"unknown", []client.Repository{mainRepo, second}, "third", 5, "cairn repository list"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAppliance(t)
			a.get("/repositories", client.RepositoryList{Items: tt.have})
			a.get("/repositories/repo_02", second)
			got := a.run(t, append([]string{"repository", "show"}, strings.Fields(tt.args)...)...)
			if got.code != tt.code || !strings.Contains(got.stderr, tt.word) {
				t.Errorf("exit code %d, want %d with %q: %s", got.code, tt.code, tt.word, got.stderr)
			}
		})
	}
}
