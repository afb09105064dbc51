package command

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

// TestEndings checks exit codes and what is said; a case's words must all be on standard error.
func TestEndings(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	a.HandleFunc("GET /runs/run_x", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 500, "internal", "", "", "") })
	a.HandleFunc("GET /tasks/task_x", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte("<html>nginx</html>"))
	})
	a.HandleFunc("GET /tasks/task_y", func(w http.ResponseWriter, _ *http.Request) {
		http.Redirect(w, &http.Request{}, "https://elsewhere.example/", http.StatusFound)
	})
	a.HandleFunc("GET /tasks/task_z", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("not JSON")) })
	a.HandleFunc("DELETE /connections/conn_01", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, 409, "conflict", "forget connection lab: a run uses it", "It would lose its clean-up.", "Wait for the run, or cancel it.")
	})
	a.HandleFunc("POST /connections", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(422)
		_, _ = w.Write([]byte(`{"type":"/problems/invalid","title":"Invalid","status":422,"instance":"/x","request_id":"r","retryable":false,"detail":"the request has mistakes","errors":[{"pointer":"#/name","detail":"is too long"}]}`))
	})
	a.HandleFunc("POST /connections/conn_01/check", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, client.ConnectionHealth{Product: "QEMU", Host: "h", VMs: 1, Problems: []string{"There is no nbd."}})
	})
	tests := []struct {
		args  string
		code  int
		words []string
	}{
		{"version", 0, nil},
		{"vm list -o xml", 2, []string{"unknown output format \"xml\"", "table, wide, json, yaml, name"}},
		{"vm list --colour", 2, []string{"unknown flag: --colour", "cairn vm list --help"}},
		{"vm", 0, nil},
		{"vms", 2, []string{"no command \"cairn vms\"", "Did you mean \"cairn vm\"?"}},
		{"vm shov web01", 2, []string{"Did you mean \"cairn vm show\"?"}},
		{"vm show", 2, []string{"VM is missing", "Usage: cairn vm show VM"}},
		{"vm show web01 db", 2, []string{"one argument too many: \"db\""}},
		{"vm show nobody", 5, []string{"there is no VM \"nobody\"", "cairn vm list"}},
		{"vm show vm_none", 5, []string{"there is no VM \"vm_none\""}},
		{"vm show db", 2, []string{"\"db\" is the name of 2 VMs", "vm_db1", "vm_db2", "conn_02"}},
		{"vm show far/db", 5, []string{"there is no such VM"}}, // found by the list; the page itself answers 404 here
		{"point show rp_99", 5, []string{"no such restore point"}},
		{"connection show nowhere", 5, []string{"there is no connection \"nowhere\""}},
		{"connection remove lab", 2, []string{"Forget the connection \"lab\"", "--yes"}},
		{"connection remove lab --yes", 6, []string{"a run uses it", "What it means: It would lose its clean-up.", "What to do:    Wait for the run, or cancel it."}},
		{"connection add x qemu:///system", 2, []string{"the request has mistakes", "name: is too long"}},
		{"connection add x esx://host", 2, []string{"--platform"}},
		{"connection check lab", 3, nil},
		{"run show run_x", 1, []string{"Internal Server Error", "request req-7"}},
		{"task show task_x", 1, []string{"502 Bad Gateway", "not an appliance"}},
		{"task show task_y", 1, []string{"302 Found"}},
		{"task show task_z", 1, []string{"not as an appliance"}},
		{"context show nope", 5, []string{"there is no context \"nope\""}},
		{"restore start rp_02", 2, []string{"--name NEW", "--in-place"}},
		{"restore start rp_02 --into vm1 --in-place", 2, []string{"exclude each other"}},
		{"restore start rp_02 --disks-alone --in-place", 2, []string{"exclude each other"}},
		{"restore start rp_02 --name a --in-place", 2, []string{"--name makes a new VM"}},
		{"restore start rp_02 --in-place", 2, []string{"Replace the disks of VM \"web01\" by those of 2026-11-20 10:00:00 UTC", "--yes"}},
		{"restore start rp_02 --name a --disk vda", 2, []string{"--disk \"vda\""}},
		{"restore start rp_02 --name a --disk vda=p:vmdk", 2, []string{"raw or qcow2"}},
		{"restore many --name-suffix x", 2, []string{"needs --filter"}},
		{"restore many --filter all", 2, []string{"--same-names", "--in-place"}},
		{"restore many --filter all --in-place --name-suffix x", 2, []string{"exclude each other"}},
		{"restore many --filter all --same-names --before yesterday", 2, []string{"is no date"}},
		{"restore many --filter all --same-names --network x", 2, []string{"FROM=TO"}},
		{"restore start rp_02 --name a --network x", 2, []string{"FROM=TO"}},
		{"restore start rp_02 --name a --network x=a --network x=b", 2, []string{"x is there twice"}},
		{"completion tcsh", 2, []string{"bash, zsh, fish"}},
		{"event watch --topic x", 2, []string{"there is no topic \"x\""}},
		{"vm list --watch -o json", 2, []string{"event watch"}},
		{"repository create a /b --key-file /c", 2, []string{"--attach"}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got := a.run(t, strings.Fields(tt.args)...)
			if got.code != tt.code {
				t.Errorf("exit code %d, want %d\n%s%s", got.code, tt.code, got.stdout, got.stderr)
			}
			for _, w := range tt.words {
				if !strings.Contains(got.stderr, w) {
					t.Errorf("standard error lacks %q:\n%s", w, got.stderr)
				}
			}
			if tt.code != 0 && tt.code != 3 && got.stdout != "" {
				t.Errorf("standard output of a failure: %q", got.stdout)
			}
		})
	}
}

