package ovirtsim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Site is what there is when an engine starts. Names must be unique where the engine wants them to be: those of VMs in a
// data center, all others everywhere.
type Site struct {
	DataCenters []DataCenter
	Labels      []string // affinity labels
	Tags        []string
	// DuplicateMACs lets the MAC pool give an address twice.
	DuplicateMACs bool
}

// DataCenter is a data center of a Site.
type DataCenter struct {
	Name     string
	Level    string // compatibility version, "4.7" by default
	Clusters []Cluster
	Storage  []StorageDomain
	Networks []string // each has a vNIC profile of the same name
}

// Cluster is a cluster of a DataCenter.
type Cluster struct {
	Name  string
	Level string // compatibility version, that of the data center by default
	Hosts []string
	VMs   []VM
}

// StorageDomain is a storage domain of a DataCenter.
type StorageDomain struct {
	Name    string
	Storage string // "nfs" by default, "iscsi", "fcp"
	Kind    string // "data" by default, "iso", "export"
	Status  string // "active" by default
	Backup  bool
	Bytes   int64 // 1 TiB by default
	// LUN is the name of the only LUN that an iSCSI or Fibre Channel domain lies on, as multipath calls it; one is made up by default.
	LUN string
}

// VM is a virtual machine of a Cluster. Its first disk is its boot disk.
type VM struct {
	ID, Name, Description, Comment string

	Up          bool
	Agent       bool   // a guest agent answers
	Origin      string // "ovirt" by default; "managed_hosted_engine" is the engine's own VM
	UEFI        bool
	CPUs        int   // 2 by default
	MemoryBytes int64 // 2 GiB by default
	Tags        []string
	Labels      []string
	Disks       []Disk
	Networks    []string // a NIC each
	// RootPassword is one that the VM's first boot sets; it is in the configuration document.
	RootPassword string
	// Idle VMs have no guest that writes to their disks; movers are such.
	Idle bool
	// Rounds of lab/kvmlab/pattern that the disks hold before anything happens; 4 by default.
	Rounds int
	// Rate is how many rounds a second the guest writes while it runs; 0 is none but those of Engine.Write.
	Rate float64
}

// Disk is a disk of a VM.
type Disk struct {
	ID, Alias string // the alias is "<vm>_Disk<n>" by default

	Bytes     int64  // 16 MiB by default
	Format    string // "cow" by default, "raw"
	Thick     bool   // a raw disk that is allocated at once
	Storage   string // the data center's first data domain by default
	Interface string // "virtio_scsi" by default

	NoTracking bool // incremental backup is not enabled; it never is on raw disks
	Shareable  bool
	LUN        bool
	Illegal    bool
	ReadOnly   bool
}

// MoverComment is the comment by which the driver knows its movers.
const MoverComment = "cairn-mover"

// SmallSite has one of everything and some VMs of each sort: web (up, two disks), db (up, with an agent), archive (down,
// raw), the engine's own VM, one with disks that cannot be protected, and a mover.
func SmallSite() Site {
	mover := VM{Name: "mover1", Comment: MoverComment, Up: true, Agent: true, Idle: true, Networks: []string{"ovirtmgmt"}, Disks: []Disk{{}}}
	return Site{
		Labels: []string{"gold"}, Tags: []string{"prod", "test"},
		DataCenters: []DataCenter{{
			Name: "Default", Networks: []string{"ovirtmgmt", "backend"},
			Storage: []StorageDomain{{Name: "data1"}, {Name: "san1", Storage: "iscsi"}, {Name: "images", Kind: "iso"}},
			Clusters: []Cluster{{Name: "Default", Hosts: []string{"host1", "host2"}, VMs: []VM{
				{Name: "web", Up: true, Tags: []string{"prod"}, Labels: []string{"gold"}, Networks: []string{"ovirtmgmt", "backend"}, Disks: []Disk{{}, {Bytes: 8 << 20}}},
				{Name: "db", Up: true, Agent: true, Tags: []string{"prod"}, Networks: []string{"backend"}, Disks: []Disk{{Bytes: 24 << 20}}, RootPassword: "initial-secret"},
				{Name: "archive", UEFI: true, Tags: []string{"test"}, Networks: []string{"ovirtmgmt"}, Disks: []Disk{{Format: "raw"}, {Storage: "san1"}}},
				{Name: "cluster-node", Up: true, Disks: []Disk{{}, {Shareable: true, Format: "raw"}, {LUN: true, Format: "raw"}}},
				{Name: "HostedEngine", Up: true, Idle: true, Origin: "managed_hosted_engine", Disks: []Disk{{Format: "raw"}}},
				mover,
			}}},
		}},
	}
}

