package ovirtsim

import (
	"slices"
	"strconv"
	"strings"
)

// addVM is POST /vms: from a template, which is always the blank one, or from a configuration document.
func addVM(c *call) (*reply, error) {
	e, b := c.e, c.body
	cl, err := e.chosenCluster(b)
	if err != nil {
		return nil, err
	}
	document := b.child("initialization", "configuration")
	if b.str("name") == "" && document == nil || cl == nil {
		return nil, incomplete("Vm", "name, cluster.id|name", "add")
	}
	if document != nil {
		return importVM(c, cl, document)
	}
	if id, name := b.id("template"), b.str("template", "name"); id == "" && name == "" {
		return nil, incomplete("Vm", "template.id|name", "add")
	} else if id != blankTemplate && name != "Blank" {
		return nil, notFound("Template", id+name)
	}
	v := e.newVM(cl, b.str("name"))
	if id := b.attr("id"); id != "" {
		v.id = id
	}
	if err := v.describe(b); err != nil {
		return nil, err
	}
	if err := e.mayAdd(v); err != nil {
		return nil, err
	}
	return e.startVMAdd(c, v, "Creating VM "+v.name)
}

func (e *Engine) chosenCluster(b *node) (*cluster, error) {
	if id := b.id("cluster"); id != "" {
		cl, found := e.clusters.get(id)
		if !found {
			return nil, notFound("Cluster", id)
		}
		return cl, nil
	}
	if name := b.str("cluster", "name"); name != "" {
		cl, found := e.clusters.find(func(cl *cluster) bool { return cl.name == name })
		if !found {
			return nil, notFound("Cluster", name)
		}
		return cl, nil
	}
	return nil, nil
}

// mayAdd says what the engine refuses of a new VM.
func (e *Engine) mayAdd(v *vm) error {
	switch {
	case !isID(v.id):
		return badRequest("The id is no UUID: %s", v.id)
	case len(v.name) > 255 || strings.ContainsAny(v.name, " \t\n/:*<>&\"'"):
		return badRequest("Cannot add VM. The name can contain only letters, digits, '-', '_' and '.': %s", v.name)
	case e.vmNamed(v.cluster.dc, v.name) != nil:
		return conflict("Cannot add VM. The VM name is already in use, please choose a unique name and try again.")
	}
	if _, dup := e.vms.get(v.id); dup {
		return conflict("Cannot add VM. VM with the same identifier already exists.")
	}
	return nil
}

// startVMAdd adds a VM, locked at first.
func (e *Engine) startVMAdd(c *call, v *vm, text string) (*reply, error) {
	v.status, v.filled = vmLocked, true
	e.vms.add(v.id, v)
	j := e.startJob(c.correlation, text)
	e.later(e.cfg.Pace, func() {
		v.status = vmDown
		e.audit(&event{code: 53, severity: "normal", text: "VM " + v.name + " creation has been completed.", correlation: c.correlation, vm: v.id})
		e.endJob(j, true)
	})
	return accepted(v.node(e, false))
}

// describe takes the settings that a body names.
func (v *vm) describe(b *node) error {
	for field, where := range map[string]*string{"description": &v.description, "comment": &v.comment} {
		if b.has(field) {
			*where = b.str(field)
		}
	}
	for where, path := range map[*string][]string{&v.bios: {"bios", "type"}, &v.os: {"os", "type"}, &v.timeZone: {"time_zone", "name"}} {
		if s := b.str(path...); s != "" {
			*where = s
		}
	}
	if !slices.Contains(append([]string{"cluster_default"}, biosTypes...), v.bios) {
		return badRequest("Invalid value for bios.type: %s", v.bios)
	}
	sockets, cores, threads := int64(v.sockets), int64(v.cores), int64(v.threads)
	for where, path := range map[*int64][]string{&v.memory: {"memory"}, &sockets: {"cpu", "topology", "sockets"}, &cores: {"cpu", "topology", "cores"}, &threads: {"cpu", "topology", "threads"}} {
		n, err := b.integer(*where, path...)
		if err != nil {
			return err
		}
		if n <= 0 {
			return badRequest("Invalid value for %s: %d", strings.Join(path, "."), n)
		}
		*where = n
	}
	v.sockets, v.cores, v.threads = int(sockets), int(cores), int(threads)
	for where, path := range map[*bool][]string{&v.ha: {"high_availability", "enabled"}, &v.protected: {"delete_protected"}, &v.virtioSCSI: {"virtio_scsi", "enabled"}} {
		value, err := b.boolean(*where, path...)
		if err != nil {
			return err
		}
		*where = value
	}
	v.pinned = b.str("placement_policy", "affinity") == "pinned"
	if devices := b.child("os", "boot", "devices").children("device"); len(devices) > 0 {
		v.boot = nil
		for _, d := range devices {
			v.boot = append(v.boot, strings.TrimSpace(d.text))
		}
	}
	for _, p := range b.child("custom_properties").children("custom_property") {
		v.custom[p.str("name")] = p.str("value")
	}
	return nil
}