func TestWhichAppliance(t *testing.T) {
	a := newAppliance(t)
	other := newAppliance(t)
	home := t.TempDir()
	tokenFile := filepath.Join(home, "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		env  env
		args []string
		code int
		word string
	}{
		{"environment", env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token}, nil, 0, ""},
		{"token file and CA file", env{"CAIRN_SERVER": a.URL, "CAIRN_CACERT": a.caFile, "CAIRN_TOKEN_FILE": tokenFile}, nil, 0, ""},
		{"fingerprint with colons and capitals", env{"CAIRN_SERVER": a.URL, "CAIRN_TOKEN": token}, []string{"--ca-fingerprint", colons(a.fingerprint)}, 0, ""},
		{"flag beats environment", env{"CAIRN_SERVER": "https://127.0.0.1:1", "CAIRN_CA_FINGERPRINT": other.fingerprint, "CAIRN_TOKEN": token}, []string{"--server", a.URL, "--ca-fingerprint", a.fingerprint}, 0, ""},
		{"fingerprint of another CA", env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": other.fingerprint, "CAIRN_TOKEN": token}, nil, 4, "no CA with the pinned fingerprint"},
		{"file of another CA", env{"CAIRN_SERVER": a.URL, "CAIRN_CACERT": other.caFile, "CAIRN_TOKEN": token}, nil, 4, "certificate is not trusted"},
		{"right fingerprint, other CA file", env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_CACERT": other.caFile, "CAIRN_TOKEN": token}, nil, 4, "certificate is not trusted"},
		{"nothing to trust by", env{"CAIRN_SERVER": a.URL, "CAIRN_TOKEN": token}, nil, 4, "certificate is not trusted"},
		{"another host name", env{"CAIRN_SERVER": strings.Replace(a.URL, "127.0.0.1", "localhost", 1), "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token}, nil, 4, "certificate is not trusted"},
		{"wrong token", env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": "x"}, nil, 4, "cairn login"},
		{"no token", env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint}, nil, 4, "no valid token"},
		{"plain http", env{"CAIRN_SERVER": "http://127.0.0.1:1", "CAIRN_TOKEN": token}, nil, 2, "https://HOST:PORT"},
		{"nobody there", env{"CAIRN_SERVER": "https://127.0.0.1:1", "CAIRN_TOKEN": token}, nil, 1, "does not answer"},
		{"not a fingerprint", env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": "abc"}, nil, 2, "64 hexadecimal digits"},
		{"no appliance", env{}, nil, 2, "no appliance was chosen"},
	}
	a.get("/vms", client.VMList{Items: []client.VM{}})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(a.seen())
			got := run(t, tt.env, "", append([]string{"vm", "list"}, tt.args...)...)
			if got.code != tt.code || !strings.Contains(got.stderr, tt.word) {
				t.Errorf("exit code %d, want %d with %q\n%s", got.code, tt.code, tt.word, got.stderr)
			}
			if strings.Contains(got.stderr+got.stdout, token) {
				t.Error("the token was printed")
			}
			if sent := len(a.seen()) - before; tt.code == 4 && !strings.Contains(tt.name, "token") && sent != 0 {
				t.Errorf("%d requests were sent to a server that is not trusted", sent)
			}
		})
	}
}

func colons(fingerprint string) string {
	hex := strings.ToUpper(strings.TrimPrefix(fingerprint, "sha256:"))
	var pairs []string
	for p := range slices.Chunk([]byte(hex), 2) {
		pairs = append(pairs, string(p))
	}
	return strings.Join(pairs, ":")
}

// A context's token must not go to another server that a flag or variable names.
func TestTokenStaysWithItsServer(t *testing.T) {
	a, other := newAppliance(t), newAppliance(t)
	var leaked bool
	other.ServeMux.HandleFunc("GET /vms", func(_ http.ResponseWriter, r *http.Request) { leaked = r.Header.Get("Authorization") != "" })
	home := t.TempDir()
	got := run(t, env{"HOME": home, "CAIRN_TOKEN": token}, "", "login", a.URL, "--ca-fingerprint", a.fingerprint)
	if got.code != 0 {
		t.Fatal(got.stderr)
	}
	got = run(t, env{"HOME": home, "CAIRN_SERVER": other.URL, "CAIRN_CA_FINGERPRINT": other.fingerprint}, "", "vm", "list")
	if got.code != 4 || leaked {
		t.Errorf("exit code %d, leaked %v: %s", got.code, leaked, got.stderr)
	}
}

func TestLoginAndContexts(t *testing.T) {
	a := newAppliance(t)
	a.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, 200)
		n, _ := r.Body.Read(body)
		if string(body[:n]) != `{"password":"correct horse","username":"anna"}` {
			refuse(w, 401, "denied", "user name or password is wrong", "", "Try again.")
			return
		}
		reply(w, 200, client.IssuedToken{Secret: token})
	})
	a.HandleFunc("POST /setup", func(w http.ResponseWriter, _ *http.Request) { reply(w, 201, client.IssuedToken{Secret: token}) })
	a.get("/vms", client.VMList{Items: []client.VM{}})
	home := t.TempDir()
	in := func(stdin string, args ...string) result { return run(t, env{"HOME": home}, stdin, args...) }
	steps := []struct {
		stdin, args string
		code        int
		stdout      string
		stderr      string
	}{
		{"", "context list", 0, "No contexts. Make one with \"cairn login https://HOST:PORT\".\n", ""},
		{"", "login " + a.URL + " --user anna --password-file -", 2, "", "Nobody is there to answer"},
		{"", "login " + a.URL + " --yes --user anna --password-file -", 2, "", "--ca-fingerprint"},
		{"correct horse\n", "login " + a.URL + " --ca-fingerprint " + a.fingerprint + " --password-file -", 2, "", "--user"},
		{"wrong\n", "login " + a.URL + " --ca-fingerprint " + a.fingerprint + " --user anna --password-file -", 4, "", "password is wrong"},
		{"", "login " + a.URL + " --ca-fingerprint " + a.fingerprint + " --user anna", 2, "", "--password-file"},
		{"nonsense\n", "login " + a.URL + " --ca-fingerprint " + a.fingerprint + " --token-file -", 4, "", "no valid token"},
		{"correct horse\n", "login " + a.URL + " --ca-fingerprint " + a.fingerprint + " --user anna --password-file -", 0, "", "context \"127.0.0.1\""},
		{"long password\n", "setup " + a.URL + " --cacert " + a.caFile + " --token abc --password-file - --name second", 0, "", "context \"second\""},
		{"", "context list -o name", 0, "127.0.0.1\nsecond\n", ""},
		{"", "vm list", 0, "No virtual machines.\n", ""},
		{"", "context use 127.0.0.1", 0, "", "Using"},
		{"", "vm list", 0, "No virtual machines.\n", ""},
		{"", "vm list --context second", 0, "No virtual machines.\n", ""},
		{"", "context remove second", 0, "", ""},
		{"", "context use second", 5, "", "no context \"second\""},
		{"", "context list", 0, "CURRENT   NAME        SERVER" + strings.Repeat(" ", len(a.URL)-3) + "USER   LOGGED IN\n*         127.0.0.1   " + a.URL + "   anna   yes\n", ""},
	}
	for _, s := range steps {
		got := in(s.stdin, strings.Fields(s.args)...)
		if got.code != s.code || !strings.Contains(got.stderr, s.stderr) {
			t.Fatalf("%s: exit code %d, want %d with %q\n%s", s.args, got.code, s.code, s.stderr, got.stderr)
		}
		if diff := cmp.Diff(got.stdout, s.stdout); diff != "" {
			t.Errorf("%s: -got +want:\n%s", s.args, diff)
		}
		if strings.Contains(got.stdout+got.stderr, token) {
			t.Errorf("%s: the token was printed", s.args)
		}
	}
	file := filepath.Join(home, ".config", "cairn", "config.yaml")
	for path, want := range map[string]os.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	for _, format := range []string{"table", "json", "yaml"} {
		if got := in("", "context", "show", "-o", format); strings.Contains(got.stdout, token) || !strings.Contains(got.stdout, a.fingerprint) {
			t.Errorf("context show -o %s:\n%s", format, got.stdout)
		}
	}
	if err := os.WriteFile(file, []byte("current: a\ncontext: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := in("", "vm", "list"); got.code != 2 || !strings.Contains(got.stderr, "field context not found") {
		t.Errorf("unknown key: exit code %d: %s", got.code, got.stderr)
	}
}

