package ovirtsim

import (
	"fmt"
	"net"
	"strings"
)

// network is a logical network.
type network struct {
	id, name string
	dc       *dataCenter
}

// profile is a vNIC profile.
type profile struct {
	id, name string
	network  *network
}

func networkRoutes() []route {
	return []route{
		get("/networks", func(c *call) (*reply, error) {
			var rows []*row
			for _, n := range c.e.networks.all() {
				rows = append(rows, (&row{id: n.id, node: n.node}).field("name", n.name).field("id", n.id).field("datacenter", n.dc.name))
			}
			return c.found("networks", rows)
		}),
		get("/networks/:network", func(c *call) (*reply, error) {
			n, found := c.e.networks.get(c.vars["network"])
			if !found {
				return nil, notFound("Network", c.vars["network"])
			}
			return ok(n.node())
		}),
		get("/networks/:network/vnicprofiles", func(c *call) (*reply, error) {
			return c.plain("vnic_profiles", c.e.profilesOf(c.vars["network"]))
		}),
		get("/vnicprofiles", func(c *call) (*reply, error) { return c.plain("vnic_profiles", c.e.profilesOf("")) }),
		get("/vnicprofiles/:profile", func(c *call) (*reply, error) {
			p, found := c.e.profiles.get(c.vars["profile"])
			if !found {
				return nil, notFound("VnicProfile", c.vars["profile"])
			}
			return ok(p.node())
		}),
	}
}

func (n *network) node() *node {
	href := "/networks/" + n.id
	return el("network", self(href, n.id), txt("name", n.name), txt("description", ""), links(href, "permissions", "vnicprofiles"),
		num("mtu", 0), flag("port_isolation", false), flag("stp", false), sub("usages", txt("usage", "vm")), txt("vdsm_name", n.name),
		ref("data_center", "datacenters", n.dc.id))
}

func (p *profile) node() *node {
	href := "/vnicprofiles/" + p.id
	return el("vnic_profile", self(href, p.id), txt("name", p.name), links(href, "permissions"), sub("pass_through", txt("mode", "disabled")),
		flag("port_mirroring", false), ref("network", "networks", p.network.id))
}

func (e *Engine) networksOf(dc string) (out []*node) {
	for _, n := range e.networks.all() {
		if n.dc.id == dc {
			out = append(out, n.node())
		}
	}
	return out
}

// profilesOf lists the profiles of a network; "" is all.
func (e *Engine) profilesOf(network string) (out []*node) {
	for _, p := range e.profiles.all() {
		if network == "" || p.network.id == network {
			out = append(out, p.node())
		}
	}
	return out
}

// macPool is a range of MAC addresses.
type macPool struct {
	id, name   string
	from, to   string
	duplicates bool
	next       int
}

func macPoolRoutes() []route {
	return []route{
		get("/macpools", func(c *call) (*reply, error) {
			var out []*node
			for _, p := range c.e.pools.all() {
				out = append(out, p.node())
			}
			return c.plain("mac_pools", out)
		}),
		get("/macpools/:pool", func(c *call) (*reply, error) {
			p, found := c.e.pools.get(c.vars["pool"])
			if !found {
				return nil, notFound("MacPool", c.vars["pool"])
			}
			return ok(p.node())
		}),
	}
}

func (p *macPool) node() *node {
	href := "/macpools/" + p.id
	return el("mac_pool", self(href, p.id), txt("name", p.name), links(href, "permissions"), flag("allow_duplicates", p.duplicates), flag("default_pool", true),
		sub("ranges", sub("range", txt("from", p.from), txt("to", p.to))))
}

// macUser returns the NIC that uses an address among the VMs of a pool's data centers, or nil.
func (e *Engine) macUser(pool, mac string) *nic {
	for _, v := range e.vms.all() {
		if v.cluster.dc.pool != pool {
			continue
		}
		for _, n := range v.nics.all() {
			if strings.EqualFold(n.mac, mac) {
				return n
			}
		}
	}
	return nil
}

// newMAC takes the next free address of a pool.
func (e *Engine) newMAC(id string) (string, error) {
	p, ok := e.pools.get(id)
	if !ok {
		return "", notFound("MacPool", id)
	}
	for p.next < 1<<16 {
		mac := fmt.Sprintf("%s:%02x:%02x", p.from[:11], p.next>>8, p.next&0xff)
		p.next++
		if e.macUser(id, mac) == nil {
			return mac, nil
		}
	}
	return "", conflict("Not enough MAC addresses left in MAC Address Pool.")
}

// takeMAC checks an address that somebody chose.
func (e *Engine) takeMAC(pool, mac string) (string, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
		return "", badRequest("Cannot add Interface. The MAC Address %s is not valid.", mac)
	}
	p, ok := e.pools.get(pool)
	if !ok {
		return "", notFound("MacPool", pool)
	}
	if e.macUser(pool, hw.String()) != nil && !p.duplicates {
		return "", conflict("Cannot add Interface. MAC Address %s is in use.", mac)
	}
	return hw.String(), nil
}
