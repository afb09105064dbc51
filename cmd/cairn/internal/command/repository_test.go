package command

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

const gib = 1 << 30

// largeRepo is on a set that is not well.
var largeRepo = client.Repository{
	ID: "repo_02", Name: "large", Path: "/mnt/d1/cairn", Status: client.StatusProblem, StoreID: "st_8", KeyFile: "credential:cairn-large",
	CreatedAt: noon.Add(-100 * 24 * time.Hour), CheckedAt: noon.Add(-time.Minute),
	Usage:      client.Usage{RestorePoints: 300, Packs: 9000, LogicalBytes: 40 << 40, StoredBytes: 3 << 40, FreeBytes: 5 << 40},
	Redundancy: client.Redundancy{Data: 2, Parity: 1, Groups: 2, CanLose: 0, Objects: 9400, ObjectsBelow: 37},
	Members: []client.Member{
		{ID: "3f9a01c2", Path: "/mnt/d1/cairn", Domain: "a", State: client.MemberOnline, FreeBytes: 900 * gib, TotalBytes: 4 << 40},
		{ID: "77b0e1d4", Path: "/mnt/d2/cairn", Domain: "77b0e1d4", State: client.MemberDegraded, FreeBytes: 880 * gib, Lacking: 37, Errors: 2, Message: "it had errors: input/output error"},
		{ID: "90c3aa10", Domain: "c", State: client.MemberMissing, Message: "it is empty or no member: is the disk mounted?"},
		{ID: "a1b2c3d4", Group: 1, Path: "/mnt/d4/cairn", Domain: "a", State: client.MemberOnline, FreeBytes: 2 << 40, TotalBytes: 4 << 40},
	},
	Verification: client.Verification{
		EveryDays: 30, BytesPerSecond: 50 << 20, CycleStartedAt: noon.Add(-4 * time.Hour), DoneBytes: 700 * gib, TotalBytes: 3 << 40,
		LastCompletedAt: noon.Add(-29 * 24 * time.Hour), DamagedPacks: 2, DamagedRestorePoints: 1,
	},
	Error: client.Failure{Type: "/problems/transient", Detail: "member 90c3aa10 is missing", Meaning: "The set has lost redundancy.", Advice: "Mount the disk, or replace it."},
}

var (
	damageOfLarge = client.RepositoryDamage{
		Packs: []client.DamagedPack{
			{Pack: "packs/0e/0e05.pack", Objects: 900, Lost: 3, Cause: "frame 7: the seal is broken"},
			{Pack: "packs/1f/1fee.pack", Missing: true, Cause: "the file is gone or has another size"},
		},
		Touched: []client.TouchedPoint{
			{RestorePointID: "rp_01", VMID: "vm_web", VMName: "web01", Series: "kvm/conn_01/1111", Time: noon.Add(-50 * time.Hour), Disks: []client.TouchedImage{{Disk: "vda", LostBytes: 384 << 10, Ranges: 2}, {Disk: "vdb", LostBytes: 128 << 10, Ranges: 1}}, Documents: []string{"domain.xml"}},
			{RestorePointID: "rp_02", Series: "kvm/conn_01/2222", Time: noon.Add(-26 * time.Hour), Disks: []client.TouchedImage{{Disk: "vda", LostBytes: 4096, Ranges: 1}}},
		},
	}
	spaceOfLarge = client.RepositorySpace{
		StoredBytes: 100 * gib, UnreferencedBytes: 12 * gib,
		VMs: []client.VMSpace{
			{Series: "kvm/conn_01/1111", VMID: "vm_web", VMName: "web01", RestorePoints: 2, Space: client.Space{LogicalBytes: 400 * gib, UniqueBytes: 50 * gib, SharedBytes: 20 * gib, FairShareBytes: 60 * gib}},
			{Series: "kvm/conn_01/2222", RestorePoints: 1, Space: client.Space{LogicalBytes: 40 * gib, UniqueBytes: 18 * gib, SharedBytes: 20 * gib, FairShareBytes: 28 * gib}},
		},
		RestorePoints: []client.PointSpace{
			{RestorePointID: "rp_01", Series: "kvm/conn_01/1111", VMName: "web01", Time: noon.Add(-50 * time.Hour), Space: client.Space{LogicalBytes: 200 * gib, UniqueBytes: 1 << 20, SharedBytes: 60 * gib, FairShareBytes: 30 * gib}},
			{RestorePointID: "rp_02", Series: "kvm/conn_01/1111", VMName: "web01", Time: noon.Add(-26 * time.Hour), Space: client.Space{LogicalBytes: 200 * gib, UniqueBytes: 3 * gib, SharedBytes: 60 * gib, FairShareBytes: 30 * gib}},
		},
	}
	fileKey  = client.Key{ID: "key_1", Kind: client.KeyFile, Key: "b51cd4d3a9a00a51", CreatedAt: noon.Add(-50 * time.Hour), InUse: true}
	ageKey   = client.Key{ID: "key_2", Kind: client.KeyAge, Key: "age1pq1" + strings.Repeat("k", 1900), Label: "escrow", CreatedAt: noon.Add(-49 * time.Hour)}
	paperKey = client.Key{ID: "key_3", Kind: client.KeyPaper, Key: "77aa88bb99cc00dd", Label: "safe", CreatedAt: noon}
	badKey   = client.Key{ID: "key_4", Kind: client.KeyFile, Key: "0000000000000000", Problem: "not signed by this repository's key: altered or put there by somebody else"}
)

