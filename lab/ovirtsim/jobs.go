package ovirtsim

import "time"

// job is what the engine does for one request.
type job struct {
	id, text, correlation string
	status                string
	start, end            time.Time
	visible               bool
}

// keepJobs is how long a job that has ended is shown.
const keepJobs = 10 * time.Minute

func jobRoutes() []route {
	one := func(do func(c *call, j *job) (*reply, error)) handler {
		return func(c *call) (*reply, error) {
			j, found := c.e.jobs.get(c.vars["job"])
			if !found || !j.visible {
				return nil, notFound("Job", c.vars["job"])
			}
			return do(c, j)
		}
	}
	return []route{
		get("/jobs", func(c *call) (*reply, error) {
			var rows []*row
			for _, j := range c.e.jobs.all() {
				if j.visible {
					rows = append(rows, (&row{id: j.id, node: j.node}).field("correlation_id", j.correlation).field("status", j.status).field("description", j.text))
				}
			}
			return c.found("jobs", rows)
		}),
		get("/jobs/:job", one(func(_ *call, j *job) (*reply, error) { return ok(j.node()) })),
		get("/jobs/:job/steps", one(func(c *call, j *job) (*reply, error) { return c.plain("steps", []*node{j.step()}) })),
		get("/jobs/:job/steps/:step", one(func(_ *call, j *job) (*reply, error) { return ok(j.step()) })),
	}
}

// startJob records that something goes on. The caller holds mu.
func (e *Engine) startJob(correlation, text string) *job {
	j := &job{id: e.newID(), text: text, correlation: correlation, status: "started", start: e.clock.Now(), visible: true}
	e.jobs.add(j.id, j)
	if e.strikes(JobsLate, text) {
		j.visible = false
		e.later(3*e.cfg.Pace, func() { j.visible = true })
	}
	return j
}

// endJob records how it ended.
func (e *Engine) endJob(j *job, well bool) {
	j.status, j.end = "finished", e.clock.Now()
	if !well {
		j.status = "failed"
	}
	if e.strikes(JobsPurged, j.text) {
		e.jobs.remove(j.id)
		return
	}
	e.later(keepJobs, func() { e.jobs.remove(j.id) })
}

func (j *job) node() *node {
	href := "/jobs/" + j.id
	return el("job", self(href, j.id), txt("description", j.text), links(href, "steps"), flag("auto_cleared", true), when("end_time", j.end),
		flag("external", false), when("last_updated", later(j.start, j.end)), when("start_time", j.start), txt("status", j.status))
}

func (j *job) step() *node {
	id := j.id[:24] + "000000000001"
	return el("step", self("/jobs/"+j.id+"/steps/"+id, id), txt("description", j.text), when("end_time", j.end), flag("external", false), num("number", 0),
		when("start_time", j.start), txt("status", j.status), txt("type", "executing"), ref("job", "jobs", j.id))
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
