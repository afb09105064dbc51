package fleet

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Slots of a host or datastore for which no limit says otherwise: platforms stay usable for what they are for.
const (
	defaultHostSlots      = 8
	defaultDatastoreSlots = 8
)

// MinRate is the least bytes a second that a limit may leave: with less, calls that wait for each other on one connection
// would be taken for dead.
const MinRate = 256 << 10

// Bandwidth is what the transfers of a mover may use together, in bytes a second; 0 is no limit.
type Bandwidth struct{ Read, Network int64 }

// days are the words of MoverLimit.Days.
var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// holds reports whether a limit is in force at a time of the appliance's day.
func holds(l catalog.MoverLimit, at time.Time) bool {
	minute, day := at.Hour()*60+at.Minute(), at.Weekday()
	switch {
	case l.From == l.To:
	case l.From < l.To:
		if minute < l.From || minute >= l.To {
			return false
		}
	case minute >= l.To && minute < l.From:
		return false
	case minute < l.To: // it began the day before
		day = (day + 6) % 7
	}
	return l.Days == "" || slices.Contains(strings.Split(l.Days, ","), days[day])
}

// inForce returns the limits of a kind and name that hold, or those of "*" where none has the name.
func inForce(all []catalog.MoverLimit, kind catalog.LimitKind, name string, at time.Time) (out []catalog.MoverLimit) {
	named := slices.ContainsFunc(all, func(l catalog.MoverLimit) bool { return l.Kind == kind && l.Name == name })
	for _, l := range all {
		if l.Kind == kind && (l.Name == name || !named && l.Name == "*") && holds(l, at) {
			out = append(out, l)
		}
	}
	return out
}

