package ovirtsim

import "slices"

// rootTag is the tag below which all others are.
const rootTag = "00000000-0000-0000-0000-000000000000"

// tag is a tag.
type tag struct{ id, name, description string }

func tagRoutes() []route {
	return []route{
		get("/tags", func(c *call) (*reply, error) {
			var out []*node
			for _, t := range c.e.tags.all() {
				out = append(out, t.node("/tags/"+t.id))
			}
			return c.plain("tags", out)
		}),
		get("/tags/:tag", func(c *call) (*reply, error) {
			t, found := c.e.tags.get(c.vars["tag"])
			if !found {
				return nil, notFound("Tag", c.vars["tag"])
			}
			return ok(t.node("/tags/" + t.id))
		}),
		post("/tags", "tag_management", func(c *call) (*reply, error) {
			name := c.body.str("name")
			if name == "" {
				return nil, incomplete("Tag", "name", "add")
			}
			if c.e.tagNamed(name) != nil {
				return nil, conflict("Cannot create Tag. Tag name already exists: %s", name)
			}
			t := &tag{c.e.newID(), name, c.body.str("description")}
			c.e.tags.add(t.id, t)
			return created(t.node("/tags/" + t.id))
		}),
		get("/vms/:vm/tags", withVM(func(c *call, v *vm) (*reply, error) {
			var out []*node
			for _, id := range v.tags {
				if t, found := c.e.tags.get(id); found {
					out = append(out, t.node("/vms/"+v.id+"/tags/"+id))
				}
			}
			return c.plain("tags", out)
		})),
		post("/vms/:vm/tags", "tag_management", withVM(assignTag)),
		del("/vms/:vm/tags/:tag", "tag_management", withVM(func(c *call, v *vm) (*reply, error) {
			i := slices.Index(v.tags, c.vars["tag"])
			if i < 0 {
				return nil, notFound("Tag", c.vars["tag"])
			}
			v.tags = slices.Delete(v.tags, i, i+1)
			return gone()
		})),
	}
}

func (e *Engine) tagNamed(name string) *tag {
	t, _ := e.tags.find(func(t *tag) bool { return t.name == name })
	return t
}

func assignTag(c *call, v *vm) (*reply, error) {
	t, _ := c.e.tags.get(c.body.attr("id"))
	if name := c.body.str("name"); t == nil && name != "" {
		t = c.e.tagNamed(name)
	}
	if t == nil {
		return nil, notFound("Tag", c.body.attr("id")+c.body.str("name"))
	}
	if slices.Contains(v.tags, t.id) {
		return nil, conflict("Cannot attach Tag to VM. The tag is already attached.")
	}
	v.tags = append(v.tags, t.id)
	return created(t.node("/vms/" + v.id + "/tags/" + t.id))
}

func (t *tag) node(href string) *node {
	n := el("tag", self(href, t.id), txt("name", t.name), txt("description", t.description))
	if t.id != rootTag {
		n.add(ref("parent", "tags", rootTag))
	}
	return n
}

// label is an affinity label.
type label struct {
	id, name string
	vms      []string
}

func labelRoutes() []route {
	one := func(do func(c *call, l *label) (*reply, error)) handler {
		return func(c *call) (*reply, error) {
			l, found := c.e.labels.get(c.vars["label"])
			if !found {
				return nil, notFound("AffinityLabel", c.vars["label"])
			}
			return do(c, l)
		}
	}
	return []route{
		get("/affinitylabels", func(c *call) (*reply, error) {
			var out []*node
			for _, l := range c.e.labels.all() {
				out = append(out, l.node("/affinitylabels/"+l.id))
			}
			return c.plain("affinity_labels", out)
		}),
		get("/affinitylabels/:label", one(func(_ *call, l *label) (*reply, error) { return ok(l.node("/affinitylabels/" + l.id)) })),
		get("/affinitylabels/:label/vms", one(func(c *call, l *label) (*reply, error) {
			var out []*node
			for _, id := range l.vms {
				out = append(out, el("vm", self("/affinitylabels/"+l.id+"/vms/"+id, id)))
			}
			return c.plain("vms", out)
		})),
		get("/affinitylabels/:label/hosts", one(func(c *call, _ *label) (*reply, error) { return c.plain("hosts", nil) })),
		post("/affinitylabels/:label/vms", "assign_affinity_label", one(func(c *call, l *label) (*reply, error) {
			v, err := c.e.vm(c.body.attr("id"))
			if err != nil {
				return nil, err
			}
			if !slices.Contains(l.vms, v.id) {
				l.vms = append(l.vms, v.id)
			}
			return created(el("vm", self("/affinitylabels/"+l.id+"/vms/"+v.id, v.id)))
		})),
		get("/vms/:vm/affinitylabels", withVM(func(c *call, v *vm) (*reply, error) {
			var out []*node
			for _, l := range c.e.labels.all() {
				if slices.Contains(l.vms, v.id) {
					out = append(out, l.node("/vms/"+v.id+"/affinitylabels/"+l.id))
				}
			}
			return c.plain("affinity_labels", out)
		})),
		post("/vms/:vm/affinitylabels", "assign_affinity_label", withVM(func(c *call, v *vm) (*reply, error) {
			l, found := c.e.labels.get(c.body.attr("id"))
			if !found {
				return nil, notFound("AffinityLabel", c.body.attr("id"))
			}
			if !slices.Contains(l.vms, v.id) {
				l.vms = append(l.vms, v.id)
			}
			return created(l.node("/vms/" + v.id + "/affinitylabels/" + l.id))
		})),
	}
}

func (l *label) node(href string) *node {
	return el("affinity_label", self(href, l.id), txt("name", l.name), flag("has_implicit_affinity_group", false), flag("read_only", false), links(href, "hosts", "vms"))
}

// blankTemplate is the one every engine has.
const blankTemplate = "00000000-0000-0000-0000-000000000000"

// template is a template; the simulator's have no disks.
type template struct{ id, name string }

func templateRoutes() []route {
	return []route{
		get("/templates", func(c *call) (*reply, error) {
			var rows []*row
			for _, t := range c.e.templates.all() {
				rows = append(rows, (&row{id: t.id, node: t.node}).field("name", t.name).field("id", t.id))
			}
			return c.found("templates", rows)
		}),
		get("/templates/:template", func(c *call) (*reply, error) {
			t, found := c.e.templates.get(c.vars["template"])
			if !found {
				return nil, notFound("Template", c.vars["template"])
			}
			return ok(t.node())
		}),
	}
}

func (t *template) node() *node {
	return el("template", self("/templates/"+t.id, t.id), txt("name", t.name), txt("status", "ok"), num("memory", int64(1<<30)), txt("type", "server"))
}
