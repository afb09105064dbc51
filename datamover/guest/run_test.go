//go:build linux

package guest

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestDismissedMoverWaits: the mover of a machine that its manager has dismissed is started again with another
// configuration only.
func TestDismissedMoverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := Config{Manager: "a:1", Token: "used", Sources: []string{"fw_cfg"}}
		now := old
		now.Sources = []string{"NoCloud seed sr0"} // the same from elsewhere is no other one
		read := 0
		reader := func(context.Context) (Config, error) {
			read++
			return now, nil
		}
		changed := make(chan struct{})
		got := make(chan Config, 1)
		go func() { got <- awaitOther(t.Context(), old, reader, changed) }()
		changed <- struct{}{}
		synctest.Wait()
		if len(got) != 0 || read != 1 {
			t.Fatalf("it went on with the configuration it had, after %d looks", read)
		}
		now.Token = "fresh"
		if c := <-got; c.Token != "fresh" || read != 2 { // by the time that has passed
			t.Errorf("%+v after %d looks", c, read)
		}
		ctx, end := context.WithCancel(t.Context())
		end()
		if c := awaitOther(ctx, old, reader, nil); c.Token != "used" {
			t.Errorf("%+v when the machine stops", c)
		}
	})
}
