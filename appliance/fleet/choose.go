package fleet

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Candidate is a mover as the choice sees it.
type Candidate struct {
	ID, Name   string
	BuiltIn    bool
	State      State
	Slots      int
	Busy       int // slots in use
	Transports []string
	BootID     string // of the kernel that it runs on
	Host       string // of the platform, on which its VM runs; "" is not known
	Connection string // whose VM it is; "" if it is none
	StoreIDs   []string
}

// Wish is what a transfer needs and what was asked for.
type Wish struct {
	Mover     string // id or name that was asked for; "" is free
	Transport string // that was asked for; "" is free

	Export     hypervisors.Export
	ExportBoot string // boot id of the machine that serves the export, where that is known
	Connection string
	Host       string // of the platform, where the source is; "" is not known
	Datastore  string // of the disk; "" is not known
	StoreID    string // of the repository

	HostBusy, HostSlots           int // transfers with the host, and how many it may have; 0 is no limit
	DatastoreBusy, DatastoreSlots int
}

// Rejection says why a mover was not chosen.
type Rejection struct {
	Mover  string // name
	Reason string
	Busy   bool // it may be chosen as soon as something has ended
}

// Choice is what came out. Without a Mover there is none now; Wait says that waiting helps.
type Choice struct {
	Mover     *Candidate
	Transport hypervisors.Transport
	Reason    string
	Rejected  []Rejection
	Wait      bool
}

// Choose picks the mover of a transfer: among those that can do it the one nearest to the source, then the least
// loaded one, then any but the appliance's own. It depends on nothing but its arguments.
func Choose(w Wish, candidates []Candidate) Choice {
	c := Choice{Transport: w.Export.Transport}
	var able []Candidate
	for _, m := range candidates {
		reason, busy := w.rejects(m)
		if reason != "" {
			c.Rejected = append(c.Rejected, Rejection{m.Name, reason, busy})
			c.Wait = c.Wait || busy
			continue
		}
		able = append(able, m)
	}
	if len(able) == 0 {
		return c
	}
	slices.SortStableFunc(able, w.compare)
	c.Mover, c.Wait = &able[0], false
	near, why := w.nearness(able[0])
	c.Reason = fmt.Sprintf("%s, %d of %d slots in use", why, able[0].Busy, able[0].Slots)
	for _, m := range able[1:] {
		r := "it would do as well, but comes later by name"
		switch n, _ := w.nearness(m); {
		case n < near:
			r = "another one is nearer to the source"
		case load(m) != load(able[0]):
			r = "another one has less to do"
		case m.BuiltIn:
			r = "the appliance's own mover comes last among equals"
		}
		c.Rejected = append(c.Rejected, Rejection{Mover: m.Name, Reason: r})
	}
	return c
}

// rejects says why a mover cannot do it; "" if it can.
func (w Wish) rejects(m Candidate) (reason string, busy bool) {
	switch {
	case w.Mover != "" && w.Mover != m.ID && w.Mover != m.Name:
		return "another mover was asked for", false
	case m.State == Revoked:
		return "it is revoked", false
	case m.State == Drained || m.State == Draining:
		return "it is drained", false
	case m.State == Offline:
		return "it is not connected", false
	case w.Transport != "" && w.Transport != string(w.Export.Transport):
		return fmt.Sprintf("the disk is offered by %s, and %s was asked for", w.Export.Transport, w.Transport), false
	case !slices.Contains(m.Transports, string(w.Export.Transport)):
		return fmt.Sprintf("it cannot read by %s", w.Export.Transport), false
	}
	if why := w.unreachable(m); why != "" {
		return why, false
	}
	switch {
	case m.Busy >= m.Slots:
		return fmt.Sprintf("all its %d slots are in use", m.Slots), true
	case w.HostSlots > 0 && w.HostBusy >= w.HostSlots:
		return fmt.Sprintf("host %s has %d transfers already", w.Host, w.HostBusy), true
	case w.DatastoreSlots > 0 && w.DatastoreBusy >= w.DatastoreSlots:
		return fmt.Sprintf("datastore %s has %d transfers already", w.Datastore, w.DatastoreBusy), true
	}
	return "", false
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
	case loopback(w.Export.Address):
		return "the disk is offered on the manager's machine only"
	}
	return ""
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// nearness of a mover to the source: the greater the nearer.
func (w Wish) nearness(m Candidate) (int, string) {
	switch {
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

func (w Wish) compare(a, b Candidate) int {
	na, _ := w.nearness(a)
	nb, _ := w.nearness(b)
	return cmp.Or(
		cmp.Compare(nb, na),
		last(!slices.Contains(a.StoreIDs, w.StoreID), !slices.Contains(b.StoreIDs, w.StoreID)),
		cmp.Compare(load(a), load(b)),
		last(a.BuiltIn, b.BuiltIn),
		strings.Compare(a.Name, b.Name),
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
		b.WriteString(r.Mover + ": " + r.Reason)
	}
	return b.String()
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
