package ovirtsim

// nic is a network interface of a VM.
type nic struct {
	id, name, mac, model string
	profile              *profile // nil: connected to nothing
	plugged, linked      bool
}

func nicRoutes() []route {
	one := func(do func(c *call, v *vm, n *nic) (*reply, error)) handler {
		return withVM(func(c *call, v *vm) (*reply, error) {
			n, found := v.nics.get(c.vars["nic"])
			if !found {
				return nil, notFound("Nic", c.vars["nic"])
			}
			return do(c, v, n)
		})
	}
	return []route{
		get("/vms/:vm/nics", withVM(func(c *call, v *vm) (*reply, error) {
			var out []*node
			for _, n := range v.nics.all() {
				out = append(out, n.node(v))
			}
			return c.plain("nics", out)
		})),
		get("/vms/:vm/nics/:nic", one(func(_ *call, v *vm, n *nic) (*reply, error) { return ok(n.node(v)) })),
		post("/vms/:vm/nics", "configure_vm_network", withVM(func(c *call, v *vm) (*reply, error) {
			if c.body.str("name") == "" {
				return nil, incomplete("Nic", "name", "add")
			}
			n := &nic{id: c.e.newID(), name: c.body.str("name"), model: "virtio", plugged: true, linked: true}
			if err := c.e.fillNIC(c.body, v, n); err != nil {
				return nil, err
			}
			v.nics.add(n.id, n)
			return created(n.node(v))
		})),
		put("/vms/:vm/nics/:nic", "configure_vm_network", one(func(c *call, v *vm, n *nic) (*reply, error) {
			changed := *n
			if err := c.e.fillNIC(c.body, v, &changed); err != nil {
				return nil, err
			}
			*n = changed
			return ok(n.node(v))
		})),
		del("/vms/:vm/nics/:nic", "configure_vm_network", one(func(_ *call, v *vm, n *nic) (*reply, error) {
			v.nics.remove(n.id)
			return gone()
		})),
	}
}

// fillNIC changes what a body names; a NIC without an address gets one.
func (e *Engine) fillNIC(body *node, v *vm, n *nic) (err error) {
	if s := body.str("name"); s != "" {
		if other, dup := v.nics.find(func(o *nic) bool { return o.name == s && o.id != n.id }); dup {
			return conflict("Cannot add Interface. The name %s is already in use.", other.name)
		}
		n.name = s
	}
	if s := body.str("interface"); s != "" {
		n.model = s
	}
	if body.has("vnic_profile") {
		if n.profile = nil; body.id("vnic_profile") != "" {
			p, found := e.profiles.get(body.id("vnic_profile"))
			if !found {
				return notFound("VnicProfile", body.id("vnic_profile"))
			}
			if p.network.dc != v.cluster.dc {
				return conflict("Cannot add Interface. The vNIC profile is not in the cluster's data center.")
			}
			n.profile = p
		}
	}
	if n.plugged, err = body.boolean(n.plugged, "plugged"); err != nil {
		return err
	}
	if n.linked, err = body.boolean(n.linked, "linked"); err != nil {
		return err
	}
	switch mac := body.str("mac", "address"); {
	case mac != "" && mac != n.mac:
		n.mac, err = e.takeMAC(v.cluster.dc.pool, mac)
	case n.mac == "":
		n.mac, err = e.newMAC(v.cluster.dc.pool)
	}
	return err
}

func (n *nic) node(v *vm) *node {
	href := "/vms/" + v.id + "/nics/" + n.id
	out := el("nic", self(href, n.id), txt("name", n.name), txt("interface", n.model), flag("linked", n.linked), flag("plugged", n.plugged),
		sub("mac", txt("address", n.mac)), ref("vm", "vms", v.id))
	if n.profile != nil {
		out.add(ref("vnic_profile", "vnicprofiles", n.profile.id))
	}
	return out
}

// listReportedDevices is what the guest's agent says of its interfaces.
func listReportedDevices(c *call, v *vm) (*reply, error) {
	var out []*node
	for _, n := range v.nics.all() {
		if v.runs() && v.agent {
			href := "/vms/" + v.id + "/reporteddevices/" + n.id
			out = append(out, el("reported_device", self(href, n.id), txt("name", n.name), sub("mac", txt("address", n.mac)), txt("type", "network"),
				sub("ips", sub("ip", txt("address", "192.0.2.10"), txt("version", "v4"))), ref("vm", "vms", v.id)))
		}
	}
	return c.plain("reported_devices", out)
}
