package fleet

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Candidate is a mover as the choice sees it.
type Candidate struct {
	ID, Name   string
	BuiltIn    bool
	State      State
	Slots      int
	Busy       int  // slots in use
	Full       bool // it has said that it has none free
	Transports []string
	BootID     string   // of the kernel that it runs on
	Machine    string   // the platform's name of the VM that it runs in; "" is not known
	Host       string   // of the platform, on which its VM runs; "" is not known
	Connection string   // whose VM it is; "" if it is none
	StoreIDs   []string // of repositories whose storage it has mounted
	WWNs       []string // of LUNs that it sees
}

// Wish is what a transfer needs, what the platform offers, and what was asked for.
type Wish struct {
	Mover     string // id or name that was asked for; "" is free
	Transport string // that was asked for, see Names; "" is free

	Export     hypervisors.Export // by which the platform offers the disk as it is
	ExportBoot string             // boot id of the machine that serves the export, where that is known
	// Pluggable are the ids of the VMs into which the platform can plug the disk. Without any NoHotadd says why.
	Pluggable map[string]bool
	NoHotadd  string
	// Failed has the transports by which this transfer was tried already, and why they failed.
	Failed map[hypervisors.Transport]string

	Connection string
	Host       string // of the platform, where the source is; "" is not known
	Datastore  string // of the disk; "" is not known
	StoreID    string // of the repository
	// Avoid are movers, by id, that have refused this transfer, with their words.
	Avoid map[string]string

	HostBusy, HostSlots           int // transfers with the host, and how many it may have; 0 is no limit
	DatastoreBusy, DatastoreSlots int
}

// Names says whether a word of an admin's means a transport: its own name, or "network" for the one over the LAN.
func Names(word string, t hypervisors.Transport) bool {
	return word == string(t) || word == Network && (t == hypervisors.TransportNBD || t == hypervisors.TransportImageio)
}

// IsTransport says whether a word of an admin's means any transport.
func IsTransport(word string) bool {
	return slices.ContainsFunc(preference, func(t hypervisors.Transport) bool { return Names(word, t) })
}

// Network is the word for the transport over the LAN, whatever its protocol.
const Network = "network"

// preference orders transports: the less a disk's data has to cross, the better. Of those over the network a platform offers one.
var preference = []hypervisors.Transport{
	hypervisors.TransportSAN, hypervisors.TransportHotadd, hypervisors.TransportNBD, hypervisors.TransportImageio,
}

// Rejection says why a mover, or a transport of it, was not chosen.
type Rejection struct {
	Mover     string                // name; "" is the platform's own reason
	Transport hypervisors.Transport // "" is all of them
	Reason    string
	Busy      bool // it may be chosen as soon as something has ended
}

// Way is a mover and the transport by which it can do a transfer.
type Way struct {
	Mover     Candidate
	Transport hypervisors.Transport
}

// Choice is what came out. Without a Mover there is none now; Wait says that waiting helps.
type Choice struct {
	Mover     *Candidate
	Transport hypervisors.Transport
	Reason    string
	Ways      []Way // all that would do, the chosen one first
	Rejected  []Rejection
	Wait      bool
}

// Choose picks the mover and the transport of a transfer: among the ways that can do it the one whose data crosses the
// least, then the mover nearest to the source, then the least loaded one, then any but the appliance's own. It depends
// on nothing but its arguments.
func Choose(w Wish, candidates []Candidate) Choice {
	var c Choice
	transports := w.transports(&c)
	for _, m := range candidates {
		if reason := w.rejects(m); reason != "" {
			c.Rejected = append(c.Rejected, Rejection{Mover: m.Name, Reason: reason})
			continue
		}
		var ways []Way
		for _, t := range transports {
			if reason := w.rejectsBy(m, t); reason != "" {
				c.Rejected = append(c.Rejected, Rejection{Mover: m.Name, Transport: t, Reason: reason})
				continue
			}
			ways = append(ways, Way{m, t})
		}
		if len(ways) == 0 {
			continue
		}
		if reason := w.full(m); reason != "" {
			c.Rejected = append(c.Rejected, Rejection{Mover: m.Name, Reason: reason, Busy: true})
			c.Wait = true
			continue
		}
		c.Ways = append(c.Ways, ways...)
	}
	if len(c.Ways) == 0 {
		return c
	}
	slices.SortStableFunc(c.Ways, w.compare)
	best := c.Ways[0]
	c.Mover, c.Transport, c.Wait = &best.Mover, best.Transport, false
	_, why := w.nearness(best)
	if w.StoreID != "" && slices.Contains(best.Mover.StoreIDs, w.StoreID) {
		why += ", has the repository's storage mounted"
	}
	c.Reason = fmt.Sprintf("%s, %d of %d slots in use", why, best.Mover.Busy, best.Mover.Slots)
	for _, other := range c.Ways[1:] {
		c.Rejected = append(c.Rejected, w.second(best, other))
	}
	return c
}

