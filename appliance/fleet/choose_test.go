package fleet

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

func nbd(network, address string) hypervisors.Export {
	return hypervisors.Export{Transport: hypervisors.TransportNBD, Network: network, Address: address}
}

func imageTransfer(url hypervisors.TicketURL) hypervisors.Export {
	return hypervisors.Export{Transport: hypervisors.TransportImageio, Imageio: &hypervisors.Imageio{TransferURL: url}}
}

func TestChoose(t *testing.T) {
	own := Candidate{ID: "built-in", Name: "built-in", BuiltIn: true, State: Online, Slots: 8, Transports: []string{"nbd"}, BootID: "here"}
	m := func(name string, change ...func(*Candidate)) Candidate {
		c := Candidate{ID: "mover_" + name, Name: name, State: Online, Slots: 4, Transports: []string{"nbd", "hotadd"}, BootID: "boot-" + name}
		for _, f := range change {
			f(&c)
		}
		return c
	}
	state := func(s State) func(*Candidate) { return func(c *Candidate) { c.State = s } }
	busy := func(n int) func(*Candidate) { return func(c *Candidate) { c.Busy = n } }
	vm := func(connection, host string) func(*Candidate) {
		return func(c *Candidate) { c.Connection, c.Host = connection, host }
	}
	boot := func(id string) func(*Candidate) { return func(c *Candidate) { c.BootID = id } }
	mounts := func(id string) func(*Candidate) { return func(c *Candidate) { c.StoreIDs = []string{id} } }
	full := func(c *Candidate) { c.Full = true }
	imageio := func(c *Candidate) { c.Transports = append(c.Transports, "imageio") }
	withImageio := own
	withImageio.Transports = []string{"imageio"}
	blind := func(c *Candidate) { c.Transports = nil }
	tcp, unix := nbd("tcp", "192.0.2.9:10809"), nbd("unix", "/run/x")
	withTLS := tcp
	withTLS.TLS = &hypervisors.TLS{CAFile: "ca"}
	tests := []struct {
		name     string
		wish     Wish
		movers   []Candidate
		want     string // "" is none
		rejected string // in the words
		wait     bool
	}{
		{"only the own one", Wish{Export: unix}, []Candidate{own}, "built-in", "", false},
		{"a socket here is for movers here", Wish{Export: unix, ExportBoot: "here"}, []Candidate{own, m("a")}, "built-in", "a by nbd: the disk is offered by a socket", false},
		{"a mover on this machine before the own one", Wish{Export: unix, ExportBoot: "here"}, []Candidate{own, m("a", boot("here"))}, "a", "built-in by nbd: the appliance's own mover comes last", false},
		{"loopback", Wish{Export: nbd("tcp", "127.0.0.1:1"), ExportBoot: "here"}, []Candidate{own, m("a")}, "built-in", "a by nbd: the disk is offered on the manager's machine only", false},
		{"loopback, IPv6", Wish{Export: nbd("tcp", "[::1]:1"), ExportBoot: "here"}, []Candidate{own, m("a")}, "built-in", "a by nbd: the disk is offered on the manager's machine only", false},
		{"keys on this machine", Wish{Export: withTLS}, []Candidate{own, m("a")}, "built-in", "a by nbd: the keys", false},
		{"over the network any, the own one last", Wish{Export: tcp}, []Candidate{own, m("b"), m("a")}, "a", "b by nbd: it would do as well", false},
		{"an image transfer, asked for by the word for the network", Wish{Export: imageTransfer("https://192.0.2.9:54322/images/t"), Transport: Network}, []Candidate{own, m("a"), m("b", imageio)}, "b", "a by imageio: it cannot read by imageio", false},
		{"an image transfer of this machine", Wish{Export: imageTransfer("https://localhost:54322/images/t"), ExportBoot: "here"}, []Candidate{withImageio, m("b", imageio)}, "built-in", "b by imageio: the disk is offered on the manager's machine only", false},
		{"less to do", Wish{Export: tcp}, []Candidate{m("a", busy(2)), m("b", busy(1))}, "b", "a by nbd: another one has less to do", false},
		{"load is by slots", Wish{Export: tcp}, []Candidate{own, m("a", busy(1)), func() Candidate { c := m("b", busy(2)); c.Slots = 16; return c }()}, "built-in", "a by nbd: another one has less", false},
		{"on the source's host", Wish{Export: tcp, Connection: "c1", Host: "h1"}, []Candidate{own, m("a", vm("c1", "h2")), m("b", vm("c1", "h1"), busy(3))}, "b", "a by nbd: another one is nearer", false},
		{"a host of this name elsewhere", Wish{Export: tcp, Connection: "c1", Host: "h1"}, []Candidate{m("a", vm("c2", "h1")), m("b", vm("c1", "h2"))}, "b", "a by nbd: another one is nearer", false},
		{"with the repository's storage", Wish{Export: tcp, StoreID: "s"}, []Candidate{m("a"), m("b", mounts("s"), busy(1))}, "b", "a by nbd: ", false},
		{"offline", Wish{Export: tcp}, []Candidate{m("a", state(Offline)), own}, "built-in", "a: it is not connected", false},
		{"drained", Wish{Export: tcp}, []Candidate{m("a", state(Drained)), m("b", state(Draining)), own}, "built-in", "b: it is drained", false},
		{"revoked", Wish{Export: tcp}, []Candidate{m("a", state(Revoked)), own}, "built-in", "a: it is revoked", false},
		{"no code for it", Wish{Export: tcp}, []Candidate{m("a", blind), own}, "built-in", "a by nbd: it cannot read by nbd", false},
		{"asked for by name", Wish{Export: tcp, Mover: "b"}, []Candidate{own, m("a"), m("b", busy(3))}, "b", "a: another mover was asked for", false},
		{"asked for by id", Wish{Export: tcp, Mover: "mover_b"}, []Candidate{m("a"), m("b")}, "b", "", false},
		{"asked for and offline", Wish{Export: tcp, Mover: "a"}, []Candidate{own, m("a", state(Offline))}, "", "a: it is not connected", false},
		{"another transport asked for", Wish{Export: tcp, Transport: "hotadd", NoHotadd: "there is no mover VM"}, []Candidate{own, m("a")}, "", "hotadd: there is no mover VM; nbd: hotadd was asked for", false},
		{"asked for and busy", Wish{Export: tcp, Mover: "a"}, []Candidate{own, m("a", busy(4))}, "", "a: all its 4 slots are in use", true},
		{"all busy", Wish{Export: tcp}, []Candidate{m("a", busy(4)), m("b", busy(9))}, "", "b: all its 4 slots", true},
		{"one busy", Wish{Export: tcp}, []Candidate{m("a", busy(4)), m("b", busy(3))}, "b", "a: all its 4 slots", false},
		{"says that it is full", Wish{Export: tcp}, []Candidate{m("a", full)}, "", "a: it says that it has no slot free", true},
		{"has refused", Wish{Export: tcp, Avoid: map[string]string{"mover_a": "too old"}}, []Candidate{m("a"), m("b", busy(3))}, "b", "a: it has refused: too old", false},
		{"host full", Wish{Export: tcp, Host: "h", HostBusy: 2, HostSlots: 2}, []Candidate{m("a")}, "", "host h has 2 transfers already", true},
		{"datastore full", Wish{Export: tcp, Datastore: "d", DatastoreBusy: 2, DatastoreSlots: 2}, []Candidate{m("a")}, "", "datastore d has 2 transfers already", true},
		{"nobody", Wish{Export: tcp}, nil, "", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Choose(tt.wish, tt.movers)
			got := ""
			if c.Mover != nil {
				got = c.Mover.Name
			}
			if got != tt.want || c.Wait != tt.wait || !strings.Contains(c.Words(), tt.rejected) {
				t.Errorf("chose %q (wait %v), rejected %q; want %q, %v, %q", got, c.Wait, c.Words(), tt.want, tt.wait, tt.rejected)
			}
			if c.Mover != nil && (c.Reason == "" || len(c.Rejected) != len(tt.movers)-1) {
				t.Errorf("reason %q, %d rejected of %d", c.Reason, len(c.Rejected), len(tt.movers))
			}
			if c.Mover != nil && c.Transport != tt.wish.Export.Transport {
				t.Errorf("by %q", c.Transport)
			}
		})
	}
}

func TestNobodyIsSaidInWords(t *testing.T) {
	w := Wish{Mover: "a", Export: nbd("tcp", "h:1")}
	tests := []struct {
		state State
		kind  fault.Kind
	}{{Offline, fault.Transient}, {Drained, fault.Conflict}}
	for _, tt := range tests {
		c := Choose(w, []Candidate{{ID: "x", Name: "a", State: tt.state, Slots: 1, Transports: []string{"nbd"}}})
		err := c.none(w)
		if meaning, advice := fault.Explanation(err); fault.KindOf(err) != tt.kind || !strings.Contains(meaning, "asked for") || advice == "" {
			t.Errorf("%v: %v (%q)", tt.state, err, meaning)
		}
	}
}
