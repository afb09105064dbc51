package kvm

import (
	"math/rand/v2"
	"sync"

	"libvirt.org/go/libvirtxml"
)

// A virtio-scsi disk is gone when QEMU says so; nobody asks the guest, and one that has not noticed, or has lost the
// message, goes on with requests to the same address. Whatever is plugged in there next would get them. So an address is
// drawn at random, and those that were given last are not given again: what a late request finds is nothing.

// scsiAddress is a place on a virtio-scsi controller.
type scsiAddress struct{ target, unit uint }

const (
	scsiTargets = 256 // virtio-scsi: one byte
	// scsiUnits is less than the 16,384 there may be: beyond 255 guests and QEMU write the number in different ways.
	scsiUnits = 256
	// restBeforeReuse is how many other disks are plugged into a mover, at least, before an address is given again.
	restBeforeReuse = scsiTargets * scsiUnits / 8
)

// scsiAddresses remembers which addresses were given in which VM. A manager that was restarted remembers nothing; then
// chance has to do, among 65,536.
type scsiAddresses struct {
	random *rand.Rand // nil is the system's; tests seed theirs

	mu sync.Mutex
	vm map[string]*givenAddresses
}

// givenAddresses are in two halves, of which the older one is forgotten when the newer one is full.
type givenAddresses struct{ newer, older map[scsiAddress]bool }

// next gives an address that is not taken, and was not given lately, in a VM; false if there is none.
func (s *scsiAddresses) next(vm string, taken map[scsiAddress]bool) (scsiAddress, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vm == nil {
		s.vm = map[string]*givenAddresses{}
	}
	g := s.vm[vm]
	if g == nil {
		g = &givenAddresses{newer: map[scsiAddress]bool{}}
		s.vm[vm] = g
	}
	if len(g.newer) >= restBeforeReuse {
		g.newer, g.older = map[scsiAddress]bool{}, g.newer
	}
	n := rand.IntN
	if s.random != nil {
		n = s.random.IntN
	}
	const all = scsiTargets * scsiUnits
	for i, from := 0, n(all); i < all; i++ {
		at := (from + i) % all
		a := scsiAddress{target: uint(at / scsiUnits), unit: uint(at % scsiUnits)}
		if !taken[a] && !g.newer[a] && !g.older[a] {
			g.newer[a] = true
			return a, true
		}
	}
	return scsiAddress{}, false
}

// takenAddresses are those on a controller that disks have now.
func takenAddresses(x *libvirtxml.Domain, controller uint) map[scsiAddress]bool {
	taken := map[scsiAddress]bool{}
	for i := range x.Devices.Disks {
		a := x.Devices.Disks[i].Address
		if a == nil || a.Drive == nil || a.Drive.Controller == nil || *a.Drive.Controller != controller || a.Drive.Target == nil {
			continue
		}
		at := scsiAddress{target: *a.Drive.Target}
		if a.Drive.Unit != nil {
			at.unit = *a.Drive.Unit
		}
		taken[at] = true
	}
	return taken
}
