package catalog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
)

// fillPoints stores n restore points whose times, names and sizes are partly the same.
func fillPoints(t *testing.T, c *Catalog, n int) []RestorePoint {
	t.Helper()
	const seed = 11
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, seed))
	began := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	points := make([]RestorePoint, n)
	for i := range points {
		points[i] = RestorePoint{
			ID: fmt.Sprintf("rp_%04d", i), RepositoryID: fmt.Sprint("repo_", i%2), VMID: fmt.Sprint("vm_", i%5), VMName: fmt.Sprint("vm", r.IntN(4)),
			Time: began.Add(time.Duration(r.IntN(9)) * 250 * time.Millisecond), BytesStored: int64(r.IntN(6)), Disks: []PointDisk{},
		}
	}
	if _, err := c.AddRestorePoints(t.Context(), points); err != nil {
		t.Fatal(err)
	}
	return points
}

func TestEveryOrderCoversEverythingOnce(t *testing.T) { onEach(t, testEveryOrderCoversEverythingOnce) }

func testEveryOrderCoversEverythingOnce(t *testing.T, dir string) {
	c := open(t, dir)
	points := fillPoints(t, c, 60)
	compare := map[string]func(a, b RestorePoint) int{
		"created_at":   func(RestorePoint, RestorePoint) int { return 0 },
		"time":         func(a, b RestorePoint) int { return a.Time.Compare(b.Time) },
		"vm_name":      func(a, b RestorePoint) int { return int(a.VMName[2]) - int(b.VMName[2]) },
		"stored_bytes": func(a, b RestorePoint) int { return int(a.BytesStored - b.BytesStored) },
	}
	for name, cmpBy := range compare {
		for _, desc := range []bool{false, true} {
			for _, f := range []PointFilter{{}, {RepositoryID: "repo_1"}, {VMID: "vm_3"}} {
				var want []string
				rest := slices.DeleteFunc(slices.Clone(points), func(p RestorePoint) bool {
					return f.RepositoryID != "" && p.RepositoryID != f.RepositoryID || f.VMID != "" && p.VMID != f.VMID
				})
				slices.SortStableFunc(rest, cmpBy) // they are by id
				for _, p := range rest {
					want = append(want, p.ID)
				}
				p := Page{Limit: 7, Sort: name, Total: true}
				if desc {
					slices.Reverse(want)
					p.Sort = "-" + name
				}
				if diff := cmp.Diff(want, walk(t, c, f, p)); diff != "" {
					t.Errorf("%s %+v (-want +got):\n%s", p.Sort, f, diff)
				}
			}
		}
	}
}

// walk reads all pages.
func walk(t *testing.T, c *Catalog, f PointFilter, p Page) (ids []string) {
	t.Helper()
	for total := -1; ; {
		list, err := c.RestorePoints(t.Context(), f, p)
		if err != nil || list.Total == nil || total >= 0 && *list.Total != total {
			t.Fatalf("page after %d: total %v, %v", len(ids), list.Total, err)
		}
		total = *list.Total
		for _, v := range list.Items {
			ids = append(ids, v.ID)
		}
		if p.Cursor = list.Next; p.Cursor == "" {
			if len(ids) != total {
				t.Errorf("%s: %d of %d were listed", p.Sort, len(ids), total)
			}
			return ids
		}
	}
}

func TestCursorsOfOtherLists(t *testing.T) { onEach(t, testCursorsOfOtherLists) }