// LargeSite has n VMs with a disk each in two clusters, two thirds of them up, two of them with the same name in different
// data centers, and a mover in each data center.
func LargeSite(n int) Site {
	s := Site{Tags: []string{"prod", "test"}}
	for i := range 2 {
		dc := DataCenter{
			Name: fmt.Sprintf("dc%d", i+1), Networks: []string{fmt.Sprintf("lan%d", i+1)},
			Storage: []StorageDomain{{Name: fmt.Sprintf("store%d", i+1)}},
		}
		cl := Cluster{Name: fmt.Sprintf("cluster%d", i+1), Hosts: []string{fmt.Sprintf("h%d-1", i+1), fmt.Sprintf("h%d-2", i+1), fmt.Sprintf("h%d-3", i+1)}}
		for k := i; k < n; k += 2 {
			v := VM{Name: fmt.Sprintf("vm%04d", k), Up: k%3 != 0, Agent: k%5 != 0, Tags: []string{s.Tags[k%4/3]}, Networks: dc.Networks, Disks: []Disk{{Bytes: 4 << 20}}}
			if k < 2 {
				v.Name = "twin"
			}
			cl.VMs = append(cl.VMs, v)
		}
		cl.VMs = append(cl.VMs, VM{Name: fmt.Sprintf("mover%d", i+1), Comment: MoverComment, Up: true, Idle: true, Networks: dc.Networks, Disks: []Disk{{}}})
		dc.Clusters = []Cluster{cl}
		s.DataCenters = append(s.DataCenters, dc)
	}
	return s
}

// build makes the engine's state of its configuration.
func (e *Engine) build() error {
	for _, u := range e.cfg.Users {
		role := cmp.Or(u.Role, superUser)
		if roleIDs[role] == "" {
			return fmt.Errorf("user %s: there is no role %s", u.Name, role)
		}
		id := e.newID()
		e.users.add(id, &user{id, u.Name, u.Password, role})
	}
	e.templates.add(blankTemplate, &template{blankTemplate, "Blank"})
	e.tags.add(rootTag, &tag{rootTag, "root", "root"})
	for _, name := range e.cfg.Site.Tags {
		id := e.newID()
		e.tags.add(id, &tag{id: id, name: name})
	}
	for _, name := range e.cfg.Site.Labels {
		id := e.newID()
		e.labels.add(id, &label{id: id, name: name})
	}
	pool := &macPool{id: e.newID(), name: "Default", from: "56:6f:1a:2b:00:00", to: "56:6f:1a:2b:ff:ff", duplicates: e.cfg.Site.DuplicateMACs}
	e.pools.add(pool.id, pool)
	for _, dc := range e.cfg.Site.DataCenters {
		if err := e.buildCenter(dc, pool); err != nil {
			return fmt.Errorf("data center %s: %w", dc.Name, err)
		}
	}
	return nil
}

func (e *Engine) buildCenter(spec DataCenter, pool *macPool) error {
	dc := &dataCenter{id: e.newID(), name: spec.Name, level: cmp.Or(spec.Level, "4.7"), pool: pool.id}
	e.centers.add(dc.id, dc)
	for i, s := range spec.Storage {
		d := &domain{
			id: e.newID(), name: s.Name, dc: dc, kind: cmp.Or(s.Kind, "data"), storage: cmp.Or(s.Storage, "nfs"), status: cmp.Or(s.Status, "active"),
			master: i == 0, backup: s.Backup, size: cmp.Or(s.Bytes, 1<<40),
		}
		d.lun = cmp.Or(s.LUN, "36"+d.id[:8]+d.id[24:])
		e.domains.add(d.id, d)
	}
	for _, name := range spec.Networks {
		n := &network{id: e.newID(), name: name, dc: dc}
		e.networks.add(n.id, n)
		p := &profile{id: e.newID(), name: name, network: n}
		e.profiles.add(p.id, p)
	}
	for _, c := range spec.Clusters {
		cl := &cluster{id: e.newID(), name: c.Name, level: cmp.Or(c.Level, dc.level), dc: dc}
		e.clusters.add(cl.id, cl)
		for i, name := range c.Hosts {
			h := &host{id: e.newID(), name: name, address: "127.0.0.1", status: "up", cluster: cl, spm: i == 0}
			e.hosts.add(h.id, h)
		}
		for _, v := range c.VMs {
			if err := e.buildVM(v, cl); err != nil {
				return fmt.Errorf("VM %s: %w", v.Name, err)
			}
		}
	}
	return nil
}