func repositories(t *testing.T) *appliance {
	t.Helper()
	a := newAppliance(t)
	a.get("/repositories", client.RepositoryList{Items: []client.Repository{mainRepo, largeRepo}})
	a.get("/repositories/repo_01", mainRepo)
	a.get("/repositories/repo_02", largeRepo)
	a.get("/repositories/repo_01/damage", client.RepositoryDamage{})
	a.get("/repositories/repo_02/damage", damageOfLarge)
	a.HandleFunc("GET /repositories/repo_02/space", func(w http.ResponseWriter, r *http.Request) {
		x := spaceOfLarge
		if r.URL.Query().Get("without") != "" {
			x.WouldFreeBytes, x.UnknownObjects = ref(int64(9*gib)), 2
		}
		reply(w, 200, x)
	})
	a.get("/repositories/repo_01/keys", client.KeyList{Items: []client.Key{fileKey}})
	a.get("/repositories/repo_02/keys", client.KeyList{Items: []client.Key{fileKey, ageKey, paperKey, badKey}})
	return a
}

func TestRepositoryPages(t *testing.T) {
	a := repositories(t)
	pages := []struct {
		args string
		code int
		said string
	}{
		{"repository list -o wide", 0, ""},
		{"repository show large", 0, ""},
		{"repository show main", 0, ""},
		{"repository damage large", 1, ""},
		{"repository damage main", 0, ""},
		{"repository space large", 0, ""},
		{"repository space large --points --without rp_01,rp_02", 0, ""},
		{"repository space large -o json", 0, ""},
		{"key list main", 0, "Only one key opens it."},
		{"key list large", 0, "do not trust key key_4: not signed"},
		{"key list large -o wide", 0, "do not trust key key_4"},
	}
	for _, page := range pages {
		t.Run(page.args, func(t *testing.T) {
			got := a.run(t, strings.Fields(page.args)...)
			if got.code != page.code || (page.said == "") != (got.stderr == "") || !strings.Contains(got.stderr, page.said) {
				t.Fatalf("exit code %d, want %d with %q: %q", got.code, page.code, page.said, got.stderr)
			}
			compare(t, filepath.Join("testdata", "pages", strings.ReplaceAll(page.args, " ", "_")+".txt"), got.stdout)
		})
	}
	requests := strings.Join(a.seen(), "\n")
	if !strings.Contains(requests, "GET /repositories/repo_02/space?without=rp_01,rp_02") && !strings.Contains(requests, "without=rp_01%2Crp_02") {
		t.Errorf("what would be freed was not asked for:\n%s", requests)
	}
}

