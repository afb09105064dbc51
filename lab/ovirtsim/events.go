package ovirtsim

import (
	"strconv"
	"time"
)

// guestChecked is the code of an event that no engine has: what a simulated guest found when it was booted.
const guestChecked = 9900

// The codes of events that a backup looks for. That of the freezing differs between versions; its text does not.
const (
	snapshotMade       = 68
	snapshotFailed     = 69
	snapshotRemoved    = 356
	snapshotNotRemoved = 357
	failedToFreeze     = 10779
	importNoDisks      = 10210
	importNoNetwork    = 9022
)

// event is a line of the audit log. Its index is its place.
type event struct {
	index          int
	code           int
	severity, text string
	time           time.Time
	correlation    string
	user, vm       string
	origin         string
	custom         int
}

func eventRoutes() []route {
	return []route{
		get("/events", listEvents),
		get("/events/:event", func(c *call) (*reply, error) {
			i, err := strconv.Atoi(c.vars["event"])
			if err != nil || i < 1 || i > len(c.e.events) {
				return nil, notFound("Event", c.vars["event"])
			}
			return ok(c.e.events[i-1].node())
		}),
		post("/events", "inject_external_events", addEvent),
	}
}

// audit adds an event. The caller holds mu.
func (e *Engine) audit(v *event) {
	v.index, v.time = len(e.events)+1, e.clock.Now()
	if v.origin == "" {
		v.origin, v.custom = "oVirt", -1
	}
	e.events = append(e.events, v)
}

// listEvents answers the newest first.
func listEvents(c *call) (*reply, error) {
	from := 0
	if s := c.query.Get("from"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, badRequest("from is no number: %s", s)
		}
		from = n
	}
	var rows []*row
	for _, v := range c.e.events[min(max(from, 0), len(c.e.events)):] {
		r := (&row{id: strconv.Itoa(v.index), node: v.node}).field("severity", v.severity).field("correlation_id", v.correlation).
			field("type", strconv.Itoa(v.code)).field("message", v.text).field("time", v.time.Format(dates)).field("id", strconv.Itoa(v.index)).field("event_vm")
		if x, found := c.e.vms.get(v.vm); found {
			r.field("event_vm", x.name)
		}
		rows = append(rows, r)
	}
	sensitive, err := c.flag("case_sensitive", true)
	if err != nil {
		return nil, err
	}
	q, err := parseSearch(c.query.Get("search"), sensitive)
	if err != nil {
		return nil, err
	}
	if q.sortBy == "" {
		q.sortBy, q.descending = "id", true
	}
	return c.searched("events", rows, q)
}

func (v *event) node() *node {
	id := strconv.Itoa(v.index)
	return el("event", self("/events/"+id, id), num("code", v.code), some("correlation_id", v.correlation), num("custom_id", v.custom), txt("description", v.text),
		num("flood_rate", 30), num("index", v.index), txt("origin", v.origin), txt("severity", v.severity), when("time", v.time),
		ref("user", "users", v.user), ref("vm", "vms", v.vm))
}

// addEvent adds an event of somebody else's.
func addEvent(c *call) (*reply, error) {
	b := c.body
	for _, field := range []string{"origin", "severity", "custom_id", "description"} {
		if b.str(field) == "" {
			return nil, incomplete("Event", "origin, severity, custom_id, description", "add")
		}
	}
	id, err := b.integer(0, "custom_id")
	if err != nil {
		return nil, err
	}
	for _, v := range c.e.events {
		if v.origin == b.str("origin") && v.custom == int(id) {
			return nil, conflict("Cannot add External Event. An event with this origin and custom id exists already.")
		}
	}
	v := &event{code: 9801, severity: b.str("severity"), text: b.str("description"), origin: b.str("origin"), custom: int(id), vm: b.id("vm"), correlation: c.correlation, user: c.user.id}
	c.e.audit(v)
	return created(v.node())
}
