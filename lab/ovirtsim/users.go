package ovirtsim

import "slices"

// user may log in.
type user struct {
	id, name, password, role string
}

// The roles of the simulator. SuperUser may do all.
const (
	superUser = "SuperUser"
	viewer    = "UserRole"
	backupper = "VmBackup"
)

// roles are the permits of roles other than SuperUser; every role may look at everything.
var roles = map[string][]string{
	viewer: {"login"},
	backupper: {
		"login", "create_vm", "delete_vm", "edit_vm_properties", "vm_basic_operations", "stop_vm", "manipulate_vm_snapshots", "create_disk",
		"attach_disk", "edit_disk_properties", "delete_disk", "access_image_storage", "backup_disk", "configure_vm_network", "tag_management",
		"assign_affinity_label", "inject_external_events",
	},
}

var roleIDs = map[string]string{
	superUser: "00000000-0000-0000-0000-000000000001",
	viewer:    "00000000-0000-0000-0001-000000000001",
	backupper: "00000000-0000-0000-0002-000000000001",
}

func (u *user) may(permit string) bool {
	return u.role == superUser || slices.Contains(roles[u.role], permit)
}

func userRoutes() []route {
	one := func(do func(c *call, u *user) (*reply, error)) handler {
		return func(c *call) (*reply, error) {
			u, found := c.e.users.get(c.vars["user"])
			if !found {
				return nil, notFound("User", c.vars["user"])
			}
			return do(c, u)
		}
	}
	return []route{
		get("/users", func(c *call) (*reply, error) {
			var rows []*row
			for _, u := range c.e.users.all() {
				rows = append(rows, (&row{id: u.id, node: u.node}).field("usrname", u.name).field("name", u.name).field("id", u.id))
			}
			return c.found("users", rows)
		}),
		get("/users/:user", one(func(_ *call, u *user) (*reply, error) { return ok(u.node()) })),
		get("/users/:user/permissions", one(func(c *call, u *user) (*reply, error) { return c.plain("permissions", []*node{u.permission()}) })),
		get("/users/:user/roles", one(func(c *call, u *user) (*reply, error) { return c.plain("roles", []*node{roleNode(u.role)}) })),
		get("/permissions", func(c *call) (*reply, error) { return c.plain("permissions", c.e.permissions()) }),
		get("/roles", func(c *call) (*reply, error) {
			return c.plain("roles", []*node{roleNode(superUser), roleNode(viewer), roleNode(backupper)})
		}),
		get("/roles/:role", func(c *call) (*reply, error) {
			name, err := roleNamed(c.vars["role"])
			if err != nil {
				return nil, err
			}
			return ok(roleNode(name))
		}),
		get("/roles/:role/permits", func(c *call) (*reply, error) {
			name, err := roleNamed(c.vars["role"])
			if err != nil {
				return nil, err
			}
			permits := roles[name]
			if name == superUser {
				permits = append([]string{"manipulate_permissions", "configure_engine"}, roles[backupper]...)
			}
			var out []*node
			for _, p := range permits {
				out = append(out, el("permit", txt("name", p), flag("administrative", name == superUser)))
			}
			return c.plain("permits", out)
		}),
	}
}

func roleNamed(id string) (string, error) {
	for name, have := range roleIDs {
		if have == id {
			return name, nil
		}
	}
	return "", notFound("Role", id)
}

func roleNode(name string) *node {
	href := "/roles/" + roleIDs[name]
	return el("role", self(href, roleIDs[name]), txt("name", name), flag("administrative", name == superUser), flag("mutable", name == backupper), links(href, "permits"))
}

func (u *user) node() *node {
	href := "/users/" + u.id
	return el("user", self(href, u.id), txt("name", u.name), txt("user_name", u.name), txt("principal", u.name), txt("namespace", "*"),
		links(href, "permissions", "roles"))
}

// permission is the one that a user has on the whole system.
func (u *user) permission() *node {
	return el("permission", self("/permissions/"+u.id, u.id), ref("role", "roles", roleIDs[u.role]), ref("user", "users", u.id))
}

func (e *Engine) permissions() (out []*node) {
	for _, u := range e.users.all() {
		out = append(out, u.permission())
	}
	return out
}
