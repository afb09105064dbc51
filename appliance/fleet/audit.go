package fleet

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Audit writes to the audit log; what could not be written is in the manager's own log at least. Refusals are written for
// each enrolled mover, and for each address of strangers, a few at once and then one in a while; it says how many were
// left out before. Strangers cannot use up what movers have.
func (f *Fleet) Audit(ctx context.Context, e catalog.AuditEntry) {
	ctx = context.WithoutCancel(ctx) // who asked for too much may hang up
	e.Detail = brief(e.Detail)
	level := slog.LevelInfo
	if e.Refused {
		level = slog.LevelWarn
		ok, unsaid := f.mayAudit(ctx, e)
		if !ok {
			if unsaid == 1 {
				f.log.WarnContext(ctx, "too many refusals: they are counted, and not written one by one for a while", "source", e.Source, "actor", e.Actor)
			}
			return
		}
		if unsaid > 0 {
			e.Detail += fmt.Sprintf(" (and %d more refusals before this one)", unsaid)
		}
	}
	f.log.Log(ctx, level, "audit", "action", e.Action, "subject", e.Subject, "source", e.Source, "refused", e.Refused, "detail", e.Detail)
	if err := f.catalog.Audit(ctx, e); err != nil {
		f.log.ErrorContext(ctx, "audit log was not written", "action", e.Action, "err", err)
	}
}

// mayAudit asks the quota of who is refused: that of the mover which makes the call, else that of its address.
func (f *Fleet) mayAudit(ctx context.Context, e catalog.AuditEntry) (ok bool, unsaid int) {
	if p, err := PeerOf(ctx); err == nil {
		return f.moverAudits.allow(p.Mover.ID, f.now())
	}
	return f.strangerAudits.allow(e.Source, f.now())
}

// unknown answers calls that there are not, such as one that deletes.
func (f *Fleet) unknown(_ any, s grpc.ServerStream) error {
	ctx := s.Context()
	method, _ := grpc.MethodFromServerStream(s)
	p, err := PeerOf(ctx)
	if err != nil {
		return pb.Status(err)
	}
	err = fault.New(fault.Unsupported, "call manager", brief(method), "there is no such call").Explain(
		"The mover asks for something that this manager does not do.", "If the mover is newer than the manager, upgrade the manager.")
	f.Audit(ctx, catalog.AuditEntry{
		Actor: "mover " + p.Mover.ID, Source: p.Source, Action: "mover.call", Subject: brief(method), Refused: true, Detail: "there is no such call",
	})
	return pb.Status(err)
}