func TestRestoreRequest(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	var status int
	a.HandleFunc("POST /restores", func(w http.ResponseWriter, _ *http.Request) {
		if status == 200 {
			reply(w, 200, client.RestoreOutcome{Plan: client.RestorePlan{
				Mode: "new", ConnectionID: "conn_01", VMName: "copy", Networks: map[string]string{"network:default": ""},
				Disks: []client.PlannedDisk{{ID: "vda", SizeBytes: 10 << 30, Datastore: "fast", Format: "qcow2"}}, LeftOut: []client.LeftOutDisk{{ID: "vdd", Reason: "not chosen"}},
				Warnings: []string{"The network \"old\" is not there."},
			}})
			return
		}
		reply(w, 202, runningRun)
	})
	tests := []struct {
		args   string
		status int
		code   int
		body   string
	}{
		{"rp_02 --name copy", 202, 0, `{"mode":"new","name":"copy","restore_point":"rp_02"}`},
		{"rp_02 --disks-alone --name data --only-disk vdb", 202, 0, `{"mode":"disks","name":"data","only_disks":["vdb"],"restore_point":"rp_02"}`},
		{"rp_02 --into web01 --only-disk vdb", 202, 0, `{"mode":"into","only_disks":["vdb"],"restore_point":"rp_02","vm":"vm_web"}`},
		{"rp_02 --in-place --start --yes", 202, 0, `{"mode":"in-place","restore_point":"rp_02","start":true}`},
		{"rp_02 --in-place --only-disk vda,vdb --only-disk vdc --yes", 202, 0, `{"mode":"in-place","only_disks":["vda","vdb","vdc"],"restore_point":"rp_02"}`},
		{
			"rp_02 --name copy --pool slow --disk vda=fast:qcow2 --disk vdb=:raw --disk vdc=other --network network:default= --network a=bridge:br0 --connection lab --keep-macs --dry-run", 200, 3,
			`{"connection":"conn_01","datastore":"slow","disks":[{"datastore":"fast","format":"qcow2","id":"vda"},{"format":"raw","id":"vdb"},{"datastore":"other","id":"vdc"}],"dry_run":true,"keep_macs":true,"mode":"new","name":"copy","networks":{"a":"bridge:br0","network:default":""},"restore_point":"rp_02"}`,
		},
	}
	for _, tt := range tests {
		status = tt.status
		got := a.run(t, append([]string{"restore", "start"}, strings.Fields(tt.args)...)...)
		if got.code != tt.code {
			t.Errorf("%s: exit code %d, want %d: %s", tt.args, got.code, tt.code, got.stderr)
		}
		requests := a.seen()
		if diff := cmp.Diff(requests[len(requests)-1], "POST /restores "+tt.body); diff != "" {
			t.Errorf("%s: -got +want:\n%s", tt.args, diff)
		}
		if tt.status == 200 {
			compare(t, filepath.Join("testdata", "restore_plan.txt"), got.stdout)
		}
	}
	if len(a.keys) != 6 || a.keys[0] == a.keys[1] || len(a.keys[0]) < 20 {
		t.Errorf("idempotency keys: %v", a.keys)
	}
}

