package e2e

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// killSite is the site of the tests that kill the manager, with a mover that stands in its VM.
type killSite struct {
	*site
	m *mover
}

func newKillSite(t *testing.T) *killSite {
	t.Helper()
	s := newSite(t, ovirtsim.Config{Site: waysSite()})
	guest, err := s.engine.Guest(t.Context(), ovirtMover)
	if err != nil {
		t.Fatal(err)
	}
	k := &killSite{site: s}
	k.m = s.enrolIn(guest.Sys, "m1")
	return k
}

// killWays are the ways with the disks read by the manager itself where it can, so that its own fault points are passed.
func killWays() []way {
	ways := ovirtWays()
	ways[0].asked = map[string]any{"mover": "built-in"}
	return ways
}

// killPoint kills the manager at a fault point of what begin starts, and starts it again.
func (k *killSite) killPoint(point string, begin func()) {
	k.t.Helper()
	k.killAt(point, func() {
		k.restarted(k.m)
		begin()
	})
	k.restarted(k.m)
}

// killRequest kills the manager when the engine has carried out the nth request that changes something, before it hears of it, and
// starts it again. It returns the request; "" if begin's run has ended before.
func (k *killSite) killRequest(nth int, begin func() (client.Run, error)) string {
	k.t.Helper()
	var seen atomic.Int32
	struck := make(chan string, 1)
	victim := k.cmd.Process
	k.watch.onDone(func(request string, _ int) {
		if int(seen.Add(1)) == nth {
			_ = victim.Kill()
			struck <- request
		}
	})
	defer k.watch.onDone(nil)
	run, err := begin()
	request := ""
	k.wait("the manager to be killed, or the run to end", func() bool {
		select {
		case request = <-struck:
			return true
		default:
		}
		if err != nil { // the manager was killed before it could say which run it is
			return false
		}
		var now client.Run
		return k.call("GET", "/runs/"+run.ID, nil, &now) == nil && over(now.State) && int(seen.Load()) < nth
	})
	if request == "" {
		return ""
	}
	<-k.exited
	k.watch.onDone(nil)
	k.start()
	k.restarted(k.m)
	return request
}

// healed waits until nothing is left of what was killed, and looks that the way works again.
func (k *killSite) healed(w way, vm client.VM, what string) {
	k.t.Helper()
	k.settled()
	k.wait("leftovers to go after "+what, func() bool { return len(k.leftovers("")) == 0 })
	if err := k.engine.Write(k.t.Context(), w.id, 1); err != nil {
		k.t.Fatal(err)
	}
	point := k.backup(vm.ID, k.repo.ID, w.asked)
	want := k.frozenHashes(w.id)
	for disk, got := range k.stored([]string{point.ID})[point.ID] {
		if got != want[disk] {
			k.t.Errorf("after %s the next backup (%s %q) holds something else of disk %s than was frozen", what, point.Disks[0].Mode, point.Disks[0].FullReason, disk)
		}
	}
	k.clean("", "after "+what+" and the backup that follows")
	if n := k.checkpointsOf(w.id); n > 1 {
		k.t.Errorf("the engine has %d checkpoints after %s", n, what)
	}
}

// killSteps calls step for each number from 1 on until there is no such step; without CAIRN_SOAK for a few of them only, the seed of
// whose choice is printed. A step that does not exist lets everything be done.
func killSteps(t *testing.T, likely, few int, step func(n int) bool) {
	t.Helper()
	if os.Getenv("CAIRN_SOAK") == "1" {
		for n := 1; step(n); n++ {
		}
		return
	}
	seed := seeded.Seed(t)
	chosen := rand.New(rand.NewPCG(seed, 0)).Perm(likely)[:few]
	slices.Sort(chosen)
	for _, n := range chosen {
		for n++; !step(n); n-- { // there may be fewer than is likely
			if n == 1 {
				t.Fatal("there is no step at all")
			}
		}
	}
}

// TestOVirtKillDuringBackup kills the manager with SIGKILL at each fault point of a backup, and after each request by which it changes
// something on the engine, by each way. When it is back nothing stays behind, and the next backup is right.
func TestOVirtKillDuringBackup(t *testing.T) {
	k := newKillSite(t)
	for i, w := range killWays() {
		vm := k.named(w.vm)
		k.backup(vm.ID, k.repo.ID, w.asked)
		begin := func() (client.Run, error) { return k.startBackup(vm.ID, k.repo.ID, w.asked) }
		t.Run(w.name, func(t *testing.T) {
			k.in(t, func() {
				k.killAtPoints("backup.", w, i, func(point string) {
					k.killPoint(point, func() { _, _ = begin() })
					k.healed(w, vm, point)
				})
				killSteps(t, 6, 1, func(n int) bool {
					request := k.killRequest(n, begin)
					if request == "" {
						return false
					}
					t.Logf("killed after %s", request)
					k.healed(w, vm, request)
					return true
				})
			})
		})
	}
	k.verifyAll()
}

