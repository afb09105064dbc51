package ovirtsim

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// biosTypes are the numbers of firmware kinds in a configuration document.
var biosTypes = []string{"i440fx_sea_bios", "q35_sea_bios", "q35_ovmf", "q35_secure_boot"}

// ovfTime is how dates are written there.
const ovfTime = "2006/01/02 15:04:05"

// ovfModels are the words for disks' interfaces.
var ovfModels = map[string]string{"virtio": "VirtIO", "virtio_scsi": "VirtIO_SCSI", "ide": "IDE", "sata": "SATA", "spapr_vscsi": "SPAPR_VSCSI"}

// The resource types of hardware items.
const (
	ovfCPU    = "3"
	ovfMemory = "4"
	ovfNIC    = "10"
	ovfDisk   = "17"
	ovfVideo  = "20"
)

// ovf writes the configuration document of a VM as it is, or as it is in a snapshot.
func (e *Engine) ovf(v *vm, s *snapshot) string {
	var disks []ovfLayer
	for _, a := range v.attached.all() {
		layer, in := a.disk.active, a.snapshot == "" && !a.disk.lun
		if s != nil {
			layer, in = s.disks[a.disk.id]
		}
		if in {
			disks = append(disks, ovfLayer{a, layer})
		}
	}
	references, section, networks := el("References"), el("Section", attr("xsi:type", "ovf:DiskSection_Type"), txt("Info", "List of Virtual Disks")), map[string]bool{}
	for _, d := range disks {
		references.add(sub("File", attr("ovf:href", d.a.disk.id+"/"+d.layer.id), attr("ovf:id", d.layer.id), attr("ovf:size", strconv.FormatInt(d.a.disk.totalSize(), 10)),
			attr("ovf:description", d.a.disk.description), attr("ovf:disk_storage_type", "IMAGE"), attr("ovf:cinder_volume_type", "")))
		section.add(kid(d.node(v, s)))
	}
	for _, n := range v.nics.all() {
		references.add(sub("Nic", attr("ovf:id", n.id)))
		if n.profile != nil {
			networks[n.profile.network.name] = true
		}
	}
	list := el("NetworkSection", txt("Info", "List of networks"))
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		list.add(sub("Network", attr("ovf:name", name)))
	}
	root := el("ovf:Envelope", attr("xmlns:ovf", "http://schemas.dmtf.org/ovf/envelope/1/"),
		attr("xmlns:rasd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"),
		attr("xmlns:vssd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"), attr("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance"),
		attr("ovf:version", "4.4.0.0"), kid(references), kid(list), kid(section), kid(e.ovfContent(v, disks)))
	return string(root.encode())
}

// ovfLayer is a disk of a document.
type ovfLayer struct {
	a     *attachment
	layer volume
}

func (d ovfLayer) node(v *vm, s *snapshot) *node {
	d2, kind, format := d.a.disk, "Preallocated", "RAW"
	if d.layer.sparse {
		kind = "Sparse"
	}
	if d.layer.format == "cow" {
		format = "COW"
	}
	at := v.active().id
	if s != nil {
		at = s.id
	}
	yes := func(name string, value bool) part { return attr("ovf:"+name, strconv.FormatBool(value)) }
	const gib = 1 << 30
	return el("Disk", attr("ovf:diskId", d.layer.id), attr("ovf:size", strconv.FormatInt((d2.size+gib-1)/gib, 10)),
		attr("ovf:actual_size", strconv.FormatInt((d2.totalSize()+gib-1)/gib, 10)), attr("ovf:vm_snapshot_id", at), attr("ovf:parentRef", ""),
		attr("ovf:fileRef", d2.id+"/"+d.layer.id), attr("ovf:format", "http://www.vmware.com/specifications/vmdk.html#sparse"), attr("ovf:volume-format", format),
		attr("ovf:volume-type", kind), attr("ovf:disk-interface", ovfModels[d.a.model]), yes("read-only", d.a.readOnly), yes("shareable", d2.shareable), yes("boot", d.a.bootable),
		yes("pass-discard", d.a.discard), attr("ovf:incremental-backup", strconv.FormatBool(d2.incremental)), attr("ovf:disk-alias", d2.alias),
		attr("ovf:disk-description", d2.description), yes("wipe-after-delete", d2.wipe))
}

