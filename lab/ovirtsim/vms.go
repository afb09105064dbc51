package ovirtsim

import (
	"slices"
	"sync"
	"time"
)

// The states of VMs that the simulator has.
const (
	vmDown    = "down"
	vmUp      = "up"
	vmLocked  = "image_locked"
	vmWaiting = "wait_for_launch"
	vmGoing   = "powering_down"
)

// vm is a virtual machine.
type vm struct {
	id, name, description, comment string

	cluster *cluster
	status  string
	host    *host // where it runs
	origin  string
	custom  map[string]string // custom properties

	memory                  int64
	sockets, cores, threads int
	bios, os, timeZone      string
	boot                    []string
	ha, protected           bool
	virtioSCSI              bool
	agent                   bool // a guest agent answers while it runs
	pinned                  bool // is not migrated
	rootPassword            string

	made, started, stopped time.Time

	nics        table[*nic]
	attached    table[*attachment] // by disk
	snapshots   table[*snapshot]   // the active one is among them
	checkpoints table[*checkpoint] // oldest first
	backups     table[*backup]
	tags        []string

	busy   string // what has locked it; "" is nothing
	frozen bool   // its file systems are

	guest   *guest // what writes to its disks while it runs
	idle    bool   // no guest of it ever writes
	rate    float64
	rounds  int        // written before all else
	filled  bool       // the disks have their first content
	filling sync.Mutex // held while they get it; Engine.mu may be taken under it
}

func (v *vm) runs() bool { return v.status == vmUp || v.status == "paused" }

// free says why a command must wait, if it must.
func (v *vm) free(doing string) error {
	switch {
	case v.busy != "":
		return conflict("Cannot %s. VM %s is locked: %s. Please try again in a few minutes.", doing, v.name, v.busy)
	case v.status == vmLocked:
		return conflict("Cannot %s. VM %s is locked. Please try again in a few minutes.", doing, v.name)
	}
	return nil
}

func (e *Engine) vm(id string) (*vm, error) {
	if v, ok := e.vms.get(id); ok {
		return v, nil
	}
	return nil, notFound("Vm", id)
}

// withVM looks the VM of a path up.
func withVM(do func(c *call, v *vm) (*reply, error)) handler {
	return func(c *call) (*reply, error) {
		v, err := c.e.vm(c.vars["vm"])
		if err != nil {
			return nil, err
		}
		return do(c, v)
	}
}

func vmRoutes() []route {
	return []route{
		get("/vms", listVMs),
		get("/vms/:vm", withVM(func(c *call, v *vm) (*reply, error) {
			full, err := c.flag("all_content", false)
			if err != nil {
				return nil, err
			}
			return ok(v.node(c.e, full))
		})),
		post("/vms", "create_vm", addVM),
		put("/vms/:vm", "edit_vm_properties", withVM(editVM)),
		del("/vms/:vm", "delete_vm", withVM(removeVM)),
		post("/vms/:vm/start", "vm_basic_operations", withVM(startVM)),
		post("/vms/:vm/stop", "stop_vm", withVM(stopVM)),
		post("/vms/:vm/shutdown", "vm_basic_operations", withVM(stopVM)),
		post("/vms/:vm/freezefilesystems", "vm_basic_operations", withVM(freezeVM)),
		post("/vms/:vm/thawfilesystems", "vm_basic_operations", withVM(thawVM)),
		get("/vms/:vm/permissions", withVM(func(c *call, _ *vm) (*reply, error) { return c.plain("permissions", c.e.permissions()) })),
		get("/vms/:vm/graphicsconsoles", withVM(func(c *call, v *vm) (*reply, error) {
			return c.plain("graphics_consoles", []*node{el("graphics_console", attr("id", "766e63"), txt("protocol", "vnc"), ref("vm", "vms", v.id))})
		})),
		get("/vms/:vm/reporteddevices", withVM(listReportedDevices)),
		get("/vms/:vm/cdroms", withVM(func(c *call, _ *vm) (*reply, error) { return c.plain("cdroms", nil) })),
		get("/vms/:vm/applications", withVM(func(c *call, _ *vm) (*reply, error) { return c.plain("applications", nil) })),
		get("/vms/:vm/watchdogs", withVM(func(c *call, _ *vm) (*reply, error) { return c.plain("watchdogs", nil) })),
		get("/vms/:vm/hostdevices", withVM(func(c *call, _ *vm) (*reply, error) { return c.plain("host_devices", nil) })),
		get("/vms/:vm/statistics", withVM(func(c *call, _ *vm) (*reply, error) { return c.plain("statistics", nil) })),
		get("/vms/:vm/sessions", withVM(func(c *call, _ *vm) (*reply, error) { return c.plain("sessions", nil) })),
	}
}

