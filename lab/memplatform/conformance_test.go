package memplatform

import (
	"math/rand/v2"
	"sync"
	"testing"

	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/hypervisortest"
)

func newPlatform(t testing.TB, o Options) *Platform {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close platform: %v", err)
		}
	})
	return p
}

// guest writes to a VM's disks as its guest would, the same in every run of a test.
type guest struct {
	p   *Platform
	vm  hypervisors.VM
	mu  sync.Mutex
	rng *rand.Rand
}

const seed = 20261121

func newGuest(t testing.TB, p *Platform, vm hypervisors.VM) *guest {
	t.Logf("seed %d", seed)
	return &guest{p: p, vm: vm, rng: rand.New(rand.NewPCG(seed, 1))}
}

// write changes two small ranges of each disk.
func (g *guest) write(t testing.TB) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.vm.Disks {
		if d.Unprotectable != "" {
			continue
		}
		for range 2 {
			data := make([]byte, 1+g.rng.IntN(100<<10))
			for i := range data {
				data[i] = byte(g.rng.Uint32())
			}
			if err := g.p.Write(g.vm.ID, d.ID, data, g.rng.Int64N(d.SizeBytes-int64(len(data)))); err != nil {
				t.Error(err)
			}
		}
	}
}

// background writes until stop returns.
func (g *guest) background(t testing.TB) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				g.write(t)
			}
		}
	})
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}

func fixture(t *testing.T, o Options, agent bool) hypervisortest.Fixture {
	p := newPlatform(t, o)
	running := p.AddVM(VMSpec{Name: "running", Disks: []int64{8 << 20, 4<<20 + 512}, Agent: agent, CDROM: true})
	stopped := p.AddVM(VMSpec{Name: "a stopped one", Disks: []int64{4 << 20}, Off: true})
	newGuest(t, p, stopped).write(t)
	g := newGuest(t, p, running)
	g.write(t)
	return hypervisortest.Fixture{
		Driver: sabotage(p.Driver()), Running: running.ID, Stopped: stopped.ID, Agent: agent,
		Write: g.write, Background: g.background,
		Content: func(t testing.TB, vm, disk string) []byte {
			data, err := p.Content(vm, disk)
			if err != nil {
				t.Error(err)
			}
			return data
		},
		Remove:     func(_ testing.TB, vm string) { p.RemoveVM(vm) },
		RemoveDisk: func(_ testing.TB, disk string) { p.RemoveDisk(disk) },
		OpenSource: nbdtransport.OpenSource, OpenTarget: nbdtransport.OpenTarget,
		Foreign: func(t testing.TB) (string, func() bool) {
			const name = "another-tool"
			if err := p.AddCheckpoint(running.ID, name); err != nil {
				t.Error(err)
			}
			return name, func() bool { return p.HasCheckpoint(running.ID, name) }
		},
		NoSuchVM: randomID(),
	}
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]Options{
		"everything":         {},
		"no change tracking": {Deny: func(c *hypervisors.Capabilities) { c.ChangeTracking = false }},
		"no restore": {Deny: func(c *hypervisors.Capabilities) {
			c.Restore, c.RestoreInPlace, c.Power, c.StoppedBackup = false, false, false, false
		}},
		"no backup": {Deny: func(c *hypervisors.Capabilities) {
			c.Backup, c.ChangeTracking, c.Quiesce, c.StoppedBackup = false, false, false, false
		}},
	} {
		t.Run(name, func(t *testing.T) {
			hypervisortest.Run(t, func(t *testing.T) hypervisortest.Fixture { return fixture(t, o, false) })
		})
	}
	t.Run("agent", func(t *testing.T) {
		hypervisortest.Run(t, func(t *testing.T) hypervisortest.Fixture { return fixture(t, Options{}, true) })
	})
}
