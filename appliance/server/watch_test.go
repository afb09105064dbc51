package server

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// TestChangesAreReadWhenTheyHappen: no inventory is due, and no one asks for one.
func TestChangesAreReadWhenTheyHappen(t *testing.T) {
	b := stillBench(t)
	began := b.routine.began // an instant at which nothing is due
	b.ticks <- began         // which begins to listen
	b.ticks <- began         // is taken when the first has been dealt with
	name := func() map[string]string {
		list, err := b.catalog.VMs(t.Context(), catalog.VMFilter{}, catalog.Page{})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, v := range list.Items {
			out[v.Name] = string(v.Power)
		}
		return out
	}
	is := func(what string, want map[string]string) {
		t.Helper()
		b.holds(what, func() bool { return cmp.Equal(name(), want) })
	}
	later := b.platform.AddVM(memplatform.VMSpec{Name: "later", Off: true, Disks: []int64{1 << 20}})
	is("a new VM", map[string]string{"web": "on", "later": "off"})
	// From now on only single VMs are told of, so a look at all of them would be one too many.
	all := b.platform.Inject(memplatform.OpVMs, &memplatform.Fault{Err: fault.New(fault.Transient, "list VMs", "", "planted")})
	if err := b.platform.Driver().Start(t.Context(), later.ID); err != nil {
		t.Fatal(err)
	}
	is("a VM that starts", map[string]string{"web": "on", "later": "on"})
	b.platform.RemoveVM(later.ID)
	is("a VM that is removed", map[string]string{"web": "on"})
	if all.Fired() != 0 {
		t.Errorf("all VMs were read %d times", all.Fired())
	}
	b.platform.Heal()
	// A stream that broke is taken up again, and what happened meanwhile is found.
	if n := b.platform.Deafen(); n != 1 {
		t.Fatalf("%d were listening", n)
	}
	b.platform.AddVM(memplatform.VMSpec{Name: "unheard", Disks: []int64{1 << 20}})
	b.holds("it has noticed", func() bool {
		b.watches.mu.Lock()
		defer b.watches.mu.Unlock()
		return len(b.watches.running) == 0
	})
	b.ticks <- began.Add(watchAgain)
	is("what was not told", map[string]string{"web": "on", "unheard": "on"})
}

// TestLostConnectionIsAProblem also before an inventory or a backup finds it, and is none any more once it tells of changes again.
func TestLostConnectionIsAProblem(t *testing.T) {
	b := stillBench(t)
	began := b.routine.began
	b.ticks <- began
	b.ticks <- began
	is := func(what string, want catalog.Health) {
		t.Helper()
		b.holds(what, func() bool {
			c, err := b.catalog.Connection(t.Context(), b.conn)
			return err == nil && c.Status == want && (c.LastError == nil) == (want == catalog.HealthOK)
		})
	}
	is("a connection that answers", catalog.HealthOK)
	b.platform.Inject(memplatform.OpCheck, &memplatform.Fault{Err: fault.New(fault.Transient, "check", "", "planted")})
	b.holds("it listened", func() bool { return b.platform.Deafen() == 1 })
	is("one that is lost", catalog.HealthProblem)
	b.platform.Heal()
	b.holds("it has noticed", func() bool {
		b.watches.mu.Lock()
		defer b.watches.mu.Unlock()
		return len(b.watches.running) == 0
	})
	b.ticks <- began.Add(watchAgain)
	is("one that answers again", catalog.HealthOK)
}

// TestToldIsReadOnceItIsQuiet runs on virtual time.
func TestToldIsReadOnceItIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &told{some: make(chan struct{}, 1), vms: map[string]bool{}}
		begin := time.Now()
		go func() {
			for i := range 40 {
				d.add(fmt.Sprintf("vm%d", i%2))
				time.Sleep(100 * time.Millisecond)
			}
		}()
		if !d.settle(t.Context(), time.Second, 10*time.Second) {
			t.Fatal("it does not settle")
		}
		if took := time.Since(begin); took != 39*100*time.Millisecond+time.Second {
			t.Errorf("it was quiet after %v", took)
		}
		vms, all := d.take()
		if diff := cmp.Diff(vms, []string{"vm0", "vm1"}); diff != "" || all {
			t.Errorf("all: %v; %s", all, diff)
		}
		for i := range watchEach + 1 {
			d.add(fmt.Sprintf("vm%d", i))
		}
		if vms, all := d.take(); !all || vms != nil {
			t.Errorf("of many: %v, %v", vms, all)
		}
		if vms, all := d.take(); all || len(vms) != 0 {
			t.Errorf("of none: %v, %v", vms, all)
		}
		ctx, stop := context.WithCancel(t.Context())
		var telling sync.WaitGroup
		telling.Go(func() {
			for ctx.Err() == nil {
				d.add("")
				time.Sleep(500 * time.Millisecond)
			}
		})
		begin = time.Now()
		if !d.settle(t.Context(), time.Second, 10*time.Second) || time.Since(begin) != 10*time.Second {
			t.Errorf("what never is quiet was put off for %v", time.Since(begin))
		}
		if _, all := d.take(); !all {
			t.Error("any VM may have changed")
		}
		stop()
		telling.Wait() // virtual time stands still once this function has ended
	})
}
