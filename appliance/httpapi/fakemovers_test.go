package httpapi

import (
	"context"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/deploy"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/internal/fault"
)

// This file is the part of fakeCore about movers and the audit log.

var someMover = fleet.Info{
	Mover: catalog.Mover{
		ID: "mover_1", Name: "m1", Drained: true, Slots: 4, Source: "192.0.2.7", EnrolledAt: someTime, CertificateEnds: someTime,
		LastSeen: &someTime, RevokedAt: &someTime,
		Facts: catalog.MoverFacts{
			Version: "v", Hostname: "h", CPUs: 2, MemoryBytes: 3, Transports: []string{"nbd"}, MachineUUID: "u",
			Mounts: []catalog.MoverMount{{Path: "/r", StoreID: "s"}},
		},
		DeployedOn: "conn_1",
	},
	State: fleet.Draining, Since: someTime, Transfers: 1, Rate: 5, Limit: fleet.Bandwidth{Read: 6, Network: 7}, Received: 8, Sent: 9,
}

func (f *fakeCore) ListMovers(context.Context) ([]fleet.Info, error) {
	unlock, err := f.enter()
	defer unlock()
	return []fleet.Info{someMover}, err
}

func (f *fakeCore) GetMover(_ context.Context, id string) (fleet.Info, error) {
	unlock, err := f.enter()
	defer unlock()
	if err == nil && id != someMover.ID {
		return fleet.Info{}, fault.New(fault.NotFound, "look up mover", id, "there is none")
	}
	return someMover, err
}

func (f *fakeCore) CreateMoverToken(_ context.Context, n fleet.NewToken) (MoverToken, error) {
	unlock, err := f.enter()
	defer unlock()
	f.started = append(f.started, n)
	return MoverToken{
		JoinToken: catalog.JoinToken{ID: "tok_1", Name: n.Name, ExpiresAt: someTime.Add(time.Hour)}, Secret: "s", Fingerprint: "sha256:ab", Port: 8441,
	}, err
}

func (f *fakeCore) DeployMover(_ context.Context, s Start, spec deploy.Spec) (Started, error) {
	return f.start(s, catalog.KindDeploy, spec, spec.ConnectionID == "conn_1")
}

func (f *fakeCore) DrainMover(ctx context.Context, who fleet.Who, id string, drain bool) (fleet.Info, error) {
	f.mu.Lock()
	f.started = append(f.started, []any{who.User, drain})
	f.mu.Unlock()
	return f.GetMover(ctx, id)
}

func (f *fakeCore) RevokeMover(ctx context.Context, _ fleet.Who, id string) (fleet.Info, error) {
	return f.GetMover(ctx, id)
}

func (f *fakeCore) RemoveMover(ctx context.Context, _ fleet.Who, id string) error {
	_, err := f.GetMover(ctx, id)
	return err
}

func (f *fakeCore) ListMoverLimits(context.Context) ([]fleet.Limit, error) {
	unlock, err := f.enter()
	defer unlock()
	return []fleet.Limit{{MoverLimit: catalog.MoverLimit{
		ID: "limit_1", Kind: catalog.LimitLink, Name: "192.0.2.0/24", Read: 1, Network: 2, From: 1320, To: 375, Days: "mon,tue", CreatedAt: someTime, CreatedBy: "admin",
	}, Holds: true}}, err
}

func (f *fakeCore) AddMoverLimit(_ context.Context, _ fleet.Who, l catalog.MoverLimit) (fleet.Limit, error) {
	unlock, err := f.enter()
	defer unlock()
	f.started = append(f.started, l)
	l.ID, l.CreatedAt = "limit_2", someTime
	return fleet.Limit{MoverLimit: l}, err
}

func (f *fakeCore) RemoveMoverLimit(_ context.Context, _ fleet.Who, id string) error {
	unlock, err := f.enter()
	defer unlock()
	if err == nil && id != "limit_1" {
		return fault.New(fault.NotFound, "remove limit", id, "there is none")
	}
	return err
}

func (f *fakeCore) Note(_ context.Context, who fleet.Who, action, subject, detail string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, strings.Join([]string{who.User, action, subject, detail}, " "))
}

func (f *fakeCore) ListAudit(_ context.Context, before int64, limit int) ([]catalog.AuditEntry, error) {
	unlock, err := f.enter()
	defer unlock()
	var out []catalog.AuditEntry
	for seq := int64(3); seq > 0; seq-- {
		if (before == 0 || seq < before) && len(out) < limit {
			out = append(out, catalog.AuditEntry{
				Seq: seq, Time: someTime, Actor: "admin", Source: "192.0.2.1", Action: "mover.revoke", Subject: "m1", Refused: true, Detail: "d", Hash: "h",
			})
		}
	}
	return out, err
}