func TestRestoreMany(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	var status int
	plan := client.RestoresPlan{Warnings: []string{"The datastore fast has 1 bytes free, and about 2 are needed for all VMs together."}, VMs: []client.RestoresPlanVM{
		{VMID: "vm_web", VMName: "web01", ConnectionID: "conn_01", Name: "web01-x", RestorePointID: "rp_02", RestorePointAt: noon.Add(-26 * time.Hour), Disks: 2, SizeBytes: 12 << 30, Warnings: []string{"1 newer restore points are damaged."}},
		{VMID: "vm_db", VMName: "db02", ConnectionID: "conn_01", Name: "db02-x", Error: client.Failure{Type: "/problems/not-found", Detail: "restore VM db02: it has no restore point"}},
	}}
	a.HandleFunc("POST /restores/vms", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if status == 200 || strings.Contains(string(body), "dry_run") {
			reply(w, 200, client.RestoresOutcome{Plan: plan})
			return
		}
		reply(w, 202, runningRun)
	})
	tests := []struct {
		args   string
		status int
		code   int
		body   string
	}{
		{"--filter all --same-names", 202, 0, `{"filter":"all","mode":"new"}`},
		{
			"--filter tag=a --before 2026-11-20T18:00 -r main --name-prefix a- --name-suffix -b --connection lab --pool fast --network old=new --keep-macs --start --mover m1 --transport san --fallback --leave-out", 202, 0,
			`{"before":"2026-11-20T18:00:00Z","connection":"conn_01","datastore":"fast","fallback":true,"filter":"tag=a","keep_macs":true,"leave_out":true,"mode":"new","mover":"m1","name_prefix":"a-","name_suffix":"-b","networks":{"old":"new"},"repository":"repo_01","start":true,"transport":"san"}`,
		},
		{"--filter all --in-place --yes", 202, 0, `{"filter":"all","mode":"in-place"}`},
		{"--filter all --name-suffix -x --dry-run", 200, 3, `{"dry_run":true,"filter":"all","mode":"new","name_suffix":"-x"}`},
	}
	for _, tt := range tests {
		status = tt.status
		got := a.run(t, append([]string{"restore", "many"}, strings.Fields(tt.args)...)...)
		if got.code != tt.code {
			t.Errorf("%s: exit code %d, want %d: %s", tt.args, got.code, tt.code, got.stderr)
		}
		requests := a.seen()
		if diff := cmp.Diff(requests[len(requests)-1], "POST /restores/vms "+tt.body); diff != "" {
			t.Errorf("%s: -got +want:\n%s", tt.args, diff)
		}
		if tt.status == 200 {
			compare(t, filepath.Join("testdata", "restore_many_plan.txt"), got.stdout)
			if !strings.Contains(got.stderr, "1 of 2 VMs can be restored. Nothing was made.") || strings.Count(got.stderr, "Warning: ") != 2 {
				t.Errorf("said %q", got.stderr)
			}
		}
	}
	if got := a.run(t, "restore", "many", "--filter", "all", "--in-place"); got.code != 2 || !strings.Contains(got.stderr, "Replace the disks of 1 VMs") {
		t.Errorf("exit code %d, %q", got.code, got.stderr)
	}
}

