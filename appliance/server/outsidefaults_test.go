package server

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/memplatform"
	"github.com/cairn-backup/cairn/lab/netfault"
)

func soak() bool { return os.Getenv("CAIRN_SOAK") != "" }

// TestMoverWithoutASlot: a mover that has fewer slots than the manager believes fails no disk.
func TestMoverWithoutASlot(t *testing.T) {
	b := newBench(t)
	m := b.outside(b.listen(), "m1", "--slots", "1")
	row, err := b.catalog.Mover(t.Context(), m.info().ID)
	if err != nil {
		t.Fatal(err)
	}
	row.Slots = 4
	if err := b.catalog.SeeMover(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	f := b.platform.Inject(memplatform.OpReadDisk, &memplatform.Fault{Block: hold})
	started, err := b.through("m1")
	task := b.task(started, err)
	b.holds("the refusal", func() bool {
		return f.Fired() > 0 && strings.Contains(b.said(task.RunID), "the mover did not take the transfer")
	})
	close(hold)
	b.pointOf(b.ended(started, nil), "m1")
	if said := b.said(task.RunID); !strings.Contains(said, "it says that it has no slot free") {
		t.Errorf("the run's log: %s", said)
	}
	b.readsBack()
}

// readsBack reads everything in the repository back.
func (b *bench) readsBack() {
	b.t.Helper()
	list, err := b.ListRestorePoints(b.t.Context(), catalog.PointFilter{}, catalog.Page{Limit: catalog.MaxLimit})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range list.Items {
		if task := b.ended(b.StartVerify(b.t.Context(), httpapi.Start{}, p.ID)); task.State != catalog.Succeeded {
			b.t.Errorf("verify = %s, %+v", task.State, task.Error)
		}
	}
}

// TestKilledMovers: kill -9 of a mover at points spread over a backup, and over a restore: another process goes on, and
// every byte is right.
func TestKilledMovers(t *testing.T) {
	points := 3
	if soak() {
		points = 20
	}
	const data = 3 << 20
	b := newBench(t)
	m := b.outside(b.listen(), "m1")
	for n := range points {
		b.write("disk0", data, int64(n%2)<<20)
		m.proxy.Set(netfault.Fault{Rate: 2 << 20}) // so that there is something to hit
		up0, down0 := m.proxy.Bytes()
		at := int64(n) * data / int64(points)
		restoring := n%3 == 2
		var started httpapi.Started
		var err error
		var before catalog.RestorePoint
		if restoring {
			m.proxy.Heal()
			before = b.pointOf(b.ended(b.through("m1")), "m1")
			m.proxy.Set(netfault.Fault{Rate: 2 << 20})
			up0, down0 = m.proxy.Bytes()
			started, err = b.StartRestore(t.Context(), httpapi.Start{User: "ann"}, httpapi.RestoreRequest{
				RestorePointID: before.ID, Mode: hypervisors.RestoreNew, Name: fmt.Sprint("copy", n), Mover: "m1",
			})
		} else {
			started, err = b.through("m1")
		}
		task := b.task(started, err)
		b.holds("the point of the kill", func() bool {
			up, down := m.proxy.Bytes()
			got, err := b.GetTask(t.Context(), task.ID)
			return err != nil || got.State.Final() || m.info().Transfers > 0 && up-up0+down-down0 >= at
		})
		m.kill()
		t.Logf("killed after %d bytes, restoring %v", at, restoring)
		m.proxy.Heal()
		m.start()
		ended := b.ended(started, nil)
		if said := b.said(task.RunID); !strings.Contains(said, "the mover was lost") {
			t.Errorf("point %d: nothing was lost:\n%s", n, said)
		}
		if restoring {
			if ended.State != catalog.Succeeded {
				t.Fatalf("restore = %s, %+v", ended.State, ended.Error)
			}
			got0, got1 := b.content(ended.Result.VMPlatformID, "disk0"), b.content(ended.Result.VMPlatformID, "disk1")
			if string(got0) != string(b.content(b.vm.ID, "disk0")) || string(got1) != string(b.content(b.vm.ID, "disk1")) {
				t.Errorf("point %d: the restored disks are not what was frozen", n)
			}
			continue
		}
		point := b.pointOf(ended, "m1")
		b.restoresTo(point.ID, fmt.Sprint("copy", n), b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
	}
	b.readsBack()
	b.clean()
}

// networks are the kinds of what a network does to a mover's connections.
var networks = []struct {
	name  string
	fault netfault.Fault
}{
	{"latency", netfault.Fault{Delay: 5 * time.Millisecond}},
	{"loss as stalls", netfault.Fault{StallEvery: 200 << 10, StallFor: 20 * time.Millisecond}},
	{"narrow", netfault.Fault{Rate: 1 << 20}},
	{"reset", netfault.Fault{Reset: true}},
	{"ended", netfault.Fault{End: true}},
	{"partition", netfault.Fault{DropUp: true, DropDown: true}},
	{"half-open up", netfault.Fault{DropUp: true}},
	{"half-open down", netfault.Fault{DropDown: true}},
	{"reset and refused", netfault.Fault{Reset: true, Refuse: true}},
}

// TestNetworkFaultsWithData breaks the network between a mover and the appliance in every way at phases of a backup and
// of a restore: the transfer succeeds, once, and every byte is right.
func TestNetworkFaultsWithData(t *testing.T) {
	const data = 3 << 20
	phases := []struct {
		name    string
		restore bool
		at      int64 // bytes over the network after which it happens
	}{
		{"backup begins", false, 0}, {"backup, a third", false, data / 3}, {"backup, near its end", false, data * 95 / 100},
		{"restore begins", true, 0}, {"restore, a third", true, data / 3}, {"restore, near its end", true, data * 95 / 100},
	}
	for p, phase := range phases {
		for k, kind := range networks {
			// In CI each kind and each phase once and a bit; silence costs as long as a dead link takes to be noticed.
			if !soak() && (k%len(phases) != p || kind.fault.DropUp != kind.fault.DropDown) {
				continue
			}
			t.Run(phase.name+"/"+kind.name, func(t *testing.T) {
				b := newBench(t)
				m := b.outside(b.listen(), "m1")
				b.write("disk0", data, 0)
				var point catalog.RestorePoint
				if phase.restore {
					point = b.pointOf(b.ended(b.through("m1")), "m1")
				}
				m.proxy.Set(netfault.Fault{Rate: 8 << 20}) // so that there is a moment to hit
				up0, down0 := m.proxy.Bytes()
				var started httpapi.Started
				var err error
				if phase.restore {
					started, err = b.StartRestore(t.Context(), httpapi.Start{User: "ann"}, httpapi.RestoreRequest{
						RestorePointID: point.ID, Mode: hypervisors.RestoreNew, Name: "copy", Mover: "m1",
					})
				} else {
					started, err = b.through("m1")
				}
				task := b.task(started, err)
				b.holds("the moment of the fault", func() bool {
					up, down := m.proxy.Bytes()
					return up-up0+down-down0 > phase.at
				})
				m.proxy.Set(kind.fault)
				b.holds("the fault", func() bool { return m.proxy.Fired() > 0 })
				m.proxy.Heal()
				ended := b.ended(started, nil)
				if ended.State != catalog.Succeeded {
					t.Fatalf("task = %s, %+v\n%s", ended.State, ended.Error, b.said(task.RunID))
				}
				want0, want1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
				if phase.restore {
					got0, got1 := b.content(ended.Result.VMPlatformID, "disk0"), b.content(ended.Result.VMPlatformID, "disk1")
					if string(got0) != string(want0) || string(got1) != string(want1) {
						t.Error("the restored disks are not what was frozen")
					}
				} else {
					b.restoresTo(b.pointOf(ended, "m1").ID, "copy", want0, want1)
				}
				b.readsBack()
				b.clean()
				if n := b.vms(); n != 2 {
					t.Errorf("%d VMs", n)
				}
			})
		}
	}
}
