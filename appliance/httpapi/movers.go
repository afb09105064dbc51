package httpapi

import (
	"context"
	"strconv"
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/deploy"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// Movers is the part of Core about movers and the audit log.
type Movers interface {
	// ListMovers returns all, the built-in one first.
	ListMovers(ctx context.Context) ([]fleet.Info, error)
	GetMover(ctx context.Context, id string) (fleet.Info, error)
	// CreateMoverToken makes a join token; an Exists error when its name is taken and it does not replace.
	CreateMoverToken(ctx context.Context, t fleet.NewToken) (MoverToken, error)
	// DrainMover and the others answer Conflict for what the built-in mover or a revoked one cannot.
	DrainMover(ctx context.Context, who fleet.Who, id string, drain bool) (fleet.Info, error)
	RevokeMover(ctx context.Context, who fleet.Who, id string) (fleet.Info, error)
	// DeployMover starts the run that makes a mover VM. RemoveMover removes it.
	DeployMover(ctx context.Context, s Start, spec deploy.Spec) (Started, error)
	RemoveMover(ctx context.Context, who fleet.Who, id string) error
	// AddMoverLimit answers Invalid for a limit that means nothing.
	AddMoverLimit(ctx context.Context, who fleet.Who, l catalog.MoverLimit) (fleet.Limit, error)
	RemoveMoverLimit(ctx context.Context, who fleet.Who, id string) error
	ListMoverLimits(ctx context.Context) ([]fleet.Limit, error)
	// ListAudit returns up to limit entries before a sequence number, 0 for the newest, the newest first.
	ListAudit(ctx context.Context, before int64, limit int) ([]catalog.AuditEntry, error)
	// Note writes to the audit log what somebody did.
	Note(ctx context.Context, who fleet.Who, action, subject, detail string)
}

// MoverToken is a new join token and what a mover needs beside it.
type MoverToken struct {
	catalog.JoinToken
	Secret      string
	Fingerprint string
	Port        int
}

func whoAsks(ctx context.Context) fleet.Who {
	a := askedOf(ctx)
	return fleet.Who{User: a.caller.User, Source: a.source}
}

func (h *handlers) note(ctx context.Context, action, subject, detail string) {
	h.s.core.Note(ctx, whoAsks(ctx), action, subject, detail)
}

func (h *handlers) ListMovers(ctx context.Context, _ server.ListMoversRequestObject) (server.ListMoversResponseObject, error) {
	list, err := h.s.core.ListMovers(ctx)
	if err != nil {
		return nil, err
	}
	return server.ListMovers200JSONResponse{Items: each(list, moverOf)}, nil
}

func (h *handlers) GetMover(ctx context.Context, r server.GetMoverRequestObject) (server.GetMoverResponseObject, error) {
	m, err := h.s.core.GetMover(ctx, r.MoverID)
	if err != nil {
		return nil, err
	}
	return server.GetMover200JSONResponse(moverOf(m)), nil
}

func (h *handlers) CreateMoverToken(ctx context.Context, r server.CreateMoverTokenRequestObject) (server.CreateMoverTokenResponseObject, error) {
	who := whoAsks(ctx)
	t, err := h.s.core.CreateMoverToken(ctx, fleet.NewToken{
		Name: r.Body.Name, Replace: r.Body.Replace, Life: time.Duration(r.Body.ExpiresInSeconds) * time.Second, By: who.User, Source: who.Source,
	})
	if err != nil {
		return nil, err
	}
	return server.CreateMoverToken201JSONResponse{
		ID: t.ID, Name: t.Name, Token: t.Secret, Fingerprint: t.Fingerprint, Port: t.Port, ExpiresAt: t.ExpiresAt.UTC(),
	}, nil
}

func (h *handlers) DrainMover(ctx context.Context, r server.DrainMoverRequestObject) (server.DrainMoverResponseObject, error) {
	m, err := h.s.core.DrainMover(ctx, whoAsks(ctx), r.MoverID, true)
	if err != nil {
		return nil, err
	}
	return server.DrainMover200JSONResponse(moverOf(m)), nil
}

func (h *handlers) ResumeMover(ctx context.Context, r server.ResumeMoverRequestObject) (server.ResumeMoverResponseObject, error) {
	m, err := h.s.core.DrainMover(ctx, whoAsks(ctx), r.MoverID, false)
	if err != nil {
		return nil, err
	}
	return server.ResumeMover200JSONResponse(moverOf(m)), nil
}

func (h *handlers) RevokeMover(ctx context.Context, r server.RevokeMoverRequestObject) (server.RevokeMoverResponseObject, error) {
	m, err := h.s.core.RevokeMover(ctx, whoAsks(ctx), r.MoverID)
	if err != nil {
		return nil, err
	}
	return server.RevokeMover200JSONResponse(moverOf(m)), nil
}

func (h *handlers) RemoveMover(ctx context.Context, r server.RemoveMoverRequestObject) (server.RemoveMoverResponseObject, error) {
	if err := h.s.core.RemoveMover(ctx, whoAsks(ctx), r.MoverID); err != nil {
		return nil, err
	}
	return server.RemoveMover204Response{}, nil
}

func (h *handlers) ListAudit(ctx context.Context, r server.ListAuditRequestObject) (server.ListAuditResponseObject, error) {
	var before int64
	if token := value(r.Params.PageToken); token != "" {
		var err error
		if before, err = strconv.ParseInt(token, 10, 64); err != nil || before < 1 {
			return nil, fault.New(fault.Invalid, "read audit log", "", "the page token is not one of this list")
		}
	}
	limit := value(r.Params.Limit)
	if limit == 0 {
		limit = catalog.DefaultLimit
	}
	entries, err := h.s.core.ListAudit(ctx, before, limit)
	if err != nil {
		return nil, err
	}
	out := server.ListAudit200JSONResponse{Items: each(entries, auditOf)}
	if len(entries) == limit {
		out.Next = out.Items[limit-1].ID
	}
	return out, nil
}

func (h *handlers) DeployMover(ctx context.Context, r server.DeployMoverRequestObject) (server.DeployMoverResponseObject, error) {
	spec := deploy.Spec{
		Name: r.Body.Name, ConnectionID: r.Body.Connection, Manager: r.Body.Manager, Datastore: r.Body.Datastore, Network: r.Body.Network,
		Address: r.Body.Address, Gateway: r.Body.Gateway, DNS: r.Body.DNS, Storage: r.Body.Storage, Sessions: r.Body.Sessions, Image: r.Body.Image, CPUs: r.Body.CPUs, MemoryBytes: r.Body.MemoryBytes,
		User: whoAsks(ctx).User,
	}
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.DeployMover(ctx, s, spec)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.DeployMover200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.DeployMover202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

func moverOf(m fleet.Info) server.Mover {
	return server.Mover{
		ID: m.ID, Name: m.Name, State: server.MoverState(m.State), Transfers: m.Transfers, Slots: m.Slots, Rate: m.Rate,
		Version: m.Facts.Version, Hostname: m.Facts.Hostname, CPUs: m.Facts.CPUs, MemoryBytes: m.Facts.MemoryBytes,
		Transports: m.Facts.Transports, MachineUUID: m.Facts.MachineUUID, DeployedOn: m.DeployedOn, Source: m.Source, EnrolledAt: m.EnrolledAt.UTC(),
		ReadLimit: m.Limit.Read, NetworkLimit: m.Limit.Network, ReceivedBytes: m.Received, SentBytes: m.Sent,
		Outdated: m.Facts.Version != "" && m.Facts.Version != version.Version, Mounts: each(m.Facts.Mounts, mountOf),
		ConnectedAt: m.Since.UTC(), LastSeenAt: at(m.LastSeen), RevokedAt: at(m.RevokedAt), CertificateEndsAt: m.CertificateEnds.UTC(),
	}
}

func mountOf(m catalog.MoverMount) server.MoverMount {
	return server.MoverMount{Path: m.Path, StoreID: m.StoreID}
}

func auditOf(e catalog.AuditEntry) server.AuditEntry {
	return server.AuditEntry{
		ID: strconv.FormatInt(e.Seq, 10), Time: e.Time.UTC(), Actor: e.Actor, Source: e.Source, Action: e.Action, Subject: e.Subject,
		Refused: e.Refused, Detail: e.Detail, Hash: e.Hash,
	}
}