// lower returns the smaller of two limits, of which 0 is none.
func lower(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// slotsOf is the lowest number of transfers that limits of a kind and name allow; otherwise if they say nothing.
func slotsOf(all []catalog.MoverLimit, kind catalog.LimitKind, name string, at time.Time, otherwise int) int {
	var n int64
	for _, l := range inForce(all, kind, name, at) {
		n = lower(n, int64(l.Slots))
	}
	return int(cmp.Or(n, int64(otherwise)))
}

// member is a mover as links see it.
type member struct {
	name, source string
	busy         bool
}

// bandwidthOf is what a mover may use: the lowest of its own limits, and of its share of each link that it is on. Those
// movers of a link that have transfers share it in equal parts.
func bandwidthOf(all []catalog.MoverLimit, m member, others []member, at time.Time) (b Bandwidth) {
	for _, l := range inForce(all, catalog.LimitMover, m.name, at) {
		b.Read, b.Network = lower(b.Read, l.Read), lower(b.Network, l.Network)
	}
	for _, l := range all {
		if l.Kind != catalog.LimitLink || !onLink(l.Name, m.source) || !holds(l, at) {
			continue
		}
		sharers := int64(1)
		for _, o := range others {
			if o.busy && o.name != m.name && onLink(l.Name, o.source) {
				sharers++
			}
		}
		b.Read, b.Network = lower(b.Read, share(l.Read, sharers)), lower(b.Network, share(l.Network, sharers))
	}
	return b
}

// share is a part of a limit, of which 0 is none; it is never so small that it stops a transfer.
func share(limit, sharers int64) int64 {
	if limit == 0 {
		return 0
	}
	return max(limit/sharers, MinRate)
}

func onLink(network, source string) bool {
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(source)
	return err == nil && p.Contains(a.Unmap().WithZone(""))
}

// checkLimit brings a new limit into its one form, or says what is wrong.
func checkLimit(l *catalog.MoverLimit) error {
	bad := func(format string, args ...any) *fault.Error {
		return fault.New(fault.Invalid, "create limit", l.Name, format, args...)
	}
	shared := l.Kind == catalog.LimitHost || l.Kind == catalog.LimitDatastore
	switch {
	case l.Kind == catalog.LimitLink:
		p, err := netip.ParsePrefix(l.Name)
		if err != nil {
			return bad("%q is no network", l.Name).Explain("A link is named by the network of the movers on it.", "Give it as 192.0.2.0/24.")
		}
		l.Name = p.Masked().String()
	case l.Kind != catalog.LimitMover && !shared:
		return bad("%q is no kind of limit", l.Kind)
	case l.Name == "" || len(l.Name) > 255:
		return bad("it names nothing").Explain("A limit is of something with a name.", "Name it, or give * for each that no other limit names.")
	}
	switch {
	case l.Slots < 0 || l.Slots > 1000 || l.Read < 0 || l.Network < 0:
		return bad("a number is out of range")
	case l.Slots == 0 && l.Read == 0 && l.Network == 0:
		return bad("it limits nothing").Explain("A limit needs a number.", "Give the transfers at once, or bytes a second.")
	case l.Slots != 0 && l.Kind == catalog.LimitLink:
		return bad("a link has no slots").Explain("Links limit bytes a second only.", "Limit the transfers of movers, hosts or datastores.")
	case shared && (l.Read != 0 || l.Network != 0):
		return bad("a %s has no bandwidth of its own", l.Kind).Explain("Bytes a second are limited where a mover moves them.", "Limit movers or a link.")
	case l.Read != 0 && l.Read < MinRate || l.Network != 0 && l.Network < MinRate:
		return bad("less than %d bytes a second", MinRate).Explain("A transfer that slow would be taken for dead.", "Drain the movers if nothing is to be moved.")
	case l.From < 0 || l.From >= 24*60 || l.To < 0 || l.To >= 24*60:
		return bad("its window is not within a day")
	}
	var list []string
	given := strings.FieldsFunc(strings.ToLower(l.Days), func(r rune) bool { return r == ',' || r == ' ' })
	for _, d := range days {
		if slices.Contains(given, d) {
			list = append(list, d)
		}
	}
	if len(list) != len(given) {
		return bad("%q are no days", l.Days).Explain("Days are mon, tue, wed, thu, fri, sat and sun.", "Give them with commas between.")
	}
	if l.Days = strings.Join(list, ","); len(list) == len(days) {
		l.Days = ""
	}
	return nil
}

// AddLimit makes a limit, which holds from now on for transfers under way, too, as far as bytes a second go.
func (f *Fleet) AddLimit(ctx context.Context, who Who, l catalog.MoverLimit) (Limit, error) {
	if err := checkLimit(&l); err != nil {
		return Limit{}, err
	}
	l.CreatedBy = who.User
	if err := f.catalog.AddMoverLimit(ctx, &l); err != nil {
		return Limit{}, err
	}
	f.Audit(ctx, catalog.AuditEntry{Actor: who.User, Source: who.Source, Action: "mover.limit", Subject: l.Name, Detail: string(l.Kind) + " " + l.ID})
	return Limit{l, holds(l, f.now().Local())}, f.reloadLimits(ctx)
}

// RemoveLimit takes a limit back.
func (f *Fleet) RemoveLimit(ctx context.Context, who Who, id string) error {
	if err := f.catalog.RemoveMoverLimit(ctx, id); err != nil {
		return err
	}
	f.Audit(ctx, catalog.AuditEntry{Actor: who.User, Source: who.Source, Action: "mover.unlimit", Subject: id})
	return f.reloadLimits(ctx)
}

// Limit is a limit and whether it is in force now.
type Limit struct {
	catalog.MoverLimit
	Holds bool
}

// Limits returns all limits.
func (f *Fleet) Limits(ctx context.Context) ([]Limit, error) {
	all, err := f.catalog.MoverLimits(ctx)
	out := make([]Limit, len(all))
	for i, l := range all {
		out[i] = Limit{l, holds(l, f.now().Local())}
	}
	return out, err
}

// reloadLimits reads the limits, and lets everybody know.
func (f *Fleet) reloadLimits(ctx context.Context) error {
	all, err := f.catalog.MoverLimits(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.limits = all
	f.mu.Unlock()
	f.applyLimits()
	f.poke()
	return nil
}

// applyLimits tells each mover what it may use now, if that is news, and the appliance's own.
func (f *Fleet) applyLimits() {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now().Local()
	members := f.members()
	for id, l := range f.links {
		b := bandwidthOf(f.limits, member{name: l.mover.Name, source: l.mover.Source}, members, now)
		if b == f.bandwidth[id] && l.told {
			continue
		}
		l.told = true
		f.bandwidth[id] = b
		l.push(&pb.ToMover{Body: &pb.ToMover_Bandwidth{Bandwidth: &pb.Bandwidth{Read: b.Read, Network: b.Network}}})
	}
	if own := bandwidthOf(f.limits, member{name: tickets.BuiltIn}, nil, now); own != f.bandwidth[tickets.BuiltIn] {
		f.bandwidth[tickets.BuiltIn] = own
		if f.ownBandwidth != nil {
			f.ownBandwidth(own)
		}
	}
}

// members are the movers that are connected. f.mu is held.
func (f *Fleet) members() (out []member) {
	busy := map[string]bool{}
	for at := range f.places {
		busy[at.mover] = true
	}
	for id, l := range f.links {
		out = append(out, member{l.mover.Name, l.mover.Source, busy[id]})
	}
	return out
}

// LoadLimits reads the limits. own is told what the appliance's own mover may use, now and whenever that changes; its
// network is none, for it stores in this process.
func (f *Fleet) LoadLimits(ctx context.Context, own func(Bandwidth)) error {
	f.mu.Lock()
	f.ownBandwidth = own
	f.mu.Unlock()
	return f.reloadLimits(ctx)
}

// KeepLimits brings limits into force, and out of it, when their time comes, until ctx ends.
func (f *Fleet) KeepLimits(ctx context.Context) {
	for {
		now := time.Now()
		minute := time.NewTimer(now.Truncate(time.Minute).Add(time.Minute).Sub(now))
		select {
		case <-ctx.Done():
			minute.Stop()
			return
		case <-minute.C:
			if err := f.reloadLimits(ctx); err != nil && ctx.Err() == nil { // another manager may have changed them
				f.log.WarnContext(ctx, "limits were not read; those of before hold", "err", err)
				f.applyLimits()
				f.poke() // there may be slots now
			}
		}
	}
}

// Bandwidth is what a mover may use now.
func (f *Fleet) Bandwidth(id string) Bandwidth {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bandwidth[id]
}

// SlotsOf is how many transfers a mover takes at once, which itself takes no more than own.
func (f *Fleet) SlotsOf(name string, own int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.slots(name, own)
}

// slots is SlotsOf with f.mu held.
func (f *Fleet) slots(name string, own int) int {
	return min(own, slotsOf(f.limits, catalog.LimitMover, name, f.now().Local(), own))
}
