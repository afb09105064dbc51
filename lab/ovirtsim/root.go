package ovirtsim

import (
	"strconv"
	"strings"
)

func rootRoutes() []route { return []route{get("/", getRoot)} }

// version splits "4.5.4" into its numbers.
func version(s string) (major, minor, build int) {
	p := append(strings.Split(s, "."), "0", "0", "0")
	major, _ = strconv.Atoi(p[0])
	minor, _ = strconv.Atoi(p[1])
	build, _ = strconv.Atoi(p[2])
	return major, minor, build
}

// atLeast says whether a version is as new as another one.
func atLeast(s, than string) bool {
	a, b, c := version(s)
	x, y, z := version(than)
	return a > x || a == x && (b > y || b == y && c >= z)
}

// versionOf is a version of two numbers.
func versionOf(name, s string) part {
	major, minor, _ := version(s)
	return sub(name, num("major", major), num("minor", minor))
}

func getRoot(c *call) (*reply, error) {
	e := c.e
	major, minor, build := version(e.cfg.Version)
	up := 0
	for _, v := range e.vms.all() {
		if v.runs() {
			up++
		}
	}
	count := func(name string, active, total int) part {
		return sub(name, num("active", active), num("total", total))
	}
	roots := el("api",
		sub("product_info", txt("instance_id", e.instance), txt("name", "oVirt Engine"), txt("vendor", "ovirt.org"), sub("version",
			num("build", build), txt("full_version", e.cfg.Version+"-1.el8"), num("major", major), num("minor", minor), num("revision", 0))),
		sub("special_objects", ref("blank_template", "templates", blankTemplate), ref("root_tag", "tags", rootTag)),
		sub("summary", count("hosts", e.hosts.len(), e.hosts.len()), count("storage_domains", e.domains.len(), e.domains.len()),
			count("users", e.users.len(), e.users.len()), count("vms", up, e.vms.len())),
		when("time", e.clock.Now()), ref("authenticated_user", "users", c.user.id), ref("effective_user", "users", c.user.id))
	for _, rel := range []string{
		"affinitylabels", "clusters", "datacenters", "disks", "events", "hosts", "imagetransfers", "jobs", "macpools", "networks",
		"permissions", "roles", "storagedomains", "tags", "templates", "users", "vms", "vnicprofiles",
	} {
		roots.add(link(rel, "/"+rel))
	}
	return ok(roots)
}
