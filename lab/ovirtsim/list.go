package ovirtsim

import (
	"slices"
	"strconv"
	"strings"
)

// row is an entity of a collection with what can be searched in it.
type row struct {
	id     string
	fields map[string][]string
	node   func() *node
}

// field is a searchable field of a row.
func (r *row) field(name string, values ...string) *row {
	if r.fields == nil {
		r.fields = map[string][]string{}
	}
	r.fields[name] = values
	return r
}

// plain answers a collection in which nothing can be searched.
func (c *call) plain(name string, nodes []*node) (*reply, error) {
	most, err := c.max(-1)
	if err != nil {
		return nil, err
	}
	if most >= 0 && most < len(nodes) {
		nodes = nodes[:most]
	}
	return ok(&node{name: name, kids: nodes})
}

func (c *call) max(absent int) (int, error) {
	s := c.query.Get("max")
	if s == "" {
		return absent, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, badRequest("max is no number: %s", s)
	}
	if n < 0 {
		return absent, nil
	}
	return n, nil
}

// pageRows is how many rows a page has unless max says otherwise.
const pageRows = 100

// found answers a collection that can be searched. Rows that are not sorted come in an order that changes from request to
// request: the database promises none.
func (c *call) found(name string, rows []*row) (*reply, error) {
	sensitive, err := c.flag("case_sensitive", true)
	if err != nil {
		return nil, err
	}
	q, err := parseSearch(c.query.Get("search"), sensitive)
	if err != nil {
		return nil, err
	}
	return c.searched(name, rows, q)
}

func (c *call) searched(name string, rows []*row, q *query) (*reply, error) {
	var hits []*row
	for _, r := range rows {
		yes, err := q.matches(r)
		if err != nil {
			return nil, err
		}
		if yes {
			hits = append(hits, r)
		}
	}
	if q.sortBy == "" {
		c.e.rand.Shuffle(len(hits), func(i, j int) { hits[i], hits[j] = hits[j], hits[i] })
	} else if err := q.sort(hits, rows); err != nil {
		return nil, err
	}
	absent := -1
	if q.page > 0 {
		absent = pageRows
	}
	most, err := c.max(absent)
	if err != nil {
		return nil, err
	}
	if most >= 0 {
		from := min(len(hits), max(q.page-1, 0)*most)
		hits = hits[from:min(len(hits), from+most)]
	}
	out := &node{name: name}
	for _, r := range hits {
		out.kids = append(out.kids, r.node())
	}
	return ok(out)
}

// sort orders hits by the query's field. Of equal ones the order is by id.
func (q *query) sort(hits, all []*row) error {
	if len(all) > 0 && all[0].fields[q.sortBy] == nil {
		return badRequest("Cannot sort by %s", q.sortBy)
	}
	slices.SortFunc(hits, func(a, b *row) int {
		o := compareValues(first(a.fields[q.sortBy]), first(b.fields[q.sortBy]))
		if q.descending {
			o = -o
		}
		if o == 0 {
			o = strings.Compare(a.id, b.id)
		}
		return o
	})
	return nil
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// compareValues compares numbers as such and all else as text.
func compareValues(a, b string) int {
	x, errX := strconv.ParseInt(a, 10, 64)
	y, errY := strconv.ParseInt(b, 10, 64)
	if errX == nil && errY == nil {
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	}
	return strings.Compare(strings.ToLower(a), strings.ToLower(b))
}