func TestPrune(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	a.HandleFunc("DELETE /restore-points/{id}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	deleted := func() int {
		return len(slices.DeleteFunc(a.seen(), func(r string) bool { return !strings.HasPrefix(r, "DELETE") }))
	}
	for _, tt := range []struct {
		args          string
		code, deletes int
	}{
		{"point prune rp_01 rp_02 --dry-run", 0, 0},
		{"point prune rp_01 rp_02", 2, 0},
		{"point prune rp_01 rp_77 --yes", 5, 0},
		{"point prune rp_01 rp_02 --yes", 0, 2},
	} {
		if got := a.run(t, strings.Fields(tt.args)...); got.code != tt.code || deleted() != tt.deletes {
			t.Errorf("%s: exit code %d, %d deletions; want %d, %d\n%s", tt.args, got.code, deleted(), tt.code, tt.deletes, got.stderr)
		}
	}
}

func heldPoint(ends time.Time) client.RestorePoint {
	return client.RestorePoint{ID: "rp_held", VMName: "web01", Hold: client.Hold{Reason: "lawsuit", CreatedAt: noon, EndsAt: ends}}
}

// What is held is not removed, nor anything named beside it, and a dry run says so.
func TestPruneOfWhatIsHeld(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	a.get("/restore-points/rp_held", heldPoint(time.Time{}))
	for _, args := range []string{"point prune rp_01 rp_held --dry-run", "point prune rp_01 rp_held --yes"} {
		got := a.run(t, strings.Fields(args)...)
		if got.code != 6 || !strings.Contains(got.stderr, "it is held: lawsuit") {
			t.Errorf("%s: exit code %d, %q", args, got.code, got.stderr)
		}
	}
	if slices.ContainsFunc(a.seen(), func(r string) bool { return strings.HasPrefix(r, "DELETE") }) {
		t.Errorf("something was removed: %q", a.seen())
	}
}

