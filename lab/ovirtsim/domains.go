package ovirtsim

// domain is a storage domain.
type domain struct {
	id, name string
	dc       *dataCenter // nil when unattached
	kind     string      // data, iso, export
	storage  string      // nfs, iscsi, fcp
	status   string
	master   bool
	backup   bool
	size     int64
	lun      string // its name; "" is none that lies on one
}

// block says whether volumes are logical volumes.
func (d *domain) block() bool { return d.storage == "iscsi" || d.storage == "fcp" }

func domainRoutes() []route {
	one := func(do func(c *call, d *domain) (*reply, error)) handler {
		return func(c *call) (*reply, error) {
			d, err := c.e.domain(c.vars["sd"])
			if err != nil {
				return nil, err
			}
			return do(c, d)
		}
	}
	return []route{
		get("/storagedomains", func(c *call) (*reply, error) {
			var rows []*row
			for _, d := range c.e.domains.all() {
				r := (&row{id: d.id, node: func() *node { return d.node(c.e) }}).field("name", d.name).field("id", d.id).field("type", d.storage).field("status", d.status)
				if d.dc != nil {
					r.field("datacenter", d.dc.name)
				} else {
					r.field("datacenter")
				}
				rows = append(rows, r)
			}
			return c.found("storage_domains", rows)
		}),
		get("/storagedomains/:sd", one(func(c *call, d *domain) (*reply, error) { return ok(d.node(c.e)) })),
		get("/storagedomains/:sd/disks", one(func(c *call, d *domain) (*reply, error) {
			var out []*node
			for _, k := range c.e.disks.all() {
				if k.domain == d {
					out = append(out, k.node(c.e, false))
				}
			}
			return c.plain("disks", out)
		})),
		get("/storagedomains/:sd/diskprofiles", one(func(c *call, d *domain) (*reply, error) {
			return c.plain("disk_profiles", []*node{el("disk_profile", attr("id", d.id), txt("name", d.name), ref("storage_domain", "storagedomains", d.id))})
		})),
		get("/storagedomains/:sd/disksnapshots", one(listDiskSnapshots)),
		get("/storagedomains/:sd/permissions", one(func(c *call, _ *domain) (*reply, error) { return c.plain("permissions", nil) })),
	}
}

func (e *Engine) domain(id string) (*domain, error) {
	if d, ok := e.domains.get(id); ok {
		return d, nil
	}
	return nil, notFound("StorageDomain", id)
}

// used is what the domain's disks have allocated, as the engine knows it.
func (e *Engine) used(d *domain) (sum int64) {
	for _, k := range e.disks.all() {
		if k.domain == d {
			sum += k.totalSize()
		}
	}
	return sum
}

// node is a domain at the root, where its status stands only while it is in no data center.
func (d *domain) node(e *Engine) *node {
	href := "/storagedomains/" + d.id
	used := min(e.used(d), d.size)
	n := el("storage_domain", self(href, d.id), txt("name", d.name), txt("description", ""), links(href, "diskprofiles", "disks", "disksnapshots", "permissions"),
		num("available", d.size-used), num("used", used), num("committed", used), num("block_size", 512), flag("backup", d.backup),
		num("critical_space_action_blocker", 5), num("warning_low_space_indicator", 10), flag("discard_after_delete", false), txt("external_status", "ok"),
		flag("master", d.master), d.where(), txt("storage_format", "v5"), flag("supports_discard", false), flag("supports_discard_zeroes_data", false),
		txt("type", d.kind), flag("wipe_after_delete", false))
	if d.dc == nil {
		n.add(txt("status", "unattached"))
	} else {
		n.add(sub("data_centers", ref("data_center", "datacenters", d.dc.id)))
	}
	return n
}

func (d *domain) where() part {
	if d.block() {
		return sub("storage", txt("type", d.storage), sub("volume_group", attr("id", d.id), txt("name", d.id), sub("logical_units",
			sub("logical_unit", attr("id", d.lun), num("size", d.size), txt("volume_group_id", d.id), txt("vendor_id", "LIO-ORG"), txt("product_id", d.name)))))
	}
	return sub("storage", txt("type", d.storage), txt("address", "nfs.example.org"), txt("path", "/exports/"+d.name), txt("nfs_version", "auto"))
}

// attachedNode is a domain below its data center, where its status stands.
func (d *domain) attachedNode(e *Engine) *node {
	n := d.node(e)
	n.attrs = nil
	n.add(self("/datacenters/"+d.dc.id+"/storagedomains/"+d.id, d.id), txt("status", d.status), ref("data_center", "datacenters", d.dc.id))
	return n
}

func (e *Engine) attachedDomains(dc *dataCenter) (out []*node) {
	for _, d := range e.domains.all() {
		if d.dc == dc {
			out = append(out, d.attachedNode(e))
		}
	}
	return out
}
