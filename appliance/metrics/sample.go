package metrics

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Sample is how the appliance is at one moment. What could not be told is nil, and its series are then absent.
type Sample struct {
	VMs          []VM
	Connections  []Connection
	Repositories []Repository
	Movers       []Mover
	Tasks        map[string]int // by state
	Leftover     *int           // owed clean-ups of tasks that have ended
	Coverage     []Coverage
	Protections  map[string]int // VMs by how well they are protected
}

// Coverage is how well a VM is protected.
type Coverage struct {
	ID, Name, Connection, Policy string
	Unprotected                  bool     // no policy covers it, and it is not excluded
	RPO                          *float64 // the age of the newest good restore point, 1 is what was promised; nil when one of them is not there
}

// VM is one virtual machine. A nil time never was.
type VM struct {
	ID, Name, Connection      string
	LastSuccess, LastVerified *time.Time
	LastOK                    *bool // whether the last backup succeeded; nil when there was none
}

// Connection is one connection; a nil Up is not known yet.
type Connection struct {
	Name, Platform string
	Up             *bool
	VMs            int
	LastInventory  *time.Time
}

// Repository is one repository; nil members could not be told.
type Repository struct {
	Name                         string
	Up                           bool
	Usage                        *Usage
	DamagedPacks, DamagedPoints  int
	LastCollect, LastVerified    *time.Time
	MembersMissing, ObjectsBelow *int // of a set
}

// Usage is what a repository holds.
type Usage struct {
	UsedBytes, LogicalBytes, FreeBytes int64
	RestorePoints, Packs               int
}

// Mover is one mover that has not been revoked.
type Mover struct {
	Name      string
	Up        bool
	Transfers int
}

// Source tells how the appliance is.
type Source interface {
	// Measure returns what it can tell; the errors are for the log. VMs are left out unless they are wanted.
	Measure(ctx context.Context, vms bool) (Sample, []error)
}

// sampleTime bounds how long a reading may take; Prometheus itself waits 10 seconds unless told otherwise.
const sampleTime = 9 * time.Second

// gauge is a series that is read from a sample.
type gauge struct{ desc *prometheus.Desc }

func newGauge(name, help string, labels ...string) gauge {
	return gauge{prometheus.NewDesc(prefix+"_"+name, help, labels, nil)}
}

func (g gauge) set(to chan<- prometheus.Metric, v float64, labels ...string) {
	for i := range labels { // names come from platforms and may hold anything
		labels[i] = strings.ToValidUTF8(labels[i], "\ufffd")
	}
	to <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, v, labels...)
}

// at sets a time; one that never was is absent.
func (g gauge) at(to chan<- prometheus.Metric, t *time.Time, labels ...string) {
	if t != nil && !t.IsZero() {
		g.set(to, float64(t.UnixMilli())/1000, labels...)
	}
}

// is sets 1 or 0; what is not known is absent.
func (g gauge) is(to chan<- prometheus.Metric, yes *bool, labels ...string) {
	if yes == nil {
		return
	}
	v := 0.0
	if *yes {
		v = 1
	}
	g.set(to, v, labels...)
}

func (g gauge) count(to chan<- prometheus.Metric, n *int, labels ...string) {
	if n != nil {
		g.set(to, float64(*n), labels...)
	}
}

// collector reads a sample for each reading of the metrics.
type collector struct {
	source Source
	vms    bool
	log    *slog.Logger

	vmSuccess, vmStatus, vmVerified, vmRPO, vmUnprotected, protections gauge
	connectionUp, connectionVMs, connectionInventory                   gauge
	storeUp, storeUsed, storeLogical, storeFree                        gauge
	storePoints, storePacks, storeDamagedPacks, storeDamaged           gauge
	storeCollect, storeVerified, storeMissing, storeBelow              gauge
	moverUp, moverTransfers, tasks, leftover, sampleErrors, took       gauge
}

