package kvm

import (
	"math/rand/v2"
	"testing"

	"libvirt.org/go/libvirtxml"
)

// onController makes a domain with a virtio-scsi controller and disks at some of its addresses.
func onController(index uint, at ...scsiAddress) *libvirtxml.Domain {
	x := &libvirtxml.Domain{UUID: "mover", Devices: &libvirtxml.DomainDeviceList{
		Controllers: []libvirtxml.DomainController{{Type: "scsi", Index: &index, Model: "virtio-scsi"}},
	}}
	for i, a := range at {
		x.Devices.Disks = append(x.Devices.Disks, libvirtxml.DomainDisk{
			Target:  &libvirtxml.DomainDiskTarget{Dev: "sd" + letters(i), Bus: "scsi"},
			Address: &libvirtxml.DomainAddress{Drive: &libvirtxml.DomainAddressDrive{Controller: &index, Target: &a.target, Unit: &a.unit}},
		})
	}
	return x
}

func placed(t *testing.T, s *scsiAddresses, x *libvirtxml.Domain) scsiAddress {
	t.Helper()
	var disk libvirtxml.DomainDisk
	place(s, x, &disk)
	if disk.Address == nil || disk.Address.Drive == nil {
		t.Fatalf("placed on bus %q without an address", disk.Target.Bus)
	}
	return scsiAddress{*disk.Address.Drive.Target, *disk.Address.Drive.Unit}
}

// TestAddressesRest plugs and unplugs one disk after the other: an address that a guest may still write to is not given
// to the next disks.
func TestAddressesRest(t *testing.T) {
	const seed1, seed2 = 1, 2
	t.Logf("seed %d, %d", seed1, seed2)
	s := &scsiAddresses{random: rand.New(rand.NewPCG(seed1, seed2))}
	x := onController(0) // each disk is gone before the next one comes
	last := map[scsiAddress]int{}
	for i := range 6 * restBeforeReuse {
		a := placed(t, s, x)
		if before, ok := last[a]; ok && i-before <= restBeforeReuse {
			t.Fatalf("plug %d: address %+v was given %d plugs ago, want more than %d", i, a, i-before, restBeforeReuse)
		}
		last[a] = i
	}
	other := *x
	other.UUID = "another mover"
	if placed(t, s, &other); len(s.vm) != 2 {
		t.Errorf("addresses of %d movers are known, want 2", len(s.vm))
	}
}

// TestAddressesTaken leaves no address free but one.
func TestAddressesTaken(t *testing.T) {
	free := scsiAddress{77, 5}
	var taken []scsiAddress
	for target := range uint(scsiTargets) {
		for unit := range uint(scsiUnits) {
			if a := (scsiAddress{target, unit}); a != free {
				taken = append(taken, a)
			}
		}
	}
	s := &scsiAddresses{}
	x := onController(0, taken...)
	if got := placed(t, s, x); got != free {
		t.Errorf("placed at %+v, want %+v", got, free)
	}
	var disk libvirtxml.DomainDisk
	if place(s, x, &disk); disk.Target.Bus != "virtio" || disk.Address != nil {
		t.Errorf("with no address left it is on bus %q at %+v, want a PCI device", disk.Target.Bus, disk.Address)
	}
	if got := takenAddresses(onController(1, free), 0); len(got) != 0 {
		t.Errorf("another controller's disks count: %+v", got)
	}
}