// importVM makes a VM of a configuration document.
func importVM(c *call, cl *cluster, document *node) (*reply, error) {
	e := c.e
	fresh, err := c.body.boolean(false, "initialization", "regenerate_ids")
	if err != nil {
		return nil, err
	}
	if document.str("type") != "ovf" {
		return nil, incomplete("Vm", "initialization.configuration.type, initialization.configuration.data", "add")
	}
	root, err := parse(strings.NewReader(document.child("data").textOrEmpty()))
	if err != nil || root == nil || root.name != "Envelope" {
		return nil, conflict("Cannot add VM. The configuration document cannot be read: %v", err)
	}
	content := root.typed("Content", "ovf:VirtualSystem_Type")
	v := e.newVM(cl, content.str("Name"))
	if name := c.body.str("name"); name != "" {
		v.name = name
	}
	if id := content.typed("Section", "ovf:OperatingSystemSection_Type").attr("id"); !fresh {
		v.id = id
	}
	if err := e.mayAdd(v); err != nil {
		return nil, err
	}
	var lost []string
	if err := v.readContent(content); err != nil {
		return nil, err
	}
	hardware := content.typed("Section", "ovf:VirtualHardwareSection_Type")
	for _, item := range hardware.children("Item") {
		if err := e.readItem(v, item, fresh, &lost); err != nil {
			return nil, err
		}
	}
	e.attachImported(c, v, root)
	if len(lost) > 0 {
		e.audit(&event{code: importNoNetwork, severity: "warning", text: "The following networks of VM " + v.name + " are not attached, they do not exist in the cluster: " + strings.Join(lost, ", ") + ".", correlation: c.correlation, vm: v.id})
	}
	return e.startVMAdd(c, v, "Importing VM "+v.name+" from configuration")
}

func (n *node) textOrEmpty() string {
	if n == nil {
		return ""
	}
	return n.text
}

func (v *vm) readContent(n *node) error {
	v.description, v.comment = n.str("Description"), n.str("Comment")
	if s := n.str("TimeZone"); s != "" {
		v.timeZone = s
	}
	if s := n.typed("Section", "ovf:OperatingSystemSection_Type").str("Description"); s != "" {
		v.os = s
	}
	i, err := strconv.Atoi(n.str("BiosType"))
	if err != nil || i < 0 || i >= len(biosTypes) {
		return conflict("Cannot add VM. The configuration document names no known BIOS type: %s", n.str("BiosType"))
	}
	v.bios = biosTypes[i]
	v.ha, v.protected = n.str("AutoStartup") == "true", n.str("DeleteProtected") == "true"
	v.rootPassword = n.child("VmInit").attr("rootPassword")
	return nil
}

// readItem takes a hardware item. NICs get new addresses if ids are made anew.
func (e *Engine) readItem(v *vm, item *node, fresh bool, lost *[]string) error {
	count := func(name string) int {
		n, err := strconv.Atoi(item.str(name))
		if err != nil || n < 1 {
			return 1
		}
		return n
	}
	switch item.str("ResourceType") {
	case ovfCPU:
		v.sockets, v.cores, v.threads = count("num_of_sockets"), count("cpu_per_socket"), count("threads_per_cpu")
	case ovfMemory:
		v.memory = int64(count("VirtualQuantity")) << 20
	case ovfNIC:
		return e.readNIC(v, item, fresh, lost)
	}
	return nil
}

func (e *Engine) readNIC(v *vm, item *node, fresh bool, lost *[]string) (err error) {
	n := &nic{id: item.str("InstanceId"), name: item.str("Name"), model: "virtio", plugged: item.str("IsPlugged") != "false", linked: item.str("Linked") != "false"}
	if fresh || !isID(n.id) {
		n.id = e.newID()
	}
	network, name := item.str("Connection"), item.str("OtherResourceType")
	p, found := e.profiles.find(func(p *profile) bool {
		return p.network.name == network && p.network.dc == v.cluster.dc && (name == "" || p.name == name)
	})
	if n.profile = p; !found {
		if n.profile = nil; network != "" {
			*lost = append(*lost, network)
		}
	}
	if mac := item.str("MACAddress"); mac != "" && !fresh {
		n.mac, err = e.takeMAC(v.cluster.dc.pool, mac)
	} else {
		n.mac, err = e.newMAC(v.cluster.dc.pool)
	}
	if err == nil {
		v.nics.add(n.id, n)
	}
	return err
}

// attachImported attaches the disks that a document names, as far as they float. What fails is only told in an event.
func (e *Engine) attachImported(c *call, v *vm, root *node) {
	var failed []string
	for _, k := range root.typed("Section", "ovf:DiskSection_Type").children("Disk") {
		id, _, _ := strings.Cut(k.attr("fileRef"), "/")
		a := &attachment{vm: v, active: true, bootable: k.attr("boot") == "true", readOnly: k.attr("read-only") == "true", discard: k.attr("pass-discard") == "true", model: "virtio_scsi"}
		for model, word := range ovfModels {
			if word == k.attr("disk-interface") {
				a.model = model
			}
		}
		d, found := e.disks.get(id)
		if a.disk = d; !found || e.attachable(a) != nil {
			failed = append(failed, k.attr("disk-alias"))
			continue
		}
		v.attached.add(d.id, a)
	}
	if len(failed) > 0 {
		e.audit(&event{code: importNoDisks, severity: "warning", text: "Some of the disks of VM " + v.name + " could not be attached on import from configuration: " + strings.Join(failed, ", ") + ".", correlation: c.correlation, vm: v.id})
	}
}