func listVMs(c *call) (*reply, error) {
	full, err := c.flag("all_content", false)
	if err != nil {
		return nil, err
	}
	var rows []*row
	for _, v := range c.e.vms.all() {
		r := &row{id: v.id, node: func() *node { return v.node(c.e, full) }}
		r.field("name", v.name).field("id", v.id).field("status", v.status).field("description", v.description).
			field("cluster", v.cluster.name).field("datacenter", v.cluster.dc.name).field("origin", v.origin).field("comment", v.comment)
		r.field("host")
		if v.host != nil {
			r.field("host", v.host.name)
		}
		var tags, disks []string
		for _, id := range v.tags {
			if t, found := c.e.tags.get(id); found {
				tags = append(tags, t.name)
			}
		}
		for _, a := range v.attached.all() {
			disks = append(disks, a.disk.domain.nameOf())
		}
		rows = append(rows, r.field("tag", tags...).field("storage", disks...))
	}
	return c.found("vms", rows)
}

func (d *domain) nameOf() string {
	if d == nil {
		return "" // a direct LUN lies in none
	}
	return d.name
}

// node is a VM; what is heavy or secret only in full.
func (v *vm) node(e *Engine, full bool) *node {
	href := "/vms/" + v.id
	n := el("vm", self(href, v.id), txt("name", v.name), txt("description", v.description), txt("comment", v.comment),
		actions(href, "start", "stop", "shutdown", "freezefilesystems", "thawfilesystems"),
		links(href, "affinitylabels", "applications", "backups", "cdroms", "checkpoints", "diskattachments", "graphicsconsoles", "hostdevices", "nics",
			"permissions", "reporteddevices", "sessions", "snapshots", "statistics", "tags", "watchdogs"))
	n.add(v.settings()...)
	n.add(when("creation_time", v.made), when("start_time", v.started), when("stop_time", v.stopped), flag("stateless", false), txt("status", v.status),
		txt("origin", v.origin), flag("run_once", false), flag("next_run_configuration_exists", false),
		ref("original_template", "templates", blankTemplate), ref("template", "templates", blankTemplate), ref("cluster", "clusters", v.cluster.id))
	if v.host != nil {
		n.add(ref("host", "hosts", v.host.id))
	}
	if v.runs() && v.agent {
		n.add(txt("fqdn", v.name+".example.org"), sub("guest_operating_system", txt("architecture", "x86_64"), txt("distribution", "Simulated Linux"), txt("family", "Linux")))
	}
	if full {
		n.add(v.initialization(e))
	}
	return n
}

// settings are what a snapshot's node has as well.
func (v *vm) settings() []part {
	boot := el("devices")
	for _, d := range v.boot {
		boot.add(txt("device", d))
	}
	custom := el("custom_properties")
	for _, k := range slices.Sorted(mapKeys(v.custom)) {
		custom.add(sub("custom_property", txt("name", k), txt("value", v.custom[k])))
	}
	affinity := "migratable"
	if v.pinned {
		affinity = "pinned"
	}
	return []part{
		sub("bios", sub("boot_menu", flag("enabled", false)), txt("type", v.bios)),
		sub("cpu", txt("architecture", "x86_64"), sub("topology", num("cores", v.cores), num("sockets", v.sockets), num("threads", v.threads))),
		num("cpu_shares", 0), kid(custom), flag("delete_protected", v.protected),
		sub("display", flag("smartcard_enabled", false), txt("type", "vnc"), num("monitors", 1)),
		sub("high_availability", flag("enabled", v.ha), num("priority", 1)), sub("io", num("threads", 1)), num("memory", v.memory),
		sub("memory_policy", flag("ballooning", true), num("guaranteed", v.memory), num("max", v.memory*4)),
		sub("migration", txt("auto_converge", "inherit"), txt("compressed", "inherit")), flag("multi_queues_enabled", true),
		sub("os", sub("boot", kid(boot)), txt("type", v.os)), sub("placement_policy", txt("affinity", affinity)),
		flag("start_paused", false), sub("time_zone", txt("name", v.timeZone)), flag("tpm_enabled", false), txt("type", "server"), sub("usb", flag("enabled", false)),
		sub("virtio_scsi", flag("enabled", v.virtioSCSI)),
	}
}