func testCursorsOfOtherLists(t *testing.T, dir string) {
	c := open(t, dir)
	fillPoints(t, c, 10)
	list, err := c.RestorePoints(t.Context(), PointFilter{}, Page{Limit: 3, Sort: "time"})
	if err != nil || list.Next == "" || list.Total != nil {
		t.Fatalf("%+v, %v", list, err)
	}
	for name, p := range map[string]Page{
		"other order":     {Cursor: list.Next, Sort: "-time"},
		"own order":       {Cursor: list.Next},
		"no base64":       {Cursor: "%"},
		"no JSON":         {Cursor: "AAAA"},
		"other type":      {Cursor: "eyJzIjoidGltZSIsInYiOjUsImkiOiJ4In0", Sort: "time"},
		"NUL":             {Cursor: "eyJzIjoiLWNyZWF0ZWRfYXQiLCJ2IjoiIiwiaSI6IlxcdTAwMDAifQ"},
		"unknown order":   {Sort: "colour"},
		"SQL in an order": {Sort: "id; DROP TABLE runs"},
	} {
		if _, err := c.RestorePoints(t.Context(), PointFilter{}, p); kindOf(err) != "invalid" {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

// TestPagesAreReadByAnIndex: no list sorts rows or looks at all of them, whatever it is filtered and sorted by.
func TestPagesAreReadByAnIndex(t *testing.T) {
	dir := t.TempDir() // it reads what SQLite says of its plans
	c := open(t, dir)
	for _, q := range []string{
		"SELECT * FROM restore_points ORDER BY id DESC LIMIT 101",
		"SELECT * FROM restore_points WHERE id < 'x' ORDER BY id DESC LIMIT 101",
		"SELECT * FROM restore_points WHERE (time, id) < ('x', 'y') ORDER BY time DESC, id DESC LIMIT 101",
		"SELECT * FROM restore_points WHERE (vm_name, id) > ('x', 'y') ORDER BY vm_name ASC, id ASC LIMIT 101",
		"SELECT * FROM restore_points WHERE repository_id = 'r' AND id < 'x' ORDER BY id DESC LIMIT 101",
		"SELECT * FROM restore_points WHERE repository_id = 'r' AND (time, id) < ('x', 'y') ORDER BY time DESC, id DESC LIMIT 101",
		"SELECT * FROM restore_points WHERE repository_id = 'r' AND (vm_name, id) > ('x', 'y') ORDER BY vm_name ASC, id ASC LIMIT 101",
		"SELECT * FROM restore_points WHERE repository_id = 'r' AND (bytes_stored, id) < (5, 'y') ORDER BY bytes_stored DESC, id DESC LIMIT 101",
		"SELECT * FROM restore_points WHERE vm_id = 'v' AND id < 'x' ORDER BY id DESC LIMIT 101",
		"SELECT * FROM runs WHERE state = 'failed' AND id < 'x' ORDER BY id DESC LIMIT 101",
		"SELECT * FROM runs WHERE kind = 'backup' AND id < 'x' ORDER BY id DESC LIMIT 101",
		"SELECT * FROM tasks WHERE vm_id = 'v' AND id < 'x' ORDER BY id DESC LIMIT 101",
		"SELECT * FROM tasks WHERE run_id = 'v' AND id < 'x' ORDER BY id DESC LIMIT 101",
		"SELECT * FROM vms WHERE gone_at IS NULL AND (name, id) > ('x', 'y') ORDER BY name ASC, id ASC LIMIT 101",
		"SELECT * FROM vms WHERE connection_id = 'c' AND gone_at IS NULL AND (name, id) > ('x', 'y') ORDER BY name ASC, id ASC LIMIT 101",
	} {
		for _, step := range plan(t, c, q) {
			if !usesIndex(step) {
				t.Errorf("%s: %s", q, step)
			}
		}
	}
}

// TestFilterOfVMs: pages of VMs that an expression selects are those that the evaluator itself selects, in the list's order.
func TestFilterOfVMs(t *testing.T) { onEach(t, testFilterOfVMs) }

func testFilterOfVMs(t *testing.T, dir string) {
	c := open(t, dir)
	conn := Connection{Name: "lab", Platform: hypervisors.KVM}
	if err := c.CreateConnection(t.Context(), &conn, ""); err != nil {
		t.Fatal(err)
	}
	var found []hypervisors.VM
	for i := range 2500 {
		found = append(found, hypervisors.VM{
			ID: fmt.Sprint(i), Name: fmt.Sprintf("vm%04d", (i*7919)%2500), Power: hypervisors.PowerOn, Tags: []string{fmt.Sprint("t", i%3)}, Title: "x",
		})
	}
	if _, err := c.SyncVMs(t.Context(), conn.ID, found); err != nil {
		t.Fatal(err)
	}
	for expression, count := range map[string]int{
		"tag = t1 and connection = lab": 833, "name ~ vm000*": 10, "all": 2500, "not all": 0, "tag in (t0, t2) and name = vm0000": -1,
	} {
		filter, err := policy.ParseFilter(expression)
		if err != nil {
			t.Fatal(err)
		}
		facts, err := c.VMFacts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, v := range facts {
			if filter.Match(v) {
				want = append(want, v.Name)
			}
		}
		for p := (Page{Limit: 300, Total: true}); ; {
			list, err := c.VMs(t.Context(), VMFilter{Filter: expression}, p)
			if err != nil || *list.Total != len(want) {
				t.Fatalf("%s: %v, %v", expression, list.Total, err)
			}
			for _, v := range list.Items {
				if v.Description.Title != "x" {
					t.Fatalf("%s: not the whole of %s", expression, v.Name)
				}
				got = append(got, v.Name)
			}
			if p.Cursor = list.Next; p.Cursor == "" {
				break
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || count >= 0 && len(got) != count {
			t.Errorf("%s: %d VMs (-want +got):\n%s", expression, len(got), diff)
		}
	}
	if _, err := c.VMs(t.Context(), VMFilter{Filter: "tag ="}, Page{}); kindOf(err) != "invalid" {
		t.Errorf("half an expression: %v", err)
	}
}