func newCollector(s Source, vms bool, log *slog.Logger) *collector {
	return &collector{
		source: s, vms: vms, log: log,
		vmSuccess:           newGauge("vm_last_success_timestamp_seconds", "When the newest restore point of a VM was frozen; absent when it has none.", "vm", "id", "connection"),
		vmStatus:            newGauge("vm_last_status", "1 when the last backup of a VM succeeded, 0 when it failed; absent when there was none.", "vm", "id", "connection"),
		vmVerified:          newGauge("vm_last_verified_timestamp_seconds", "When a restore point of a VM was last read back and found whole.", "vm", "id", "connection"),
		vmRPO:               newGauge("vm_rpo_ratio", "Age of the newest good restore point of a VM, 1 is what its policy promises; absent when it has none.", "vm", "id", "connection", "policy"),
		vmUnprotected:       newGauge("vm_unprotected", "1 when no policy covers a VM and it is not excluded.", "vm", "id", "connection"),
		protections:         newGauge("vms", "VMs by how well they are protected.", "protection"),
		connectionUp:        newGauge("hypervisor_up", "1 when a connection worked when it was last used or checked.", "connection", "platform"),
		connectionVMs:       newGauge("hypervisor_vms", "VMs in the inventory of a connection.", "connection", "platform"),
		connectionInventory: newGauge("hypervisor_last_inventory_timestamp_seconds", "When the inventory of a connection was last read.", "connection", "platform"),
		storeUp:             newGauge("store_up", "1 when a repository can be used and nothing in it is known to be damaged.", "repository"),
		storeUsed:           newGauge("store_used_bytes", "What a repository takes on its backend.", "repository"),
		storeLogical:        newGauge("store_logical_bytes", "Virtual size of all restore points of a repository.", "repository"),
		storeFree:           newGauge("store_free_bytes", "What is free on the backend of a repository.", "repository"),
		storePoints:         newGauge("store_restore_points", "Restore points in a repository.", "repository"),
		storePacks:          newGauge("store_packs", "Packs in a repository.", "repository"),
		storeDamagedPacks:   newGauge("store_damaged_packs", "Packs of a repository that are known to be damaged.", "repository"),
		storeDamaged:        newGauge("store_damaged_restore_points", "Restore points of a repository that are known not to be whole.", "repository"),
		storeCollect:        newGauge("store_last_gc_timestamp_seconds", "When the last collect of a repository ended.", "repository"),
		storeVerified:       newGauge("store_last_verified_timestamp_seconds", "When a repository had last been read back as a whole.", "repository"),
		storeMissing:        newGauge("store_members_missing", "Members of a repository on a set that are not there.", "repository"),
		storeBelow:          newGauge("store_objects_below", "Objects of a repository on a set that have lost redundancy.", "repository"),
		moverUp:             newGauge("mover_up", "1 when a mover is connected.", "mover"),
		moverTransfers:      newGauge("mover_transfers", "Transfers that a mover has under way.", "mover"),
		tasks:               newGauge("tasks", "Tasks that are queued or running.", "state"),
		leftover:            newGauge("snapshots_leftover", "Snapshots and other things on platforms that tasks left behind and that could not be removed yet."),
		sampleErrors:        newGauge("sample_errors", "What could not be told in this reading; its series are absent."),
		took:                newGauge("sample_duration_seconds", "How long this reading took."),
	}
}

func (c *collector) gauges() []gauge {
	return []gauge{
		c.vmSuccess, c.vmStatus, c.vmVerified, c.vmRPO, c.vmUnprotected, c.protections, c.connectionUp, c.connectionVMs, c.connectionInventory, c.storeUp, c.storeUsed, c.storeLogical,
		c.storeFree, c.storePoints, c.storePacks, c.storeDamagedPacks, c.storeDamaged, c.storeCollect, c.storeVerified, c.storeMissing, c.storeBelow,
		c.moverUp, c.moverTransfers, c.tasks, c.leftover, c.sampleErrors, c.took,
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, g := range c.gauges() {
		to <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), sampleTime)
	defer cancel()
	began := time.Now()
	s, errs := c.source.Measure(ctx, c.vms)
	for _, err := range errs {
		c.log.WarnContext(ctx, "not measured", "err", err)
	}
	c.sampleErrors.set(to, float64(len(errs)))
	c.took.set(to, time.Since(began).Seconds())
	c.collectVMs(to, s)
	c.collectRepositories(to, s)
	for _, m := range s.Movers {
		c.moverUp.is(to, &m.Up, m.Name)
		c.moverTransfers.set(to, float64(m.Transfers), m.Name)
	}
	for state, n := range s.Tasks {
		c.tasks.set(to, float64(n), state)
	}
	c.leftover.count(to, s.Leftover)
}

func (c *collector) collectVMs(to chan<- prometheus.Metric, s Sample) {
	for _, v := range s.VMs {
		c.vmSuccess.at(to, v.LastSuccess, v.Name, v.ID, v.Connection)
		c.vmVerified.at(to, v.LastVerified, v.Name, v.ID, v.Connection)
		c.vmStatus.is(to, v.LastOK, v.Name, v.ID, v.Connection)
	}
	for _, v := range s.Coverage {
		c.vmUnprotected.is(to, &v.Unprotected, v.Name, v.ID, v.Connection)
		if v.RPO != nil {
			c.vmRPO.set(to, *v.RPO, v.Name, v.ID, v.Connection, v.Policy)
		}
	}
	for protection, n := range s.Protections {
		c.protections.set(to, float64(n), protection)
	}
	for _, n := range s.Connections {
		c.connectionUp.is(to, n.Up, n.Name, n.Platform)
		c.connectionVMs.set(to, float64(n.VMs), n.Name, n.Platform)
		c.connectionInventory.at(to, n.LastInventory, n.Name, n.Platform)
	}
}

func (c *collector) collectRepositories(to chan<- prometheus.Metric, s Sample) {
	for _, r := range s.Repositories {
		c.storeUp.is(to, &r.Up, r.Name)
		c.storeCollect.at(to, r.LastCollect, r.Name)
		c.storeVerified.at(to, r.LastVerified, r.Name)
		c.storeMissing.count(to, r.MembersMissing, r.Name)
		c.storeBelow.count(to, r.ObjectsBelow, r.Name)
		if r.Usage == nil {
			continue
		}
		c.storeUsed.set(to, float64(r.Usage.UsedBytes), r.Name)
		c.storeLogical.set(to, float64(r.Usage.LogicalBytes), r.Name)
		c.storeFree.set(to, float64(r.Usage.FreeBytes), r.Name)
		c.storePoints.set(to, float64(r.Usage.RestorePoints), r.Name)
		c.storePacks.set(to, float64(r.Usage.Packs), r.Name)
		c.storeDamagedPacks.set(to, float64(r.DamagedPacks), r.Name)
		c.storeDamaged.set(to, float64(r.DamagedPoints), r.Name)
	}
}