// A hold that lasts longer is not replaced without a question.
func TestHoldThatWouldEndSooner(t *testing.T) {
	tests := map[string]struct {
		ends time.Time
		args string
		code int
	}{
		"for ever, by one that ends":      {time.Time{}, "--until 2027-01-31", 2},
		"for ever, and yes":               {time.Time{}, "--until 2027-01-31 --yes", 0},
		"for ever, by another":            {time.Time{}, "", 0},
		"until later, by one that ends":   {noon.AddDate(2, 0, 0), "--until 2027-01-31", 2},
		"until sooner, by one that ends":  {noon.AddDate(0, 0, 1), "--until 2027-01-31", 0},
		"until sooner, by one for always": {noon.AddDate(0, 0, 1), "", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := newAppliance(t)
			a.get("/restore-points/rp_held", heldPoint(tt.ends))
			a.HandleFunc("POST /restore-points/rp_held/hold", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, heldPoint(time.Time{})) })
			got := a.run(t, strings.Fields("point hold rp_held --reason upgrade "+tt.args)...)
			if got.code != tt.code || (tt.code != 0) != strings.Contains(got.stderr, "lawsuit") {
				t.Errorf("exit code %d, want %d: %q", got.code, tt.code, got.stderr)
			}
		})
	}
}

func TestCompletion(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	a.get("/runs", client.RunList{Items: []client.Run{failedRun}})
	a.get("/tasks", client.TaskList{Items: failedRun.Tasks})
	const noFiles, keepOrder = ":4", ":36"
	tests := []struct{ args, want string }{
		{"vm show we", "web01\ton, 12 GiB\n" + keepOrder},
		{"backup start web01 ", "db\toff, 40 GiB\ndb\ton, 40 GiB\nweb01\ton, 12 GiB\n" + keepOrder},
		{"backup start web01 --repository ", "main\t/srv/backup\n" + keepOrder},
		{"connection check ", "far\tqemu+ssh://root@far/system\nlab\tqemu:///system\n" + keepOrder},
		{"point show ", "rp_02\tweb01 2026-11-20 10:00:00 UTC\nrp_01\tweb01 2026-11-19 10:00:00 UTC\n" + keepOrder},
		{"run cancel ", "run_02\tbackup of web01 failed\n" + keepOrder},
		{"task show ", "task_02\tbackup of web01 failed\n" + keepOrder},
		{"vm list -o ", "table\nwide\njson\nyaml\nname\n" + noFiles},
		{"completion ", "bash\nzsh\nfish\n" + noFiles},
		{"rescue export rp_1 --to ", "raw\nqcow2\n" + noFiles},
	}
	for _, tt := range tests {
		got := a.run(t, append([]string{"__complete"}, strings.Split(tt.args, " ")...)...)
		if diff := cmp.Diff(strings.TrimSpace(got.stdout), tt.want); diff != "" {
			t.Errorf("%s: -got +want:\n%s", tt.args, diff)
		}
	}
	silent := run(t, env{}, "", "__complete", "vm", "show", "")
	if silent.code != 0 || strings.TrimSpace(silent.stdout) != noFiles {
		t.Errorf("without an appliance: exit code %d, %q", silent.code, silent.stdout)
	}
	for shell, word := range map[string]string{"bash": "__start_cairn", "zsh": "#compdef cairn", "fish": "complete -c cairn"} {
		if got := run(t, env{}, "", "completion", shell); got.code != 0 || !strings.Contains(got.stdout, word) {
			t.Errorf("%s: exit code %d, %d bytes", shell, got.code, len(got.stdout))
		}
	}
}
