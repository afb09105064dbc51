package kvm

import (
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TestVolumesOfLongNames: the disks of a VM have volumes of their own, however long its name is.
func TestVolumesOfLongNames(t *testing.T) {
	req := hypervisors.RestoreRequest{Tag: "t1", Mode: hypervisors.RestoreInto}
	seen := map[string]bool{}
	for _, disk := range []string{"vda", "vdb"} {
		name := volumeName(req, hypervisors.RestoreDisk{ID: disk, Name: strings.Repeat("würfel/", 20) + "_" + disk + "_0123abcd"})
		if !strings.HasPrefix(name, marker+"t1-") || !strings.HasSuffix(name, "_"+disk+"_0123abcd") || len(name) > len(marker)+100 || strings.ContainsAny(name, "/ü") {
			t.Errorf("disk %s is in the volume %q", disk, name)
		}
		seen[name] = true
	}
	if len(seen) != 2 {
		t.Errorf("two disks have the volumes %v", seen)
	}
}

func TestWhichVMsGetDisks(t *testing.T) {
	plain := &libvirtxml.Domain{Name: "vm", Devices: &libvirtxml.DomainDeviceList{}}
	scsi := &libvirtxml.Domain{Name: "vm", Devices: &libvirtxml.DomainDeviceList{Controllers: []libvirtxml.DomainController{{Type: "scsi"}}}}
	for _, tt := range []struct {
		name            string
		now, configured *libvirtxml.Domain
		bus             string
		running, saved  bool
		want            string // in the refusal; "" is none
	}{
		{"off", plain, plain, "sata", false, false, ""},
		{"running, virtio", plain, plain, "virtio", true, false, ""},
		{"running, SATA", plain, plain, "sata", true, false, "bus sata"},
		{"running, SCSI", scsi, scsi, "scsi", true, false, ""},
		{"no controller yet", plain, scsi, "scsi", true, false, "no SCSI controller"},
		{"no controller any more", scsi, plain, "scsi", true, false, "no SCSI controller"},
		{"saved", plain, plain, "virtio", false, true, "memory is saved"},
	} {
		err := (&plannedDisk{id: "vdb"}).mayJoin(tt.now, tt.configured, tt.bus, tt.running, tt.saved)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), tt.want) || meaning == "" || advice == "" {
			t.Errorf("%s: %v (%q, %q), want a Conflict with %q", tt.name, err, meaning, advice, tt.want)
		}
	}
}

func TestDiskBesideOthers(t *testing.T) {
	disk := func(dev, serial, wwn string) libvirtxml.DomainDisk {
		return libvirtxml.DomainDisk{Target: &libvirtxml.DomainDiskTarget{Dev: dev, Bus: "virtio"}, Serial: serial, WWN: wwn}
	}
	taken := []libvirtxml.DomainDisk{disk("vda", "s1", "w1"), disk("vdc", "", "")}
	for _, tt := range []struct{ disk, want libvirtxml.DomainDisk }{
		{disk("vda", "s1", "w2"), disk("vdb", "", "w2")},
		{disk("vdb", "s2", "w1"), disk("vdb", "s2", "")},
	} {
		got := tt.disk
		join(&got, taken)
		if got.Target.Dev != tt.want.Target.Dev || got.Target.Bus != "virtio" || got.Serial != tt.want.Serial || got.WWN != tt.want.WWN {
			t.Errorf("%s: %s, serial %q, WWN %q", tt.disk.Target.Dev, got.Target.Dev, got.Serial, got.WWN)
		}
	}
}
