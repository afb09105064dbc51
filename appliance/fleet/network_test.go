package fleet_test

import (
	"os"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/lab/netfault"
)

// The kinds of what a network does. Those that break the stream have ends: the mover has to come back by itself.
var networks = []struct {
	name  string
	fault netfault.Fault
	ends  bool
}{
	{"latency", netfault.Fault{Delay: 20 * time.Millisecond}, false},
	{"loss as stalls", netfault.Fault{StallEvery: 100, StallFor: 100 * time.Millisecond}, false},
	{"narrow", netfault.Fault{Rate: 32 << 10}, false},
	{"reset", netfault.Fault{Reset: true}, true},
	{"ended", netfault.Fault{End: true}, true},
	{"partition", netfault.Fault{DropUp: true, DropDown: true}, true},
	{"half-open up", netfault.Fault{DropUp: true}, true},
	{"half-open down", netfault.Fault{DropDown: true}, true},
	{"reset and refused", netfault.Fault{Reset: true, Refuse: true}, true},
}

// rough is a manager with a mover behind a network that can be broken.
type rough struct {
	t     *testing.T
	m     *manager
	v     *mover
	proxy *netfault.Proxy
}

func newRough(t *testing.T) *rough {
	m := newManager(t, fleet.Timing{Heartbeat: 100 * time.Millisecond, Silence: time.Second, Lost: patience})
	proxy, err := netfault.New(m.address)
	check(t, err)
	v := newMover(t, m, m.token(fleet.NewToken{}))
	v.config.Manager = proxy.Address()
	t.Cleanup(proxy.Close) // after the mover, which is cleaned up before
	return &rough{t, m, v, proxy}
}

// breaks applies a fault and waits until it has done what it does.
func (r *rough) breaks(f netfault.Fault, ends bool) {
	r.t.Helper()
	r.proxy.Set(f)
	r.broken(ends)
}

// broken waits until the fault has done what it does.
func (r *rough) broken(ends bool) {
	r.t.Helper()
	r.fires()
	if ends {
		r.v.log.await("control stream ended; it will be opened again", 1)
	}
}

// TestNetworkFaults breaks the network in every way at every phase of a transfer: each is begun once, ends once, and its
// result arrives.
func TestNetworkFaults(t *testing.T) {
	phases := map[string]func(r *rough, f netfault.Fault, ends bool){
		"enrolling": func(r *rough, f netfault.Fault, _ bool) {
			r.proxy.Set(f)
			r.v.start()
			if f.Reset && !f.Refuse || f.End { // of which there is nothing to hit yet
				r.m.log.await("mover connected", 1)
				r.proxy.Set(f)
			}
			r.fires()
			r.proxy.Heal()
			r.m.log.await("mover connected", 1)
			r.finish(r.m.backup("a"))
		},
		"idle": func(r *rough, f netfault.Fault, ends bool) {
			r.online()
			r.breaks(f, ends)
			r.proxy.Heal()
			r.finish(r.m.backup("a"))
		},
		"task given": func(r *rough, f netfault.Fault, ends bool) {
			r.online()
			r.proxy.Set(f)
			b := r.m.backup("a") // it may arrive, or vanish on its way
			r.broken(ends)
			r.proxy.Heal()
			r.finish(b)
		},
		"running": func(r *rough, f netfault.Fault, ends bool) {
			r.online()
			b := r.m.backup("a")
			b.running(r.t)
			r.breaks(f, ends)
			r.proxy.Heal()
			r.finish(b)
		},
		"result": func(r *rough, f netfault.Fault, ends bool) {
			r.online()
			b := r.m.backup("a")
			b.running(r.t)
			r.proxy.Set(f)
			close(r.v.work.release) // the result meets the fault
			r.broken(ends)
			r.proxy.Heal()
			r.ended(b)
		},
		"cancelling": func(r *rough, f netfault.Fault, ends bool) {
			r.online()
			b := r.m.backup("a")
			b.running(r.t)
			r.proxy.Set(f)
			b.cancel()
			r.broken(ends)
			r.proxy.Heal()
			if _, err := b.wait(r.t); err == nil {
				r.t.Error("a cancelled transfer succeeded")
			}
			r.v.log.await("transfer ended", 1)
			close(r.v.work.release)
			r.ended(r.m.backup("b"))
		},
	}
	for phase, do := range phases {
		for i, n := range networks {
			if os.Getenv("CAIRN_SOAK") == "" && (i+len(phase))%2 == 0 { // every kind and every phase, but not each with each
				continue
			}
			t.Run(phase+"/"+n.name, func(t *testing.T) {
				t.Parallel()
				r := newRough(t)
				do(r, n.fault, n.ends)
				if begun, ended := r.v.work.times("a"); begun != 1 || ended != 1 {
					t.Errorf("begun %d times, ended %d times", begun, ended)
				}
				r.m.id() // and it is one mover
			})
		}
	}
}

func (r *rough) online() {
	r.t.Helper()
	r.v.start()
	r.m.log.await("mover connected", 1)
}

// fires waits until the fault has fired.
func (r *rough) fires() {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	until(r.t, "the fault", func() (bool, <-chan struct{}) {
		again := make(chan struct{})
		if r.proxy.Fired() == 0 {
			<-tick.C
		}
		close(again)
		return r.proxy.Fired() > 0, again
	})
}

// finish lets a transfer end and checks how.
func (r *rough) finish(b *begun) {
	r.t.Helper()
	close(r.v.work.release)
	r.ended(b)
}

func (r *rough) ended(b *begun) {
	r.t.Helper()
	res, err := b.wait(r.t)
	if err != nil || res.BytesRead != 7 {
		r.t.Errorf("Backup = %+v, %v", res, err)
	}
}