func (e *Engine) buildVM(spec VM, cl *cluster) error {
	v := e.newVM(cl, spec.Name)
	v.id = cmp.Or(spec.ID, v.id)
	v.comment = spec.Comment
	v.description, v.origin, v.agent, v.idle, v.rate = spec.Description, cmp.Or(spec.Origin, "ovirt"), spec.Agent, spec.Idle, spec.Rate
	v.cores, v.memory, v.rounds, v.rootPassword = cmp.Or(spec.CPUs, 2), cmp.Or(spec.MemoryBytes, 2<<30), cmp.Or(spec.Rounds, 4), spec.RootPassword
	v.filled = spec.Idle
	if spec.UEFI {
		v.bios = "q35_ovmf"
	}
	for _, name := range spec.Tags {
		t := e.tagNamed(name)
		if t == nil {
			return fmt.Errorf("there is no tag %s", name)
		}
		v.tags = append(v.tags, t.id)
	}
	for _, name := range spec.Labels {
		l, found := e.labels.find(func(l *label) bool { return l.name == name })
		if !found {
			return fmt.Errorf("there is no label %s", name)
		}
		l.vms = append(l.vms, v.id)
	}
	for i, name := range spec.Networks {
		p, found := e.profiles.find(func(p *profile) bool { return p.name == name && p.network.dc == cl.dc })
		if !found {
			return fmt.Errorf("there is no network %s", name)
		}
		mac, err := e.newMAC(cl.dc.pool)
		if err != nil {
			return err
		}
		n := &nic{id: e.newID(), name: fmt.Sprintf("nic%d", i+1), mac: mac, model: "virtio", profile: p, plugged: true, linked: true}
		v.nics.add(n.id, n)
	}
	for i, d := range spec.Disks {
		if err := e.buildDisk(d, v, i); err != nil {
			return err
		}
	}
	if spec.Up {
		v.status, v.host, v.started = vmUp, e.hostFor(cl), e.clock.Now()
		if v.host == nil {
			return fmt.Errorf("it is up and its cluster has no host")
		}
	}
	e.vms.add(v.id, v)
	return nil
}

// newVM is a VM as it is by default, with its active snapshot. It is not in the engine yet.
func (e *Engine) newVM(cl *cluster, name string) *vm {
	v := &vm{
		id: e.newID(), name: name, cluster: cl, status: vmDown, origin: "ovirt", memory: 1 << 30, sockets: 1, cores: 1, threads: 1, bios: "q35_sea_bios",
		os: "other_linux", timeZone: "Etc/GMT", boot: []string{"hd"}, virtioSCSI: true, made: e.clock.Now(), custom: map[string]string{},
	}
	s := &snapshot{id: e.newID(), description: "Active VM", kind: snapshotActive, status: snapshotOK, made: v.made, disks: map[string]volume{}}
	v.snapshots.add(s.id, s)
	return v
}

func (e *Engine) buildDisk(spec Disk, v *vm, i int) error {
	d := &disk{
		id: cmp.Or(spec.ID, e.newID()), alias: cmp.Or(spec.Alias, fmt.Sprintf("%s_Disk%d", v.name, i+1)), size: cmp.Or(spec.Bytes, 16<<20), status: diskOK, content: "data",
		shareable: spec.Shareable, lun: spec.LUN, active: volume{e.newID(), cmp.Or(spec.Format, "cow"), !spec.Thick},
	}
	d.incremental = !spec.NoTracking && !spec.Shareable && !spec.LUN && d.active.format == "cow"
	if spec.Illegal {
		d.status = diskIllegal
	}
	if !d.lun {
		sd, found := e.domains.find(func(s *domain) bool {
			return s.dc == v.cluster.dc && s.kind == "data" && (spec.Storage == "" || s.name == spec.Storage)
		})
		if !found {
			return fmt.Errorf("disk %s: there is no data domain %q", d.alias, spec.Storage)
		}
		if d.domain = sd; sd.block() && d.active.format == "raw" {
			d.active.sparse = false
		}
	}
	model := cmp.Or(spec.Interface, "virtio_scsi")
	if !slices.Contains(models, model) {
		return fmt.Errorf("disk %s: there is no interface %s", d.alias, strings.ToUpper(model))
	}
	e.disks.add(d.id, d)
	v.attached.add(d.id, &attachment{vm: v, disk: d, active: true, bootable: i == 0, readOnly: spec.ReadOnly, model: model, original: true})
	return nil
}