// killAtPoints calls kill with the fault points of a kind that the manager passes by a way. Without CAIRN_SOAK each way has its share.
func (k *killSite) killAtPoints(kind string, w way, share int, kill func(point string)) {
	k.t.Helper()
	n := 0
	for _, point := range fault.Points {
		inMover := strings.Contains(point, ".transfer-") && w.mover != "built-in"
		if !strings.HasPrefix(point, kind) || inMover || point == "restore.original-removed" {
			continue
		}
		if n++; os.Getenv("CAIRN_SOAK") == "1" || n%len(killWays()) == share {
			kill(point)
		}
	}
}

// TestOVirtKillDuringRestore does the same to restores, as new VMs and in place.
func TestOVirtKillDuringRestore(t *testing.T) {
	k := newKillSite(t)
	for i, w := range killWays() {
		vm := k.named(w.vm)
		point := k.backup(vm.ID, k.repo.ID, w.asked)
		order, want := k.disks(w.id), k.frozenHashes(w.id)
		request := func(more map[string]any) map[string]any {
			body := map[string]any{"restore_point": point.ID, "mode": "new", "name": w.vm + "-copy"}
			for _, m := range []map[string]any{w.asked, more} {
				for key, v := range m {
					body[key] = v
				}
			}
			return body
		}
		again := func(what string) {
			k.gone(w.vm + "-copy")
			k.clean("", "after "+what)
			k.restore(request(nil))
			id := k.named(w.vm + "-copy").PlatformID
			k.sameDisks("the copy after "+what, id, order, want)
			k.removeVM(id)
		}
		t.Run(w.name, func(t *testing.T) {
			k.in(t, func() {
				k.killAtPoints("restore.", w, i, func(at string) {
					k.killPoint(at, func() { _, _ = k.startRestore(request(map[string]any{"start": at == "restore.started"})) })
					again(at)
				})
				killSteps(t, 13, 1, func(n int) bool {
					at := k.killRequest(n, func() (client.Run, error) { return k.startRestore(request(nil)) })
					if at == "" {
						k.gone(w.vm + "-copy")
						return false
					}
					t.Logf("killed after %s", at)
					again(at)
					return true
				})
			})
		})
	}
}

// gone waits until no restore is under way and nothing is left of one, and removes the VM if one was made.
func (k *killSite) gone(name string) {
	k.t.Helper()
	k.settled()
	found := func() string {
		k.must("POST", "/connections/"+k.connection.ID+"/refresh", nil, nil)
		var list client.VMList
		k.must("GET", "/vms?connection="+k.connection.ID+"&name="+name, nil, &list)
		for _, vm := range list.Items {
			if vm.Name == name && !vm.Gone {
				return vm.PlatformID
			}
		}
		return ""
	}
	k.wait("what the restore left to go", func() bool { return len(k.leftovers("")) == 0 })
	id := found()
	if id == "" {
		return
	}
	if strings.Contains(k.ask("GET", "/vms/"+id, ""), "<status>up</status>") {
		k.power(id, "stop", "down")
	}
	if comment := k.ask("GET", "/vms/"+id, ""); strings.Contains(comment, "<comment>cairn-restore") {
		k.t.Errorf("VM %s is half made and stays", name)
	}
	k.removeVM(id)
}

// TestOVirtKillDuringRestoreInPlace kills the manager while it exchanges the disks of a VM: afterwards it has either its own disks or
// those of the restore point, and the other ones are gone.
func TestOVirtKillDuringRestoreInPlace(t *testing.T) {
	k := newKillSite(t)
	w := killWays()[0]
	vm := k.named(w.vm)
	point := k.backup(vm.ID, k.repo.ID, w.asked)
	order, want := k.byName(w.id), k.frozenHashes(w.id)
	if err := k.engine.Write(t.Context(), w.id, 3); err != nil {
		t.Fatal(err)
	}
	k.power(w.id, "stop", "down")
	own := map[string][32]byte{}
	for i, disk := range k.byName(w.id) {
		own[order[i]] = k.content(disk)
	}
	begin := func() (client.Run, error) {
		k.named(w.vm) // that it is off
		return k.startRestore(map[string]any{"restore_point": point.ID, "mode": "in-place", "mover": "built-in"})
	}
	check := func(at string) {
		k.settled()
		k.wait("what the restore left to go", func() bool { return len(k.leftovers("")) == 0 })
		now := k.byName(w.id)
		if len(now) != len(order) {
			k.t.Fatalf("after %s the VM has the disks %v", at, now)
		}
		if restored := k.content(now[0]) == want[order[0]]; restored {
			own = maps.Clone(want)
		}
		k.same("the VM after "+at, now, order, own)
		k.boots(w.id)
		k.backup(vm.ID, k.repo.ID, w.asked)
		k.power(w.id, "stop", "down")
		for i, disk := range k.byName(w.id) {
			own[order[i]] = k.content(disk)
		}
		k.clean("", "after "+at)
	}
	k.killPoint("restore.original-removed", func() { _, _ = begin() })
	check("restore.original-removed")
	killSteps(t, 13, 3, func(n int) bool {
		at := k.killRequest(n, begin)
		t.Logf("killed after %q", at)
		check(cmp.Or(at, "a whole restore"))
		return at != ""
	})
	k.verifyAll()
}