func task(kind client.RunKind, state client.State, r client.TaskResult) client.Run {
	return client.Run{ID: "run_7", Kind: kind, State: state, Tasks: []client.Task{{ID: "task_7", Kind: kind, State: state, Result: r}}}
}

// TestRepositoryVerbs checks what is sent and what is said for what changes a repository or begins a run about it.
func TestRepositoryVerbs(t *testing.T) {
	a := repositories(t)
	dir := t.TempDir()
	typed := filepath.Join(dir, "typed.txt")
	if err := os.WriteFile(typed, []byte("1: AAAA\n2: BBBB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := task(client.RunVerify, client.StateFailed, client.TaskResult{BytesVerified: 3 * gib, PacksVerified: 12, CycleComplete: true, PointsProven: 4, PointsDamaged: 1, PacksDamaged: 2})
	damaged.Tasks[0].Error = client.Failure{Detail: "verify large: 2 packs are damaged", Meaning: "web01 (1) is not whole.", Advice: "Heal it."}
	scrubbed := task(client.RunScrub, client.StateWarning, client.TaskResult{ObjectsChecked: 9400, ObjectsDamaged: 1, ShardsRepaired: 36})
	scrubbed.Tasks[0].Progress = client.Progress{BytesTotal: gib, BytesScanned: 2 * gib, BytesRead: 2 * gib}
	type answer struct {
		status int
		v      any
	}
	answers := map[string]answer{
		"POST /repositories":                                  {201, largeRepo},
		"PATCH /repositories/repo_02":                         {200, largeRepo},
		"POST /repositories/repo_01/verify":                   {202, task(client.RunVerify, client.StateSucceeded, client.TaskResult{BytesVerified: gib, PacksVerified: 1, BytesLeft: 2 * gib})},
		"POST /repositories/repo_02/verify":                   {202, damaged},
		"POST /repositories/repo_02/scrub":                    {202, scrubbed},
		"POST /repositories/repo_01/heal":                     {202, task(client.RunHeal, client.StateSucceeded, client.TaskResult{})},
		"POST /repositories/repo_02/heal":                     {202, task(client.RunHeal, client.StateSucceeded, client.TaskResult{ObjectsMoved: 2, ObjectsHealed: 1, BytesHealed: 4096, RecordsRestored: 1, PacksQuarantined: 2, PacksDamaged: 2})},
		"POST /repositories/repo_02/members/90c3aa10/rebuild": {202, task(client.RunRebuild, client.StateSucceeded, client.TaskResult{MemberID: "ffff0000", ShardsRepaired: 9400})},
		"POST /repositories/repo_02/members":                  {200, largeRepo},
		"POST /repositories/repo_02/trust":                    {200, largeRepo},
		"POST /repositories/repo_02/collect":                  {202, task(client.RunCollect, client.StateSucceeded, client.TaskResult{BytesFreed: 3 * gib, PacksCompacted: 1, BytesCompacted: gib, BytesRewritten: gib / 2, BytesLive: 90 * gib, BytesDead: 5 * gib, NoRoom: true})},
		"POST /repositories/repo_02/keys":                     {201, client.AddedKey{Key: ageKey}},
		"POST /repositories/repo_01/keys":                     {201, client.AddedKey{Key: fileKey}},
		"DELETE /repositories/repo_02/keys/key_2":             {204, nil},
		"DELETE /repositories/repo_02/keys/key_3":             {204, nil},
		"POST /repositories/repo_01/keys/rotate":              {200, paperKey},
		"POST /repositories/repo_02/keys/drill":               {200, client.DrillReport{DrilledAt: noon, RepositoryID: "repo_02", StoreID: "st_8", Name: "large", PublicKey: "abcd", Key: paperKey, RestorePointID: "rp_02", VMName: "web01", PublishedAt: noon.Add(-time.Hour), Pack: "packs/0e/0e05.pack", ReadBytes: 1 << 20}},
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
	const keep = " Keep a copy apart from the appliance:\nwithout the key nobody can read these backups.\n"
	drilled := "Result:         ok\nKey:            paper 77aa88bb99cc00dd\nLabel:          safe\nRepository:     large\nIdentity:       st_8\nPublic key:     abcd\nRestore point:  rp_02\nVM:             web01\n" +
		"Published:      2026-11-21 11:00:00 UTC, 60m ago\nData read:      1 MiB of packs/0e/0e05.pack\n"
	tests := []struct {
		args, request  string
		code           int
		stdout, stderr string
	}{
		{
			"repository create large /d1 /d2 -o name", `POST /repositories {"mode":"create","name":"large","set":{"data":1,"members":[{"path":"/d1"},{"path":"/d2"}],"parity":1}}`, 0, "large\n",
			"\nIts key is credential:cairn-large of the appliance." + keep,
		},
		{
			"repository create large /d1 /d2 /d3 --parity 1 --domain a,b,c --force --key-source env:K --domain-of main -o name",
			`POST /repositories {"domain_of":"repo_01","key_source":"env:K","mode":"create","name":"large","set":{"data":2,"force":true,"members":[{"domain":"a","path":"/d1"},{"domain":"b","path":"/d2"},{"domain":"c","path":"/d3"}],"parity":1}}`, 0, "large\n",
			"\nIts key is credential:cairn-large of the appliance." + keep,
		},
		{
			"repository create large /d2 /d1 --attach --key-file /k -o name", `POST /repositories {"key_file":"/k","mode":"attach","name":"large","set":{"members":[{"path":"/d2"},{"path":"/d1"}]}}`, 0, "large\n",
			"\nIts key is credential:cairn-large of the appliance." + keep,
		},
		{"repository set large --verify-every 2w -o name", `PATCH /repositories/repo_02 {"verification":{"bytes_per_second":52428800,"every_days":14}}`, 0, "large\n", ""},
		{"repository set large --verify-every never --verify-rate 0 -o name", `PATCH /repositories/repo_02 {"verification":{"bytes_per_second":0,"every_days":0}}`, 0, "large\n", ""},
		{"repository set large --verify-rate 80M -o name", `PATCH /repositories/repo_02 {"verification":{"bytes_per_second":83886080,"every_days":30}}`, 0, "large\n", ""},
		{"repository set large --compression high -o name", `PATCH /repositories/repo_02 {"compression":"high"}`, 0, "large\n", ""},
		{"repository verify main --wait --budget 1G --rate 50M", `POST /repositories/repo_01/verify {"budget_bytes":1073741824,"bytes_per_second":52428800}`, 0, "verify succeeded  verified 1 GiB  read 1 pack  cycle 2 GiB left\n", "verify  succeeded\n"},
		{
			"repository verify large --wait", `POST /repositories/repo_02/verify {}`, 1,
			"verify failed  verified 3 GiB  read 12 packs  cycle complete  proven 4 restore points  damaged 2 packs  not whole 1 restore point\n",
			"verify  failed\nError: verify large: 2 packs are damaged\n  What it means: web01 (1) is not whole.\n  What to do:    Heal it.\nWhat it touches: \"cairn repository damage large\".\n",
		},
		{
			"repository create large /d2 --attach --trust /d2 --trust 3f9a01c2 --key-source env:K --yes -o name",
			`POST /repositories {"key_source":"env:K","mode":"attach","name":"large","set":{"accept_loss":true,"members":[{"path":"/d2"}],"trust":["/d2","3f9a01c2"]}}`,
			0, "large\n", "\nIts key is credential:cairn-large of the appliance." + keep,
		},
		{
			"repository heal large --from main --dry-run --wait", `POST /repositories/repo_02/heal {"dry_run":true,"from":["repo_01"]}`, 0,
			"heal succeeded  moved 2 objects  fetched 1 object of 4 KiB  put back 1 record  put aside 2 damaged packs\n", "heal  succeeded\n",
		},
		{"repository heal main --wait", `POST /repositories/repo_01/heal {}`, 0, "heal succeeded  nothing to heal\n", "heal  succeeded\n"},
		{"repository scrub large --rate 1G --wait", `POST /repositories/repo_02/scrub {"bytes_per_second":1073741824}`, 3, "scrub warning  read 2 GiB  looked at 9400 objects  not made whole 1 object  wrote anew 36 shards\n", "scrub  warning  100%  1 GiB of 1 GiB\n"},
		{"repository rebuild large 90c3aa10 --path /mnt/d7 --yes --wait", `POST /repositories/repo_02/members/90c3aa10/rebuild {"path":"/mnt/d7"}`, 0, "rebuild succeeded  filled member ffff0000  wrote anew 9400 shards\n", "rebuild  succeeded\n"},
		{"repository grow large /d7 /d8 /d9 --domain a,b,c --yes -o name", `POST /repositories/repo_02/members {"members":[{"domain":"a","path":"/d7"},{"domain":"b","path":"/d8"},{"domain":"c","path":"/d9"}]}`, 0, "large\n", ""},
		{"repository trust large 90c3aa10 --yes -o name", `POST /repositories/repo_02/trust {"accept_loss":true,"members":["90c3aa10"]}`, 0, "large\n", "It can be used. Verify it now, to learn which backups are not whole:\n  cairn repository verify large --wait\n"},
		{
			"repository collect large --compact-below 0 --wait", `POST /repositories/repo_02/collect {"compact_below":0}`, 0,
			"collect succeeded  freed 3 GiB  compacted 1 pack of 1 GiB to 512 MiB  needed 90 GiB  not needed 5 GiB  no room to rewrite all that should be\n", "collect  succeeded\n",
		},
		{"key add large --age age1xyz --label escrow -o name", `POST /repositories/repo_02/keys {"kind":"age","label":"escrow","recipient":"age1xyz"}`, 0, "key_2\n", "\nProve that you have its identity: \"cairn key drill large --identity FILE\".\n"},
		{
			"key add main --key-file /root/k -o name", `POST /repositories/repo_01/keys {"key_file":"/root/k","kind":"key-file"}`, 0, "key_1\n",
			"\nIt is in /root/k on the appliance. Bring it to where you keep it, apart from the appliance.\n",
		},
		{
			"key add main --by-paper " + typed + " -o name", `POST /repositories/repo_01/keys {"by":{"paper_key":"1: AAAA\n2: BBBB"},"kind":"key-file"}`, 0, "key_1\n",
			"\nIts key is /var/lib/cairn/keys/repo_01.key on the appliance." + keep,
		},
		{"key remove large escrow --yes", `DELETE /repositories/repo_02/keys/key_2`, 0, "", "The key age age1pq1kkkkkkkkkkkkkkkkk…kkkkkkkkkkkk escrow does not open \"large\" any more.\n"},
		{"key remove large 77aa88bb99cc00dd --yes", `DELETE /repositories/repo_02/keys/key_3`, 0, "", "The key paper 77aa88bb99cc00dd safe does not open \"large\" any more.\n"},
		{"key rotate main --yes -o name", `POST /repositories/repo_01/keys/rotate`, 0, "key_3\n", "\nIts key is /var/lib/cairn/keys/repo_01.key on the appliance." + keep},
		{"key drill large --paper " + typed, `POST /repositories/repo_02/keys/drill {"paper_key":"1: AAAA\n2: BBBB"}`, 0, drilled, ""},
		{"key drill large --key-source env:K -o name", `POST /repositories/repo_02/keys/drill {"key_source":"env:K"}`, 0, "large\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got := a.run(t, strings.Fields(tt.args)...)
			requests := a.seen()
			if got.code != tt.code || requests[len(requests)-1] != tt.request {
				t.Errorf("exit code %d, want %d, last request\n%s\nwant\n%s\n%s", got.code, tt.code, requests[len(requests)-1], tt.request, got.stderr)
			}
			if diff := cmp.Diff(got.stdout+"|"+got.stderr, tt.stdout+"|"+tt.stderr); diff != "" {
				t.Errorf("-got +want:\n%s", diff)
			}
		})
	}
}

func TestRepositoryRefusals(t *testing.T) {
	a := repositories(t)
	tests := []struct {
		args string
		code int
		word string
	}{
		{"repository create a /1 /2 /3", 2, "--parity"},
		{"repository create a /1 /2 /3 --data 2 --parity 2", 2, "--data 2 --parity 2"},
		{"repository create a /1 /2 /3 --parity 3", 2, "--data 0 --parity 3"},
		{"repository create a /1 --parity 1", 2, "one directory is no set"},
		{"repository create a /1 /2 --domain x", 2, "2 directories and 1 domain"},
		{"repository create a /1 /2 --attach --data 1", 2, "is written in it"},
		{"repository create a /1 --attach --domain-of main", 2, "--domain-of"},
		{"repository create a /1 --attach --key-file /k --key-source env:K", 2, "do not go together"},
		{"repository create a /1 /2 --trust m", 2, "--attach"},
		{"repository create a /1 --attach --trust m", 2, "lost"},
		{"repository create a", 2, "PATH is missing"},
		{"repository set large", 2, "--verify-every"},
		{"repository set large --verify-every soon", 2, "30d"},
		{"repository set large --verify-every 400d", 2, "365"},
		{"repository set large --verify-rate fast", 2, "no size"},
		{"repository heal large --from large", 2, "cannot heal itself"},
		{"repository heal large --from nowhere", 5, "nowhere"},
		{"repository collect large --compact-below 1.5", 2, "no share"},
		{"repository rebuild large", 2, "MEMBER is missing"},
		{"repository rebuild large ffff", 5, "there is no member \"ffff\""},
		{"repository rebuild main 3f9a01c2", 2, "not on a set"},
		{"repository rebuild large 3f9a01c2 --path /x", 2, "--yes"},
		{"repository grow large /x", 2, "--yes"},
		{"repository trust large 90c3aa10", 2, "lost"},
		{"repository trust large", 2, "MEMBER"},
		{"repository verify", 2, "main, large"},
		{"key add large", 2, "--age"},
		{"key add large --age x --key-file /y", 2, "one key"},
		{"key add large --age x --by-key /k --by-paper /p", 5, ""},
		{"key add", 2, "REPOSITORY is missing"},
		{"key remove large nothing", 5, "no key \"nothing\""},
		{"key remove large escrow", 2, "--yes"},
		{"key rotate main", 2, "--yes"},
		{"key drill large", 2, "--paper"},
		{"key drill large --paper /none --key-source env:K", 5, "/none"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got := a.run(t, strings.Fields(tt.args)...)
			if got.code != tt.code || !strings.Contains(got.stderr, tt.word) || got.stdout != "" {
				t.Errorf("exit code %d, want %d with %q\n%s%s", got.code, tt.code, tt.word, got.stdout, got.stderr)
			}
		})
	}
	for _, r := range a.seen() {
		if !strings.HasPrefix(r, "GET ") {
			t.Errorf("something was changed: %s", r)
		}
	}
}

// The page of a paper key goes to standard output or into a file of its owner's, and nowhere else.
func TestKeyPaper(t *testing.T) {
	a := repositories(t)
	const page = "CAIRN PAPER KEY\n\n    1:  AAAA BBBB CCCC DDDD\n"
	asked := 0
	a.HandleFunc("POST /repositories/repo_01/keys", func(w http.ResponseWriter, _ *http.Request) {
		asked++
		reply(w, 201, client.AddedKey{Key: paperKey, Paper: page})
	})
	got := a.run(t, "key", "paper", "main", "--label", "safe", "--verbose")
	if got.code != 0 || got.stdout != page || strings.Contains(got.stderr, "AAAA") || !strings.Contains(got.stderr, "only this once") {
		t.Errorf("exit code %d, %q, %q", got.code, got.stdout, got.stderr)
	}
	requests := a.seen()
	if diff := cmp.Diff(requests[len(requests)-1], `POST /repositories/repo_01/keys {"kind":"paper","label":"safe"}`); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
	var added client.AddedKey
	got = a.run(t, "key", "paper", "main", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &added); err != nil || added.Paper != page {
		t.Errorf("JSON: %v, %q", err, got.stdout)
	}
	out := filepath.Join(t.TempDir(), "page.txt")
	got = a.run(t, "key", "paper", "main", "--out", out)
	if strings.Contains(got.stdout+got.stderr, "AAAA") || !strings.Contains(got.stderr, "remove "+out) {
		t.Errorf("with a file: %q, %q", got.stdout, got.stderr)
	}
	info, err := os.Stat(out)
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Fatalf("the file: %v, %v", info, err)
	}
	if data, err := os.ReadFile(out); err != nil || string(data) != page {
		t.Errorf("the file holds %q, %v", data, err)
	}
	before := asked
	if got = a.run(t, "key", "paper", "main", "--out", out); got.code != 6 || asked != before {
		t.Errorf("a file that is there: exit code %d, %d keys were made", got.code, asked-before)
	}
}

