package catalog

import (
	"context"
	"sync"
	"testing"
)

// TestOneManagerAtATimeChangesAThing has two handles on one database count up a number that each reads first.
func TestOneManagerAtATimeChangesAThing(t *testing.T) {
	dir := onPostgres(t)
	a, b := open(t, dir), open(t, dir)
	ctx := t.Context()
	conn := Connection{Name: "one", User: ""}
	if err := a.CreateConnection(ctx, &conn, ""); err != nil {
		t.Fatal(err)
	}
	const each = 25
	var wg sync.WaitGroup
	for _, c := range []*Catalog{a, b, a, b} {
		wg.Go(func() {
			for range each {
				if err := countUp(ctx, c, conn.ID); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := a.Connection(ctx, conn.ID)
	if err != nil || len(got.User) != 4*each {
		t.Errorf("%d changes were made, and %d are left; %v", 4*each, len(got.User), err)
	}
	// Another thing is free meanwhile, and who does not want to wait any more does not.
	unlock, err := a.LockChange(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	other, err := b.LockChange(ctx, "y")
	if err != nil {
		t.Fatal(err)
	}
	other()
	short, cancel := context.WithCancel(ctx)
	waiting := make(chan error, 1)
	go func() {
		_, err := b.LockChange(short, "x")
		waiting <- err
	}()
	cancel()
	if err := <-waiting; err == nil {
		t.Error("two have the lock")
	}
	unlock()
	again, err := b.LockChange(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// countUp changes a row as the API does: it reads it, and stores what follows from that.
func countUp(ctx context.Context, c *Catalog, id string) error {
	unlock, err := c.LockChange(ctx, "counter")
	if err != nil {
		return err
	}
	defer unlock()
	row, err := c.Connection(ctx, id)
	if err != nil {
		return err
	}
	return c.db.WithContext(ctx).Model(&Connection{}).Where("id = ?", id).Update("user", row.User+"x").Error
}
