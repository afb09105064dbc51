package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
)

// diskEntity finds the disks of a list with their names.
var diskEntity = regexp.MustCompile(`(?s)<disk [^>]*id="([^"]+)".*?<alias>([^<]*)</alias>`)

// called are the engine's disks whose names begin so, in the order of the names.
func (s *site) called(prefix string) (out []string) {
	s.t.Helper()
	names := map[string]string{}
	for _, m := range diskEntity.FindAllStringSubmatch(s.ask("GET", "/disks", ""), -1) {
		if strings.HasPrefix(m[2], prefix) {
			out = append(out, m[1])
			names[m[1]] = m[2]
		}
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(names[a], names[b]) })
	return out
}

// drop takes disks out of a VM, if one is named, and deletes them.
func (s *site) drop(vm string, disks []string) {
	s.t.Helper()
	for _, disk := range disks {
		if vm != "" {
			s.ask("DELETE", "/vms/"+vm+"/diskattachments/"+disk+"?detach_only=true", "")
			s.wait("the disk to be unplugged", func() bool { return !slices.Contains(s.disks(vm), disk) })
		}
		s.ask("DELETE", "/disks/"+disk, "")
		s.wait("the disk to go", func() bool { _, status := s.tryAsk("GET", "/disks/"+disk, ""); return status == 404 })
	}
}

// handover is a restore of disks without their VM.
type handover struct {
	name   string
	body   map[string]any
	prefix string // of the disks' names
	vm     string // that gets them; "" is none
}

// wholeOrNone waits until what a handover has left is done with: there are all of its disks then, or none.
func (k *killSite) wholeOrNone(h handover, order []string, want map[string][32]byte, at string) {
	k.t.Helper()
	k.settled()
	k.wait("what the handover left to go after "+at, func() bool {
		return len(k.called("cairn-")) == 0 && !slices.ContainsFunc(k.leftovers(""), func(l string) bool { return !strings.Contains(l, "disk "+h.prefix) })
	})
	got := k.called(h.prefix)
	if len(got) > 0 {
		k.same(h.name+" after "+at, got, order, want)
	}
	k.drop(h.vm, got)
	k.clean("", "after "+at)
}

// TestOVirtKillDuringHandover kills the manager while it restores disks as ones that no VM has, and into a VM that runs: afterwards there
// are all of them with their names, or none, and the VM has its own as before.
func TestOVirtKillDuringHandover(t *testing.T) {
	k := newKillSite(t)
	w := killWays()[0]
	vm, into := k.named(w.vm), k.named("plugged")
	point := k.backup(vm.ID, k.repo.ID, w.asked)
	order, want, own := k.disks(w.id), k.frozenHashes(w.id), k.disks(ovirtHotadd)
	if err := k.engine.Write(t.Context(), ovirtHotadd, 1); err != nil { // its guest is up before it gets disks, and knows its own
		t.Fatal(err)
	}
	for _, h := range []handover{
		{"alone", map[string]any{"mode": "disks", "name": "alone"}, "alone_", ""},
		{"into", map[string]any{"mode": "into", "vm": into.ID}, "plugged_", ovirtHotadd},
	} {
		h.body["restore_point"], h.body["mover"] = point.ID, "built-in"
		for _, disk := range own { // or it would be called like those that the VM gets
			k.ask("PUT", "/vms/"+ovirtHotadd+"/diskattachments/"+disk, "<disk_attachment><disk><alias>own</alias></disk></disk_attachment>")
		}
		t.Run(h.name, func(t *testing.T) {
			k.in(t, func() {
				begin := func() (client.Run, error) { return k.startRestore(h.body) }
				killSteps(t, 9, 2, func(n int) bool {
					at := k.killRequest(n, begin)
					if at != "" {
						t.Logf("killed after %s", at)
					}
					k.wholeOrNone(h, order, want, at)
					if now := k.disks(ovirtHotadd); !slices.Equal(now, own) {
						t.Errorf("after %s VM plugged has the disks %q, want %q", at, now, own)
					}
					return at != ""
				})
				k.restore(h.body)
				got := k.called(h.prefix)
				k.same("what was handed over", got, order, want)
				k.drop(h.vm, got)
			})
		})
	}
}
