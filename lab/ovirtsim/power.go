package ovirtsim

// startVM is POST /vms/:vm/start.
func startVM(c *call, v *vm) (*reply, error) {
	if err := v.free("run VM"); err != nil {
		return nil, err
	}
	if v.status != vmDown {
		return nil, conflict("Cannot run VM. VM is running.")
	}
	h := c.e.hostFor(v.cluster)
	if h == nil {
		return nil, conflict("Cannot run VM. There is no host that satisfies current scheduling constraints.")
	}
	for _, a := range v.attached.all() {
		switch {
		case a.active && a.disk.status == "illegal":
			return nil, conflict("Cannot run VM. The following disks are in ILLEGAL status: %s.", a.disk.alias)
		case a.active && a.disk.status != diskOK:
			return nil, conflict("Cannot run VM. The following disks are locked: %s. Please try again in a few minutes.", a.disk.alias)
		}
	}
	e, j := c.e, c.e.startJob(c.correlation, "Launching VM "+v.name)
	v.status, v.host = vmWaiting, h
	e.later(e.cfg.Pace, func() {
		v.status, v.started = vmUp, e.clock.Now()
		e.boot(v)
		e.audit(&event{code: 153, severity: "normal", text: "VM " + v.name + " was started.", correlation: c.correlation, vm: v.id})
		e.endJob(j, true)
	})
	return done(ref("vm", "vms", v.id))
}

// stopVM is POST /vms/:vm/stop and /shutdown. A guest of the simulator always obeys.
func stopVM(c *call, v *vm) (*reply, error) {
	force, err := c.body.boolean(false, "force")
	if err != nil {
		return nil, err
	}
	if err := v.free("stop VM"); err != nil {
		return nil, err
	}
	if !v.runs() {
		return nil, conflict("Cannot stop VM. VM is not running.")
	}
	if v.activeBackup() != nil && !force {
		return nil, conflict("Cannot stop VM. The VM is during a backup operation.")
	}
	e, j := c.e, c.e.startJob(c.correlation, "Stopping VM "+v.name)
	v.status = vmGoing
	halt := e.halt(v)
	e.work(halt, func(error) {
		e.later(e.cfg.Pace, func() {
			v.status, v.host, v.stopped, v.frozen = vmDown, nil, e.clock.Now(), false
			e.audit(&event{code: 33, severity: "normal", text: "VM " + v.name + " was powered off.", correlation: c.correlation, vm: v.id})
			e.endJob(j, true)
		})
	})
	return done(ref("vm", "vms", v.id))
}

// freezeVM asks the guest's agent to freeze its file systems.
func freezeVM(c *call, v *vm) (*reply, error) {
	switch {
	case v.status != vmUp:
		return nil, conflict("Cannot freeze guest filesystems. VM is not running.")
	case !v.agent || c.e.strikes(FreezeFails, v.id, v.name):
		c.e.audit(&event{code: failedToFreeze, severity: "warning", text: "Failed to freeze guest filesystems on VM " + v.name + ". Note that using the created snapshot might cause data inconsistency.", correlation: c.correlation, vm: v.id})
		return nil, conflict("Cannot freeze guest filesystems. The guest agent does not respond.")
	}
	v.frozen = true
	return done()
}

// thawVM lets them go on.
func thawVM(c *call, v *vm) (*reply, error) {
	if v.status != vmUp || !v.agent {
		return nil, conflict("Cannot thaw guest filesystems. The guest agent does not respond.")
	}
	v.frozen = false
	return done()
}
