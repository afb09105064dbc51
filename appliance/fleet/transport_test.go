package fleet

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
)

// TestChooseTransport: what the platform offers, what movers can do and what was asked for go in; the ways come out in
// their order, and each that is out with its reason.
func TestChooseTransport(t *testing.T) {
	own := Candidate{ID: "built-in", Name: "built-in", BuiltIn: true, State: Online, Slots: 8, Transports: []string{"nbd"}, BootID: "here"}
	mover := func(name, machine string, transports ...string) Candidate {
		return Candidate{ID: "mover_" + name, Name: name, State: Online, Slots: 4, Transports: transports, Machine: machine, BootID: name}
	}
	a, b := mover("a", "vm-a", "hotadd", "nbd"), mover("b", "vm-b", "hotadd", "nbd")
	stranger, old := mover("stranger", "vm-x", "hotadd", "nbd"), mover("old", "vm-a", "nbd")
	full := b
	full.Busy = full.Slots
	local := Wish{Export: nbd("unix", "/run/x"), ExportBoot: "here", Pluggable: map[string]bool{"vm-a": true, "vm-b": true}}
	remote := local
	remote.Export, remote.ExportBoot = nbd("tcp", "192.0.2.9:10809"), ""
	wish := func(w Wish, change func(*Wish)) Wish {
		change(&w)
		return w
	}
	lun := &hypervisors.SAN{LUNs: []hypervisors.LUN{{WWN: "naa.6001405000000001"}}}
	attached := mover("c", "vm-a", "hotadd", "san")
	attached.WWNs = []string{"6001405000000001", "2"}
	socket := "the disk is offered by a socket on the manager's machine only"
	crossing := "by hotadd the data has to cross less"
	no := "the platform cannot plug the disk into it: it is none of the connection's mover VMs that are on"
	for name, tt := range map[string]struct {
		wish     Wish
		movers   []Candidate
		ways     []string
		rejected []string
		wait     bool
	}{
		"hotadd before the network": {local, []Candidate{own, a},
			[]string{"a hotadd", "built-in nbd"},
			[]string{"built-in by hotadd: it cannot read by hotadd", "a by nbd: " + socket, "built-in by nbd: " + crossing}, false},
		"the least loaded of two": {local, []Candidate{own, wishBusy(a, 2), wishBusy(b, 1)},
			[]string{"b hotadd", "a hotadd", "built-in nbd"},
			[]string{"built-in by hotadd: it cannot read by hotadd", "a by nbd: " + socket, "b by nbd: " + socket,
				"a by hotadd: another one has less to do", "built-in by nbd: " + crossing}, false},
		"a mover of another platform": {remote, []Candidate{stranger},
			[]string{"stranger nbd"}, []string{"stranger by hotadd: " + no}, false},
		"a mover without the transport": {remote, []Candidate{old},
			[]string{"old nbd"}, []string{"old by hotadd: it cannot read by hotadd"}, false},
		"a mover whose machine is not known": {remote, []Candidate{mover("c", "", "hotadd", "nbd")},
			[]string{"c nbd"}, []string{"c by hotadd: " + no}, false},
		"a platform that cannot": {wish(local, func(w *Wish) { w.Pluggable, w.NoHotadd = nil, "this platform cannot" }), []Candidate{own, a},
			[]string{"built-in nbd"}, []string{"hotadd: this platform cannot", "a by nbd: " + socket}, false},
		"a disk that cannot be plugged": {wish(remote, func(w *Wish) { w.Export.Unpluggable = "it is no disk" }), []Candidate{own, a},
			[]string{"a nbd", "built-in nbd"}, []string{"hotadd: it is no disk", "built-in by nbd: the appliance's own mover comes last among equals"}, false},
		"network asked for": {wish(remote, func(w *Wish) { w.Transport = "network" }), []Candidate{a},
			[]string{"a nbd"}, []string{"hotadd: network was asked for"}, false},
		"nbd asked for": {wish(remote, func(w *Wish) { w.Transport = "nbd" }), []Candidate{a},
			[]string{"a nbd"}, []string{"hotadd: nbd was asked for"}, false},
		"hotadd asked for": {wish(remote, func(w *Wish) { w.Transport = "hotadd" }), []Candidate{own, a, b},
			[]string{"a hotadd", "b hotadd"},
			[]string{"nbd: hotadd was asked for", "built-in by hotadd: it cannot read by hotadd", "b by hotadd: it would do as well, but comes later by name"}, false},
		"hotadd asked for, and nobody can": {wish(local, func(w *Wish) { w.Transport = "hotadd" }), []Candidate{own, stranger},
			nil, []string{"nbd: hotadd was asked for", "built-in by hotadd: it cannot read by hotadd", "stranger by hotadd: " + no}, false},
		"hotadd asked for, and all busy": {wish(local, func(w *Wish) { w.Transport = "hotadd" }), []Candidate{own, full},
			nil, []string{"nbd: hotadd was asked for", "built-in by hotadd: it cannot read by hotadd", "b: all its 4 slots are in use"}, true},
		"san asked for, and not offered": {wish(local, func(w *Wish) { w.Transport = "san" }), []Candidate{own},
			nil, []string{"hotadd: san was asked for", "nbd: san was asked for"}, false},
		"hotadd has failed": {wish(remote, func(w *Wish) { w.Failed = map[hypervisors.Transport]string{"hotadd": "no slot"} }), []Candidate{a},
			[]string{"a nbd"}, []string{"hotadd: it has failed: no slot"}, false},
		"offered on the SAN, too": {wish(remote, func(w *Wish) { w.Export.SAN = lun }), []Candidate{attached, a},
			[]string{"c san", "a hotadd", "c hotadd", "a nbd"}, []string{"c by nbd: it cannot read by nbd", "a by san: it cannot read by san",
				"a by hotadd: by san the data has to cross less", "c by hotadd: by san the data has to cross less", "a by nbd: by san the data has to cross less"}, false},
		"offered on the SAN only, and not attached": {wish(remote, func(w *Wish) { w.Export = hypervisors.Export{Transport: "san", SAN: lun}; w.Pluggable = nil }), []Candidate{mover("c", "vm-a", "san")},
			nil, []string{"c by san: it does not see LUN naa.6001405000000001"}, false},
		"no restore goes to the SAN": {wish(remote, func(w *Wish) { w.Export.SAN, w.Export.Writable, w.Pluggable = lun, true, nil }), []Candidate{attached},
			nil, []string{"c by nbd: it cannot write by nbd"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := Choose(tt.wish, tt.movers)
			var ways, rejected []string
			for _, w := range c.Ways {
				ways = append(ways, w.Mover.Name+" "+string(w.Transport))
			}
			for _, r := range c.Rejected {
				rejected = append(rejected, r.who()+": "+r.Reason)
			}
			if diff := cmp.Diff(tt.ways, ways); diff != "" {
				t.Errorf("ways (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.rejected, rejected); diff != "" {
				t.Errorf("rejected (-want +got):\n%s", diff)
			}
			if c.Wait != tt.wait {
				t.Errorf("wait %v, want %v", c.Wait, tt.wait)
			}
			if len(tt.ways) > 0 && (c.Mover.Name+" "+string(c.Transport) != tt.ways[0] || c.Reason == "") {
				t.Errorf("chose %s by %s because %q, want %s", c.Mover.Name, c.Transport, c.Reason, tt.ways[0])
			}
		})
	}
}

func wishBusy(c Candidate, n int) Candidate {
	c.Busy = n
	return c
}