func TestRepositoryCompletion(t *testing.T) {
	a := repositories(t)
	const noFiles, keepOrder = ":4", ":36"
	tests := []struct{ args, want string }{
		{"repository verify ", "main\t/srv/backup\nlarge\t/mnt/d1/cairn and 3 more\n" + keepOrder},
		{"repository heal main --from ", "main\t/srv/backup\nlarge\t/mnt/d1/cairn and 3 more\n" + keepOrder},
		{"repository rebuild large ", "3f9a01c2\tonline /mnt/d1/cairn\n77b0e1d4\tdegraded /mnt/d2/cairn\n90c3aa10\tmissing\na1b2c3d4\tonline /mnt/d4/cairn\n" + keepOrder},
		{"repository rebuild large 3f9a01c2 ", noFiles},
		{"key remove main ", "b51cd4d3a9a00a51\tkey-file\n" + keepOrder},
		{"key drill ", "main\t/srv/backup\nlarge\t/mnt/d1/cairn and 3 more\n" + keepOrder},
	}
	for _, tt := range tests {
		got := a.run(t, append([]string{"__complete"}, strings.Split(tt.args, " ")...)...)
		if diff := cmp.Diff(strings.TrimSpace(got.stdout), tt.want); diff != "" {
			t.Errorf("%s: -got +want:\n%s", tt.args, diff)
		}
	}
}

