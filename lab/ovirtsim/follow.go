package ovirtsim

import (
	"strings"
)

// follow replaces links in a reply by what they lead to, as the parameter of that name asks: a comma-separated list of
// paths like "disk_attachments.disk".
func (c *call) follow(root *node) error {
	paths := c.query.Get("follow")
	if paths == "" {
		return nil
	}
	for path := range strings.SplitSeq(paths, ",") {
		names := strings.Split(strings.TrimSpace(path), ".")
		targets := []*node{root}
		if root.attr("id") == "" && root.name != "api" {
			targets = root.kids // a collection
		}
		for _, t := range targets {
			if err := c.followOne(t, names); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *call) followOne(n *node, names []string) error {
	if len(names) == 0 {
		return nil
	}
	rel := strings.ReplaceAll(names[0], "_", "")
	for i, k := range n.kids {
		switch {
		case k.name == "link" && k.attr("rel") == rel:
			got, err := c.inner(strings.TrimPrefix(k.attr("href"), api))
			if err != nil {
				return err
			}
			got.name = names[0]
			got.add(attr("href", k.attr("href")))
			n.kids[i] = got
			return c.followAll(got.kids, names[1:])
		case k.name == names[0] && k.attr("id") == "":
			return c.followAll(k.kids, names[1:]) // followed by an earlier path
		case k.name == names[0]:
			if len(k.kids) == 0 {
				got, err := c.inner(strings.TrimPrefix(k.attr("href"), api))
				if err != nil {
					return err
				}
				got.name = names[0]
				n.kids[i] = got
			}
			return c.followOne(n.kids[i], names[1:])
		}
	}
	return badRequest("There is no link %s to follow in %s", names[0], n.name)
}

func (c *call) followAll(nodes []*node, names []string) error {
	for _, n := range nodes {
		if err := c.followOne(n, names); err != nil {
			return err
		}
	}
	return nil
}