// transports are those by which the disk can be had, without those that are out of the question for every mover.
func (w Wish) transports(c *Choice) (out []hypervisors.Transport) {
	for _, t := range preference {
		reason := ""
		switch {
		case w.Failed[t] != "":
			reason = "it has failed: " + w.Failed[t]
		case t == hypervisors.TransportHotadd && w.Export.Unpluggable != "":
			reason = w.Export.Unpluggable
		case t == hypervisors.TransportHotadd && len(w.Pluggable) == 0:
			reason = w.NoHotadd
		case t != hypervisors.TransportHotadd && t != w.Export.Transport && (t != hypervisors.TransportSAN || w.Export.SAN == nil || w.Export.Writable):
			continue // nobody has offered it
		case w.Transport != "" && !Names(w.Transport, t):
			reason = w.Transport + " was asked for"
		default:
			out = append(out, t)
			continue
		}
		if reason != "" {
			c.Rejected = append(c.Rejected, Rejection{Transport: t, Reason: reason})
		}
	}
	return out
}

// second says why another way that would do came later.
func (w Wish) second(best, other Way) Rejection {
	r := Rejection{Mover: other.Mover.Name, Transport: other.Transport, Reason: "it would do as well, but comes later by name"}
	bn, _ := w.nearness(best)
	on, _ := w.nearness(other)
	switch {
	case other.Transport != best.Transport:
		r.Reason = fmt.Sprintf("by %s the data has to cross less", best.Transport)
	case on < bn:
		r.Reason = "another one is nearer to the source"
	case slices.Contains(best.Mover.StoreIDs, w.StoreID) != slices.Contains(other.Mover.StoreIDs, w.StoreID):
		r.Reason = "another one has the repository's storage mounted"
	case load(other.Mover) != load(best.Mover):
		r.Reason = "another one has less to do"
	case other.Mover.BuiltIn:
		r.Reason = "the appliance's own mover comes last among equals"
	}
	return r
}

// rejects says why a mover cannot do it, by whatever transport; "" if it can.
func (w Wish) rejects(m Candidate) string {
	switch {
	case w.Mover != "" && w.Mover != m.ID && w.Mover != m.Name:
		return "another mover was asked for"
	case m.State == Revoked:
		return "it is revoked"
	case m.State == Drained || m.State == Draining:
		return "it is drained"
	case m.State == Offline:
		return "it is not connected"
	case w.Avoid[m.ID] != "":
		return "it has refused: " + w.Avoid[m.ID]
	}
	return ""
}

// rejectsBy says why a mover cannot do it by a transport that the platform offers; "" if it can.
func (w Wish) rejectsBy(m Candidate, t hypervisors.Transport) string {
	switch {
	case !slices.Contains(m.Transports, string(t)) && w.Export.Writable:
		return fmt.Sprintf("it cannot write by %s", t)
	case !slices.Contains(m.Transports, string(t)):
		return fmt.Sprintf("it cannot read by %s", t)
	case t == hypervisors.TransportHotadd && (m.Machine == "" || !w.Pluggable[m.Machine]):
		return "the platform cannot plug the disk into it: it is none of the connection's mover VMs that are on"
	case t == hypervisors.TransportHotadd:
		return ""
	case t == hypervisors.TransportSAN:
		return w.unseen(m)
	}
	return w.unreachable(m)
}