func (e *Engine) ovfContent(v *vm, disks []ovfLayer) *node {
	n := el("Content", attr("ovf:id", "out"), attr("xsi:type", "ovf:VirtualSystem_Type"),
		txt("Name", v.name), txt("Description", v.description), txt("Comment", v.comment), txt("CreationDate", v.made.Format(ovfTime)), txt("ExportDate", e.clock.Now().Format(ovfTime)),
		flag("DeleteProtected", v.protected), flag("IsSmartcardEnabled", false), txt("TimeZone", v.timeZone), num("default_boot_sequence", 0), num("Generation", 1),
		txt("ClusterCompatibilityVersion", v.cluster.level), num("VmType", 1), num("MinAllocatedMem", v.memory>>20), flag("IsStateless", false),
		flag("AutoStartup", v.ha), num("Priority", 1), num("BiosType", max(0, slices.Index(biosTypes, v.bios))), txt("CustomEmulatedMachine", ""), txt("CustomCpuName", ""),
		num("MaxMemorySizeMb", v.memory>>20*4), num("Origin", 3), txt("ClusterName", v.cluster.name), txt("TemplateId", blankTemplate), txt("TemplateName", "Blank"),
		flag("IsInitilized", true), txt("Quota_ID", blankTemplate))
	if v.rootPassword != "" {
		n.add(sub("VmInit", attr("ovf:hostname", v.name), attr("ovf:rootPassword", v.rootPassword), attr("ovf:regenerateKeys", "false"), attr("ovf:authorizedKeys", "")))
	}
	n.add(sub("Section", attr("ovf:id", v.id), attr("ovf:required", "false"), attr("xsi:type", "ovf:OperatingSystemSection_Type"),
		txt("Info", "Guest Operating System"), txt("Description", v.os)))
	hardware := el("Section", attr("xsi:type", "ovf:VirtualHardwareSection_Type"), txt("Info", fmt.Sprintf("%d CPU, %d Memory", v.sockets*v.cores*v.threads, v.memory>>20)),
		sub("System", txt("vssd:VirtualSystemType", "ENGINE 4.4.0.0")))
	cpus := v.sockets * v.cores * v.threads
	hardware.add(
		rasd("Caption", fmt.Sprintf("%d virtual cpu", cpus), "Description", "Number of virtual CPU", "InstanceId", "1", "ResourceType", ovfCPU,
			"num_of_sockets", strconv.Itoa(v.sockets), "cpu_per_socket", strconv.Itoa(v.cores), "threads_per_cpu", strconv.Itoa(v.threads),
			"max_num_of_vcpus", strconv.Itoa(cpus*16), "VirtualQuantity", strconv.Itoa(cpus)),
		rasd("Caption", fmt.Sprintf("%d MB of memory", v.memory>>20), "Description", "Memory Size", "InstanceId", "2", "ResourceType", ovfMemory,
			"AllocationUnits", "MegaBytes", "VirtualQuantity", strconv.FormatInt(v.memory>>20, 10)))
	for _, d := range disks {
		hardware.add(d.item(v))
	}
	for _, c := range v.nics.all() {
		hardware.add(c.item())
	}
	hardware.add(rasd("Caption", "Graphical Controller", "InstanceId", e.newID(), "ResourceType", ovfVideo, "VirtualQuantity", "1", "Type", "video", "Device", "vga"))
	n.add(kid(hardware))
	return n
}

// rasd is a hardware item of names and values.
func rasd(pairs ...string) part {
	n := el("Item")
	for i := 0; i+1 < len(pairs); i += 2 {
		name := "rasd:" + pairs[i]
		if pairs[i] == "Type" || pairs[i] == "Device" || pairs[i] == "BootOrder" || pairs[i] == "IsPlugged" || pairs[i] == "IsReadOnly" || pairs[i] == "Alias" {
			name = pairs[i] // the engine's own are in no namespace
		}
		n.add(txt(name, pairs[i+1]))
	}
	return kid(n)
}

func (d ovfLayer) item(v *vm) part {
	order := "0"
	if d.a.bootable {
		order = "1"
	}
	return rasd("Caption", d.a.disk.alias, "InstanceId", d.layer.id, "ResourceType", ovfDisk, "HostResource", d.a.disk.id+"/"+d.layer.id, "Parent", blankTemplate,
		"Template", blankTemplate, "ApplicationList", "", "StorageId", d.a.disk.domain.id, "StoragePoolId", v.cluster.dc.id, "Type", "disk", "Device", "disk",
		"BootOrder", order, "IsPlugged", strconv.FormatBool(d.a.active), "IsReadOnly", strconv.FormatBool(d.a.readOnly), "Alias", "ua-"+d.a.disk.id)
}

func (n *nic) item() part {
	name, profile := "", ""
	if n.profile != nil {
		name, profile = n.profile.network.name, n.profile.name
	}
	return rasd("Caption", "Ethernet adapter on "+name, "InstanceId", n.id, "ResourceType", ovfNIC, "OtherResourceType", profile, "ResourceSubType", "3", "Connection", name,
		"Linked", strconv.FormatBool(n.linked), "Name", n.name, "ElementName", n.name, "MACAddress", n.mac, "speed", "10000", "Type", "interface", "Device", "bridge",
		"BootOrder", "0", "IsPlugged", strconv.FormatBool(n.plugged), "IsReadOnly", "false", "Alias", "ua-"+n.id)
}

// typed returns the section of a type.
func (n *node) typed(parent, kind string) *node {
	for _, k := range n.children(parent) {
		for _, a := range k.attrs {
			if a.Name.Local == "type" && a.Value == kind {
				return k
			}
		}
	}
	return nil
}
