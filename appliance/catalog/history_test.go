package catalog

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/policy"
)

func TestHistory(t *testing.T) { onEach(t, testHistory) }

func testHistory(t *testing.T, dir string) {
	c := open(t, dir)
	ctx := t.Context()
	begin := time.Date(2026, 10, 30, 18, 0, 0, 0, time.UTC)
	ledger := func() Ledger {
		t.Helper()
		l, err := c.Ledger(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	save := func(l Ledger, one Accounted) {
		t.Helper()
		if err := c.SaveAccounts(ctx, l, []Accounted{one}); err != nil {
			t.Fatal(err)
		}
	}
	save(ledger(), Accounted{VMID: "vm_1", Account: policy.Account{AsOf: begin, Target: time.Hour}})
	if err := c.AddRestorePoint(ctx, RestorePoint{ID: "rp_1", VMID: "vm_1", RepositoryID: "r", Time: begin}); err != nil {
		t.Fatal(err)
	}
	if err := c.AddRestorePoint(ctx, RestorePoint{ID: "rp_1", VMID: "vm_1", RepositoryID: "r", Time: begin}); err != nil {
		t.Fatal(err)
	}
	read := ledger()
	if len(read.Stamps["vm_1"]) != 1 || !read.Stamps["vm_1"][0].Time.Equal(begin) {
		t.Fatalf("stamps %+v", read.Stamps)
	}
	if err := c.AddRestorePoint(ctx, RestorePoint{ID: "rp_2", VMID: "vm_1", RepositoryID: "r", Time: begin}); err != nil {
		t.Fatal(err)
	}
	end := time.Date(2026, 11, 2, 6, 0, 0, 0, time.UTC)
	next, days := read.Accounts["vm_1"].Advance(end, []policy.Stamp{{Time: begin.Add(time.Hour), Published: begin.Add(2 * time.Hour)}})
	save(read, Accounted{VMID: "vm_1", Account: next, Days: days})
	save(read, Accounted{VMID: "vm_1", Account: next, Days: days}) // another manager, which has read the same
	later := ledger()
	if got := later.Accounts["vm_1"]; got != next || len(later.Stamps["vm_1"]) != 1 {
		t.Errorf("account %+v, want %+v; stamps %+v", got, next, later.Stamps)
	}
	_, more := next.Advance(end.Add(time.Hour), nil)
	save(later, Accounted{VMID: "vm_1", Account: policy.Account{AsOf: end.Add(time.Hour)}, Days: more})
	days[len(days)-1] = days[len(days)-1].Add(more[0])
	history := func(from, to time.Time) (out []policy.Day) {
		t.Helper()
		err := c.History(ctx, "vm_1", from, to, func(id string, d policy.Day) {
			if id != "vm_1" {
				t.Errorf("a day of %q", id)
			}
			out = append(out, d)
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if diff := cmp.Diff(history(begin.AddDate(0, 0, -9), end), days); len(days) != 4 || diff != "" {
		t.Errorf("-got +want\n%s", diff)
	}
	if got := history(days[1].Date, days[2].Date); len(got) != 2 {
		t.Errorf("two days in the middle are %+v", got)
	}
	if err := c.PurgeHistory(ctx, end); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(history(begin, end), days[2:]); diff != "" {
		t.Errorf("without October: -got +want\n%s", diff)
	}
}