// full says why a mover cannot do it now.
func (w Wish) full(m Candidate) string {
	switch {
	case m.Full:
		return "it says that it has no slot free"
	case m.Busy >= m.Slots:
		return fmt.Sprintf("all its %d slots are in use", m.Slots)
	case w.HostSlots > 0 && w.HostBusy >= w.HostSlots:
		return fmt.Sprintf("host %s has %d transfers already", w.Host, w.HostBusy)
	case w.DatastoreSlots > 0 && w.DatastoreBusy >= w.DatastoreSlots:
		return fmt.Sprintf("datastore %s has %d transfers already", w.Datastore, w.DatastoreBusy)
	}
	return ""
}

// unreachable says why a mover on another machine cannot open the export.
func (w Wish) unreachable(m Candidate) string {
	if m.BuiltIn || w.ExportBoot != "" && m.BootID == w.ExportBoot {
		return ""
	}
	switch {
	case w.Export.Network == "unix":
		return "the disk is offered by a socket on the manager's machine only"
	case w.Export.TLS != nil:
		return "the keys for the disk's encrypted export are on the manager's machine only"
	case loopback(w.Export.Address), w.Export.Imageio != nil && w.Export.Imageio.Loopback():
		return "the disk is offered on the manager's machine only"
	}
	return ""
}

// unseen says which LUN of the disk is not attached to a mover.
func (w Wish) unseen(m Candidate) string {
	if w.Export.SAN == nil || len(w.Export.SAN.LUNs) == 0 {
		return "the platform does not say on which LUNs the disk lies"
	}
	for _, l := range w.Export.SAN.LUNs {
		if name := blockdev.CanonicalWWN(l.WWN); name == "" || !slices.Contains(m.WWNs, name) {
			return fmt.Sprintf("it does not see LUN %s", l.WWN)
		}
	}
	return ""
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && hypervisors.LoopbackHost(host)
}

// nearness of a mover to the source by a transport: the greater the nearer.
func (w Wish) nearness(o Way) (int, string) {
	m := o.Mover
	switch {
	case o.Transport == hypervisors.TransportHotadd:
		return 4, "the disk is plugged into its VM"
	case w.ExportBoot != "" && m.BootID == w.ExportBoot:
		return 3, "it runs on the machine that offers the disk"
	case w.Host != "" && m.Host == w.Host && m.Connection == w.Connection:
		return 3, "it runs on the source's host"
	case w.Connection != "" && m.Connection == w.Connection:
		return 2, "it is a VM of the source's connection"
	}
	return 1, "it reaches the disk over the network"
}

func load(m Candidate) int { return m.Busy * 1000 / max(1, m.Slots) }

func (w Wish) compare(a, b Way) int {
	na, _ := w.nearness(a)
	nb, _ := w.nearness(b)
	return cmp.Or(
		cmp.Compare(slices.Index(preference, a.Transport), slices.Index(preference, b.Transport)),
		cmp.Compare(nb, na),
		last(!slices.Contains(a.Mover.StoreIDs, w.StoreID), !slices.Contains(b.Mover.StoreIDs, w.StoreID)),
		cmp.Compare(load(a.Mover), load(b.Mover)),
		last(a.Mover.BuiltIn, b.Mover.BuiltIn),
		strings.Compare(a.Mover.Name, b.Mover.Name),
	)
}

// last puts what is true behind what is not.
func last(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Words lists the rejected with their reasons, for a person.
func (c Choice) Words() string {
	var b strings.Builder
	for i, r := range c.Rejected {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(r.who() + ": " + r.Reason)
	}
	return b.String()
}

func (r Rejection) who() string {
	switch {
	case r.Mover == "":
		return string(r.Transport)
	case r.Transport == "":
		return r.Mover
	}
	return r.Mover + " by " + string(r.Transport)
}

// none is the error when nobody can do it, now or later.
func (c Choice) none(w Wish) error {
	kind, meaning := fault.Conflict, "None of the movers there are can do this transfer."
	for _, r := range c.Rejected {
		if r.Reason == "it is not connected" {
			kind = fault.Transient
		}
	}
	if w.Mover != "" || w.Transport != "" {
		meaning = "A mover or a transport was asked for, and nothing else may take its place."
	}
	return fault.New(kind, "choose mover", w.Mover, "%s", c.Words()).Explain(meaning,
		"Connect or resume a mover that can, or ask for another one, or leave the choice to the appliance.")
}
