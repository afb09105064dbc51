package ovirtsim

// dataCenter is a data center.
type dataCenter struct {
	id, name, level, pool string
}

func dataCenterRoutes() []route {
	return []route{
		get("/datacenters", func(c *call) (*reply, error) {
			var rows []*row
			for _, d := range c.e.centers.all() {
				rows = append(rows, (&row{id: d.id, node: d.node}).field("name", d.name).field("id", d.id).field("status", "up"))
			}
			return c.found("data_centers", rows)
		}),
		get("/datacenters/:dc", func(c *call) (*reply, error) {
			d, err := c.e.center(c.vars["dc"])
			if err != nil {
				return nil, err
			}
			return ok(d.node())
		}),
		get("/datacenters/:dc/clusters", func(c *call) (*reply, error) {
			var out []*node
			for _, cl := range c.e.clusters.all() {
				if cl.dc.id == c.vars["dc"] {
					out = append(out, cl.node())
				}
			}
			return c.plain("clusters", out)
		}),
		get("/datacenters/:dc/networks", func(c *call) (*reply, error) {
			return c.plain("networks", c.e.networksOf(c.vars["dc"]))
		}),
		get("/datacenters/:dc/storagedomains", func(c *call) (*reply, error) {
			d, err := c.e.center(c.vars["dc"])
			if err != nil {
				return nil, err
			}
			return c.plain("storage_domains", c.e.attachedDomains(d))
		}),
		get("/datacenters/:dc/storagedomains/:sd", func(c *call) (*reply, error) {
			s, err := c.e.domain(c.vars["sd"])
			if err != nil {
				return nil, err
			}
			if s.dc == nil || s.dc.id != c.vars["dc"] {
				return nil, notFound("StorageDomain", s.id)
			}
			return ok(s.attachedNode(c.e))
		}),
	}
}

func (e *Engine) center(id string) (*dataCenter, error) {
	if d, ok := e.centers.get(id); ok {
		return d, nil
	}
	return nil, notFound("DataCenter", id)
}

func (d *dataCenter) node() *node {
	href := "/datacenters/" + d.id
	return el("data_center", self(href, d.id), txt("name", d.name), txt("description", ""),
		links(href, "clusters", "networks", "permissions", "storagedomains"),
		flag("local", false), txt("quota_mode", "disabled"), txt("status", "up"), txt("storage_format", "v5"),
		sub("supported_versions", versionOf("version", d.level)), versionOf("version", d.level), ref("mac_pool", "macpools", d.pool))
}

// cluster is a cluster.
type cluster struct {
	id, name, level string
	dc              *dataCenter
}

func clusterRoutes() []route {
	one := func(node func(c *call, cl *cluster) (*reply, error)) handler {
		return func(c *call) (*reply, error) {
			cl, ok := c.e.clusters.get(c.vars["cluster"])
			if !ok {
				return nil, notFound("Cluster", c.vars["cluster"])
			}
			return node(c, cl)
		}
	}
	return []route{
		get("/clusters", func(c *call) (*reply, error) {
			var rows []*row
			for _, cl := range c.e.clusters.all() {
				rows = append(rows, (&row{id: cl.id, node: cl.node}).field("name", cl.name).field("id", cl.id).field("datacenter", cl.dc.name))
			}
			return c.found("clusters", rows)
		}),
		get("/clusters/:cluster", one(func(_ *call, cl *cluster) (*reply, error) { return ok(cl.node()) })),
		get("/clusters/:cluster/networks", one(func(c *call, cl *cluster) (*reply, error) {
			return c.plain("networks", c.e.networksOf(cl.dc.id))
		})),
		get("/clusters/:cluster/affinitygroups", one(func(c *call, _ *cluster) (*reply, error) { return c.plain("affinity_groups", nil) })),
		get("/clusters/:cluster/permissions", one(func(c *call, _ *cluster) (*reply, error) { return c.plain("permissions", nil) })),
	}
}

func (cl *cluster) node() *node {
	href := "/clusters/" + cl.id
	return el("cluster", self(href, cl.id), txt("name", cl.name), txt("description", ""),
		links(href, "affinitygroups", "networks", "permissions"),
		flag("ballooning_enabled", true), txt("bios_type", "q35_sea_bios"), sub("cpu", txt("architecture", "x86_64"), txt("type", "Intel Westmere Family")),
		sub("memory_policy", sub("over_commit", num("percent", 100)), sub("transparent_hugepages", flag("enabled", true))),
		flag("gluster_service", false), flag("virt_service", true), flag("threads_as_cores", false), txt("switch_type", "legacy"),
		versionOf("version", cl.level), ref("data_center", "datacenters", cl.dc.id), ref("mac_pool", "macpools", cl.dc.pool))
}

// host is a hypervisor.
type host struct {
	id, name, address, status string
	cluster                   *cluster
	spm                       bool
}

func hostRoutes() []route {
	return []route{
		get("/hosts", func(c *call) (*reply, error) {
			var rows []*row
			for _, h := range c.e.hosts.all() {
				rows = append(rows, (&row{id: h.id, node: h.node}).field("name", h.name).field("id", h.id).field("status", h.status).
					field("cluster", h.cluster.name).field("datacenter", h.cluster.dc.name))
			}
			return c.found("hosts", rows)
		}),
		get("/hosts/:host", func(c *call) (*reply, error) {
			h, found := c.e.hosts.get(c.vars["host"])
			if !found {
				return nil, notFound("Host", c.vars["host"])
			}
			return ok(h.node())
		}),
	}
}

func (h *host) node() *node {
	href := "/hosts/" + h.id
	spm := "none"
	if h.spm {
		spm = "spm"
	}
	return el("host", self(href, h.id), txt("name", h.name), txt("comment", ""), txt("address", h.address), ref("cluster", "clusters", h.cluster.id),
		sub("cpu", txt("name", "Simulated CPU"), sub("topology", num("cores", 8), num("sockets", 2), num("threads", 2)), txt("type", "Intel Westmere Family")),
		txt("external_status", "ok"), txt("kdump_status", "disabled"), num("memory", int64(256<<30)), num("port", 54321), txt("protocol", "stomp"),
		sub("spm", num("priority", 5), txt("status", spm)), txt("status", h.status), txt("type", "rhel"), flag("update_available", false),
		sub("version", num("build", 0), txt("full_version", "vdsm-4.50.5-1.el8"), num("major", 4), num("minor", 50), num("revision", 5)))
}

// hostFor returns a host of a cluster that is up, or nil. VMs and transfers are spread by their number.
func (e *Engine) hostFor(cl *cluster) *host {
	var up []*host
	for _, h := range e.hosts.all() {
		if h.cluster == cl && h.status == "up" {
			up = append(up, h)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[e.rand.IntN(len(up))]
}