// initialization is what a VM's configuration document and its first boot's settings are in. The engine does not give the
// password away here, but in the document.
func (v *vm) initialization(e *Engine) part {
	return sub("initialization", sub("configuration", txt("data", e.ovf(v, nil)), txt("type", "ovf")), flag("regenerate_ssh_keys", false))
}

func editVM(c *call, v *vm) (*reply, error) {
	if name := c.body.str("name"); name != "" && name != v.name {
		if c.e.vmNamed(v.cluster.dc, name) != nil {
			return nil, conflict("Cannot edit VM. The VM name is already in use, please choose a unique name and try again.")
		}
		v.name = name
	}
	protected, err := c.body.boolean(v.protected, "delete_protected")
	if err != nil {
		return nil, err
	}
	ha, err := c.body.boolean(v.ha, "high_availability", "enabled")
	if err != nil {
		return nil, err
	}
	v.protected, v.ha = protected, ha
	for field, where := range map[string]*string{"description": &v.description, "comment": &v.comment} {
		if c.body.has(field) {
			*where = c.body.str(field)
		}
	}
	return ok(v.node(c.e, false))
}

// vmNamed returns the VM of a name in a data center, or nil.
func (e *Engine) vmNamed(dc *dataCenter, name string) *vm {
	v, _ := e.vms.find(func(v *vm) bool { return v.name == name && v.cluster.dc == dc })
	return v
}

// removeVM removes a VM with its disks, or without.
func removeVM(c *call, v *vm) (*reply, error) {
	keep, err := c.flag("detach_only", false)
	if err != nil {
		return nil, err
	}
	if err := v.free("remove VM"); err != nil {
		return nil, err
	}
	switch {
	case v.status != vmDown:
		return nil, conflict("Cannot remove VM. VM is running.")
	case v.protected:
		return nil, conflict("Cannot remove VM. Delete protection is enabled. In order to delete, disable Delete protection first.")
	case v.activeBackup() != nil:
		return nil, conflict("Cannot remove VM. The VM is during a backup operation.")
	case keep && v.snapshots.len() > 1:
		return nil, conflict("Cannot remove VM. VM has snapshots, its disks can only be removed with it.")
	}
	e, j := c.e, c.e.startJob(c.correlation, "Removing VM "+v.name)
	v.status, v.busy = vmLocked, "it is being removed"
	var doomed []*disk
	for _, a := range v.attached.all() {
		if !keep && a.snapshot == "" && !a.disk.shareable && !a.disk.lun {
			if a.disk.status == diskLocked {
				v.status, v.busy = vmDown, ""
				e.endJob(j, false)
				return nil, conflict("Cannot remove VM. Disk %s is locked.", a.disk.alias)
			}
			doomed = append(doomed, a.disk)
			a.disk.status = diskLocked
		}
	}
	e.later(e.cfg.Pace, func() {
		for _, d := range doomed {
			e.dropDisk(d)
		}
		e.vms.remove(v.id)
		for _, l := range e.labels.all() {
			l.vms = slices.DeleteFunc(l.vms, func(id string) bool { return id == v.id })
		}
		e.audit(&event{code: 113, severity: "normal", text: "VM " + v.name + " was successfully removed.", correlation: c.correlation})
		e.endJob(j, true)
	})
	return gone()
}
