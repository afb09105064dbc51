package kvm

import (
	"os"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/google/go-cmp/cmp"
)

func oddDomain(t *testing.T) string {
	t.Helper()
	doc, err := os.ReadFile("testdata/odd.xml")
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func TestDescribe(t *testing.T) {
	x, err := parseDomain(oddDomain(t))
	if err != nil {
		t.Fatal(err)
	}
	vm := describeXML(x)
	disks, nics, notes := vm.Disks, vm.NICs, vm.Notes
	vm.Disks, vm.NICs, vm.Notes = nil, nil, nil
	want := hypervisors.VM{
		ID: "6f8e5c60-0000-4000-8000-000000000001", Name: "odd one", Title: "An odd VM", Description: "with everything",
		Power: hypervisors.PowerOther, Arch: "x86_64", Machine: "q35", Firmware: hypervisors.UEFI, SecureBoot: true,
		NVRAM: "/var/lib/libvirt/qemu/nvram/odd_VARS.fd", TPM: "2.0", CPUs: 3, MemoryBytes: 2 << 30, Agent: true,
		Tags: []string{"gold", "web"}, Metadata: map[string]string{"os": "http://debian.org/debian/12"},
	}
	if diff := cmp.Diff(want, vm); diff != "" {
		t.Errorf("VM (-want +got):\n%s", diff)
	}
	var got []string
	for _, d := range disks {
		why, _, _ := strings.Cut(d.Unprotectable, " (")
		got = append(got, strings.TrimSpace(d.ID+" "+string(d.Kind)+" "+d.Path+" "+strings.Join(d.Chain, ",")+": "+why))
	}
	if diff := cmp.Diff([]string{
		"vda disk /pool/top.qcow2 /pool/base.qcow2:",
		"vdb disk  data:",
		"vdc disk /dev/vg/lv :",
		"sda lun /dev/sdx : a direct LUN is passed through to the guest, and the host can neither freeze nor read it",
		"vdd disk /pool/shared.raw : it is shared between VMs, and freezing one of them does not freeze the disk",
		"vde disk /pool/tools.raw : it is read-only for the VM, so the VM's data is not on it",
		"vdf disk rbd:pool/image : it lies on network storage",
		`vdg disk /pool/x.vmdk : its image format "vmdk" is neither raw nor qcow2`,
		"vdh disk /pool/t.qcow2 : it is transient: its content is thrown away when the VM stops",
		"sdb cdrom /no/such/install.iso : a CD-ROM holds no data of the VM",
		"fda floppy  : floppy disks are not backed up",
	}, got); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	if disks[0].BootOrder != 2 || disks[9].BootOrder != 1 || disks[1].BootOrder != 0 {
		t.Errorf("boot orders of vda %d, sdb %d, vdb %d", disks[0].BootOrder, disks[9].BootOrder, disks[1].BootOrder)
	}
	if diff := cmp.Diff([]hypervisors.NIC{
		{ID: "net0", MAC: "52:54:00:00:00:01", Model: "virtio", Network: "network:default"},
		{ID: "net1", MAC: "52:54:00:00:00:02", Network: "bridge:br0"},
		{ID: "net2", MAC: "52:54:00:00:00:03", Network: "user"},
	}, nics); diff != "" {
		t.Errorf("NICs (-want +got):\n%s", diff)
	}
	all := strings.Join(notes, "\n")
	for _, word := range []string{"TPM", "PCI device", "SCSI device (direct LUN)"} {
		if !strings.Contains(all, word) {
			t.Errorf("notes do not name the %s:\n%s", word, all)
		}
	}
}

// TestNewDomain makes a second VM of the odd one: nothing of it may belong to both.
func TestNewDomain(t *testing.T) {
	x, err := parseDomain(oddDomain(t))
	if err != nil {
		t.Fatal(err)
	}
	p := &restorePlan{
		uuid: "6f8e5c60-0000-4000-8000-000000000002", domain: x, nvram: "/nv/cairn-t1_VARS.fd",
		disks: []plannedDisk{
			{id: "vda", format: hypervisors.Raw, pool: pool{hypervisors.Datastore{Kind: "dir"}}, path: "/new/cairn-t1-vda.raw"},
			{id: "vdc", format: hypervisors.Raw, pool: pool{hypervisors.Datastore{Kind: "logical"}}, path: "/dev/new/cairn-t1-vdc"},
		},
	}
	doc, notes, err := p.newDomain(hypervisors.RestoreRequest{
		Tag: "t1", Mode: hypervisors.RestoreNew, Name: "second",
		Networks: map[string]string{"network:default": "bridge:br9", "bridge:br0": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{
		"000000000001", "00000000000f", "odd one", "top.qcow2", "base.qcow2", "/dev/vg/lv", "52:54:00", "install.iso", "hostdev",
		"/run/odd.agent", "5901", "/var/log/odd.log", "vnet3", "earlier", "shared.raw", "odd_VARS", "network=",
	} {
		if strings.Contains(doc, old) {
			t.Errorf("the new VM still has %q of the original", old)
		}
	}
	y, err := parseDomain(doc)
	if err != nil {
		t.Fatal(err)
	}
	vm := describeXML(y)
	var got []string
	for _, d := range vm.Disks {
		got = append(got, d.ID+" "+string(d.Format)+" "+d.Path)
	}
	if diff := cmp.Diff([]string{"vda raw /new/cairn-t1-vda.raw", "vdc raw /dev/new/cairn-t1-vdc", "sdb raw ", "fda  "}, got); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	if got := []string{vm.ID, vm.Name, vm.NVRAM, vm.NICs[0].Network, vm.NICs[1].Network, vm.NICs[2].Network}; !cmp.Equal(got, []string{
		p.uuid, "second", "/nv/cairn-t1_VARS.fd", "bridge:br9", "user", "user",
	}) {
		t.Errorf("new VM: %q", got)
	}
	m := readMetadata(y.Metadata.XML)
	if m.Restored != "t1" || !cmp.Equal(m.Tags, []string{"gold", "web"}) || m.OS == "" {
		t.Errorf("metadata %+v", m)
	}
	if y.Devices.Serials[0].Source.File.Path != "/var/log/second-odd.log" {
		t.Errorf("serial port writes to %s", y.Devices.Serials[0].Source.File.Path)
	}
	if link := y.Devices.Interfaces[1].Link; link == nil || link.State != "down" {
		t.Errorf("link of the disconnected NIC: %+v", link)
	}
	all := strings.Join(notes, "\n")
	for _, what := range []string{"vdb", "sda", "vdd", "vdf", "install.iso", "bridge:br0", "PCI device"} {
		if !strings.Contains(all, what) {
			t.Errorf("no note tells that %s is missing:\n%s", what, all)
		}
	}
}

func TestNewDomainKeepsMACs(t *testing.T) {
	x, err := parseDomain(oddDomain(t))
	if err != nil {
		t.Fatal(err)
	}
	doc, _, err := (&restorePlan{uuid: newUUID(), domain: x}).newDomain(hypervisors.RestoreRequest{Tag: "t", Name: "n", KeepMACs: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(doc, "52:54:00:00:00:0"); n != 3 {
		t.Errorf("%d addresses are kept, want 3", n)
	}
}

func TestNewUUID(t *testing.T) {
	a, b := newUUID(), newUUID()
	if a == b || checkUUID(a) != nil || a[14] != '4' {
		t.Errorf("new UUIDs %s, %s", a, b)
	}
}
