package ovirt

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
)

// describe turns a VM of the engine into the neutral description. It is all that is known, whatever is absent.
func describe(x *sdk.Vm, p *places) hypervisors.VM {
	c := p.clusters[idOf(x.Cluster())]
	vm := hypervisors.VM{
		ID: val(x.Id()), Name: val(x.Name()), Description: val(x.Description()), Host: p.hosts[idOf(x.Host())],
		DataCenter: c.centerName, Cluster: c.name, Power: powerOf(val(x.Status())), Arch: cmp.Or(architecture(x), c.architecture),
		CPUs: processors(x), MemoryBytes: sized(x.Memory()), Disks: []hypervisors.Disk{}, Agent: hasAgent(x),
		Labels: slices.Sorted(slices.Values(p.labels[val(x.Id())])), Metadata: map[string]string{},
	}
	vm.Machine, vm.Firmware, vm.SecureBoot = firmware(x, c)
	if val(x.TpmEnabled()) {
		vm.TPM = "2.0"
	}
	for _, t := range items(x.Tags()) {
		vm.Tags = append(vm.Tags, val(t.Name()))
	}
	slices.Sort(vm.Tags)
	for _, a := range items(x.DiskAttachments()) {
		if disk, ok := describeDisk(a, p); ok {
			vm.Disks = append(vm.Disks, disk)
		}
	}
	slices.SortStableFunc(vm.Disks, func(a, b hypervisors.Disk) int {
		return cmp.Or(b.BootOrder-a.BootOrder, cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	for _, n := range items(x.Nics()) {
		vm.NICs = append(vm.NICs, describeNIC(n, p))
	}
	slices.SortFunc(vm.NICs, func(a, b hypervisors.NIC) int { return cmp.Compare(a.ID, b.ID) })
	if os, ok := x.Os(); ok && val(os.Type()) != "" {
		vm.Metadata["os"] = val(os.Type())
	}
	if t := idOf(x.Template()); t != "" && t != blankTemplate {
		vm.Metadata["template"] = t
	}
	vm.Unprotectable = unprotectable(x)
	vm.Notes = notes(x, vm)
	return vm
}

// blankTemplate is the id of the template that every engine has, and that VMs of no template have.
const blankTemplate = "00000000-0000-0000-0000-000000000000"

func powerOf(s sdk.VmStatus) hypervisors.Power {
	switch s {
	case sdk.VMSTATUS_UP, sdk.VMSTATUS_POWERING_UP, sdk.VMSTATUS_POWERING_DOWN, sdk.VMSTATUS_REBOOT_IN_PROGRESS, sdk.VMSTATUS_MIGRATING,
		sdk.VMSTATUS_WAIT_FOR_LAUNCH:
		return hypervisors.PowerOn
	case sdk.VMSTATUS_DOWN, sdk.VMSTATUS_IMAGE_LOCKED:
		return hypervisors.PowerOff
	case sdk.VMSTATUS_PAUSED, sdk.VMSTATUS_SUSPENDED:
		return hypervisors.PowerPaused
	}
	return hypervisors.PowerOther
}

func architecture(x *sdk.Vm) string {
	if cpu, ok := x.Cpu(); ok {
		return string(val(cpu.Architecture()))
	}
	return ""
}

func processors(x *sdk.Vm) int {
	cpu, ok := x.Cpu()
	if !ok {
		return 1
	}
	t, ok := cpu.Topology()
	if !ok {
		return 1
	}
	n := int64(1)
	for _, part := range []int64{val(t.Sockets()), val(t.Cores()), val(t.Threads())} {
		n *= min(max(part, 1), 1<<12)
	}
	return int(n)
}

// firmware reads what a BIOS type says of both machine and firmware. "cluster_default" is the cluster's.
func firmware(x *sdk.Vm, c cluster) (machine string, f hypervisors.Firmware, secure bool) {
	kind := c.bios
	if b, ok := x.Bios(); ok {
		if t := val(b.Type()); t != "" && t != sdk.BIOSTYPE_CLUSTER_DEFAULT {
			kind = t
		}
	}
	machine, f = "pc", hypervisors.BIOS
	if strings.HasPrefix(string(kind), "q35") {
		machine = "q35"
	}
	if kind == sdk.BIOSTYPE_Q35_OVMF || kind == sdk.BIOSTYPE_Q35_SECURE_BOOT {
		f = hypervisors.UEFI
	}
	return cmp.Or(val(x.CustomEmulatedMachine()), machine), f, kind == sdk.BIOSTYPE_Q35_SECURE_BOOT
}

// hasAgent says whether the guest agent reports to the engine.
func hasAgent(x *sdk.Vm) bool {
	_, ok := x.GuestOperatingSystem()
	return ok || val(x.Fqdn()) != ""
}

func describeDisk(a *sdk.DiskAttachment, p *places) (hypervisors.Disk, bool) {
	d, ok := a.Disk()
	if !ok {
		return hypervisors.Disk{}, false
	}
	id := cmp.Or(val(d.Id()), val(a.Id()))
	if !goodID.MatchString(id) {
		return hypervisors.Disk{}, false
	}
	out := hypervisors.Disk{
		ID: id, Name: cmp.Or(val(d.Alias()), val(d.Name())), Kind: hypervisors.KindDisk, Bus: string(val(a.Interface())),
		SizeBytes: sized(d.ProvisionedSize()), UsedBytes: max(sized(d.TotalSize()), sized(d.ActualSize())),
		ReadOnly: val(a.ReadOnly()), Shareable: val(d.Shareable()), Format: formatOf(val(d.Format())),
	}
	if val(a.Bootable()) {
		out.BootOrder = 1
	}
	for _, s := range items(d.StorageDomains()) {
		out.Datastore = p.stores[val(s.Id())].Name
	}
	if val(d.StorageType()) == sdk.DISKSTORAGETYPE_LUN {
		out.Kind, out.Format = hypervisors.KindLUN, ""
		if lun, ok := d.LunStorage(); ok && out.SizeBytes == 0 {
			for _, u := range items(lun.LogicalUnits()) {
				out.SizeBytes = sized(u.Size())
			}
		}
	}
	out.Unprotectable = diskUnprotectable(a, d)
	return out, true
}

func formatOf(f sdk.DiskFormat) hypervisors.DiskFormat {
	switch f {
	case sdk.DISKFORMAT_COW:
		return hypervisors.QCOW2
	case sdk.DISKFORMAT_RAW:
		return hypervisors.Raw
	}
	return ""
}

// diskUnprotectable says why the engine cannot freeze a disk; "" if it can.
func diskUnprotectable(a *sdk.DiskAttachment, d *sdk.Disk) string {
	content := val(d.ContentType())
	switch kind := val(d.StorageType()); {
	case kind == sdk.DISKSTORAGETYPE_LUN:
		return "it is a direct LUN: the engine passes it through to the guest and cannot freeze it"
	case kind != "" && kind != sdk.DISKSTORAGETYPE_IMAGE:
		return fmt.Sprintf("it lies on storage of the type %s, which the engine offers no backup of", kind)
	case val(d.Shareable()):
		return "it is shareable: the engine makes no snapshot of a disk that several VMs write to"
	case content != "" && content != sdk.DISKCONTENTTYPE_DATA:
		return fmt.Sprintf("it is no data disk but %s of the engine's", content)
	case val(a.ReadOnly()):
		return "it is attached read-only: the engine leaves such a disk out of snapshots"
	case val(d.Status()) == sdk.DISKSTATUS_ILLEGAL:
		return "the engine says that its image is illegal: an operation on it has failed and was not repaired"
	case sized(d.ProvisionedSize()) == 0:
		return "the engine says that it has no bytes"
	}
	return ""
}

func describeNIC(n *sdk.Nic, p *places) hypervisors.NIC {
	out := hypervisors.NIC{ID: val(n.Name()), Model: string(val(n.Interface())), Network: p.profiles[idOf(n.VnicProfile())].name}
	if mac, ok := n.Mac(); ok {
		out.MAC = val(mac.Address())
	}
	return out
}

// unprotectable says why a VM is out of the question.
func unprotectable(x *sdk.Vm) string {
	switch val(x.Origin()) {
	case "hosted_engine", "managed_hosted_engine":
		return "it is the VM that the engine itself runs in; the engine cannot freeze itself, engine-backup saves it"
	case "external":
		return "it was started on its host by something else than the engine, which does not manage it"
	}
	if val(x.Stateless()) {
		return "it is stateless: what it writes is thrown away when it stops, and the engine makes no snapshot of it"
	}
	return ""
}

// notes are what an admin should know of a VM before a restore point of it is needed.
func notes(x *sdk.Vm, vm hypervisors.VM) (out []string) {
	if vm.TPM != "" || vm.SecureBoot {
		out = append(out, "What the VM's TPM and its UEFI variables hold is not part of a backup: the engine gives it to nobody.")
	}
	if val(x.NextRunConfigurationExists()) {
		out = append(out, "The VM has changes that apply from its next start; the backup has its present configuration.")
	}
	if untracked := untrackedDisks(x); len(untracked) > 0 {
		out = append(out, "Incremental backup is not enabled for "+strings.Join(untracked, ", ")+"; what changed on them is found by reading them as a whole.")
	}
	return out
}

// untrackedDisks names the disks that the engine keeps no record of changes of.
func untrackedDisks(x *sdk.Vm) (out []string) {
	for _, a := range items(x.DiskAttachments()) {
		d, ok := a.Disk()
		if !ok || diskUnprotectable(a, d) != "" || val(d.Backup()) == sdk.DISKBACKUP_INCREMENTAL {
			continue
		}
		out = append(out, cmp.Or(val(d.Alias()), val(d.Name()), val(d.Id())))
	}
	slices.Sort(out)
	return out
}
