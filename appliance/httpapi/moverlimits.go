package httpapi

import (
	"context"
	"fmt"
	"strings"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/internal/fault"
)

func (h *handlers) ListMoverLimits(ctx context.Context, _ server.ListMoverLimitsRequestObject) (server.ListMoverLimitsResponseObject, error) {
	list, err := h.s.core.ListMoverLimits(ctx)
	if err != nil {
		return nil, err
	}
	return server.ListMoverLimits200JSONResponse{Items: each(list, limitOf)}, nil
}

func (h *handlers) GetMoverLimit(ctx context.Context, r server.GetMoverLimitRequestObject) (server.GetMoverLimitResponseObject, error) {
	list, err := h.s.core.ListMoverLimits(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		if l.ID == r.LimitID {
			return server.GetMoverLimit200JSONResponse(limitOf(l)), nil
		}
	}
	return nil, none("limit", r.LimitID)
}

// none is the error about a thing that is not in its list.
func none(what, id string) error {
	return fault.New(fault.NotFound, "look up "+what, id, "there is none").Explain(
		"The appliance does not know it, or not any more.", "List what there is, and name one of those.")
}

func (h *handlers) AddMoverLimit(ctx context.Context, r server.AddMoverLimitRequestObject) (server.AddMoverLimitResponseObject, error) {
	q := r.Body
	l := catalog.MoverLimit{
		Kind: catalog.LimitKind(q.Kind), Name: q.Name, Slots: q.Slots, Read: q.ReadBytesPerSecond, Network: q.NetworkBytesPerSecond,
	}
	if (q.From == "") != (q.To == "") || q.From != "" && q.From == q.To {
		return nil, fault.New(fault.Invalid, "create limit", q.Name, "its window is from %q to %q", q.From, q.To).Explain(
			"A window has a beginning and another end.", "Give both, or none for always.")
	}
	l.From, l.To = minutes(q.From), minutes(q.To)
	days := make([]string, len(q.Days))
	for i, d := range q.Days {
		days[i] = string(d)
	}
	l.Days = strings.Join(days, ",")
	made, err := h.s.core.AddMoverLimit(ctx, whoAsks(ctx), l)
	if err != nil {
		return nil, err
	}
	return server.AddMoverLimit201JSONResponse(limitOf(made)), nil
}

func (h *handlers) RemoveMoverLimit(ctx context.Context, r server.RemoveMoverLimitRequestObject) (server.RemoveMoverLimitResponseObject, error) {
	if err := h.s.core.RemoveMoverLimit(ctx, whoAsks(ctx), r.LimitID); err != nil {
		return nil, err
	}
	return server.RemoveMoverLimit204Response{}, nil
}

// minutes reads a time of day, "22:30", of which the document's pattern has been checked; "" is midnight.
func minutes(s string) int {
	var h, m int
	_, _ = fmt.Sscanf(s, "%d:%d", &h, &m)
	return h*60 + m
}

func limitOf(l fleet.Limit) server.MoverLimit {
	out := server.MoverLimit{
		ID: l.ID, Kind: server.MoverLimitKind(l.Kind), Name: l.Name, Slots: l.Slots, ReadBytesPerSecond: l.Read,
		NetworkBytesPerSecond: l.Network, Holds: l.Holds, CreatedAt: l.CreatedAt.UTC(), CreatedBy: l.CreatedBy,
	}
	if l.From != l.To {
		out.From, out.To = clock(l.From), clock(l.To)
	}
	if l.Days != "" {
		out.Days = strings.Split(l.Days, ",")
	}
	return out
}

func clock(minutes int) string { return fmt.Sprintf("%02d:%02d", minutes/60, minutes%60) }