// A repository that cannot be read has an unknown number of restore points, not none.
func TestRepositoryThatIsNotMounted(t *testing.T) {
	a := newAppliance(t)
	lost := client.Repository{ID: "repo_03", Name: "lost", Path: "/mnt/nfs", Status: client.StatusProblem}
	empty := client.Repository{ID: "repo_04", Name: "empty", Path: "/mnt/new", Status: client.StatusOK}
	a.get("/repositories", client.RepositoryList{Items: []client.Repository{lost, empty}})
	a.get("/repositories/repo_03", lost)
	got := a.run(t, "repository", "list")
	lines := strings.Split(got.stdout, "\n")
	if f := strings.Fields(lines[1]); len(f) < 3 || f[0] != "lost" || f[2] != "-" || strings.Contains(lines[1], "0 B") {
		t.Errorf("it says of the one that is lost: %q", lines[1])
	}
	if f := strings.Fields(lines[2]); len(f) < 3 || f[0] != "empty" || f[2] != "0" {
		t.Errorf("it says of the empty one: %q", lines[2])
	}
	if got := a.run(t, "repository", "show", "lost"); strings.Contains(got.stdout, "Restore points:") || strings.Contains(got.stdout, "0 packs") {
		t.Errorf("it says\n%s", got.stdout)
	}
}
