package httpapi

import (
	"bytes"
	"context"
	"mime"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
)

// Standings is the part of Core about the appliance itself.
type Standings interface {
	GetAppliance(ctx context.Context) (ApplianceInfo, error)
	// ResumeAppliance lets things begin by themselves again; a Conflict error when the appliance was recovered elsewhere.
	ResumeAppliance(ctx context.Context, who fleet.Who) error
	// SupportBundle gathers a support bundle, a zip archive without secrets, and returns a name for it; a Conflict error while
	// another one is gathered.
	SupportBundle(ctx context.Context, who fleet.Who) (name string, archive []byte, err error)
}

// ApplianceInfo is which appliance this is, with the repositories that its configuration is saved in.
type ApplianceInfo struct {
	catalog.Standing
	Repositories []catalog.Repository
}

func (h *handlers) appliance(ctx context.Context) (server.Appliance, error) {
	a, err := h.s.core.GetAppliance(ctx)
	return applianceOf(a), err
}

func (h *handlers) GetAppliance(ctx context.Context, _ server.GetApplianceRequestObject) (server.GetApplianceResponseObject, error) {
	a, err := h.appliance(ctx)
	if err != nil {
		return nil, err
	}
	return server.GetAppliance200JSONResponse(a), nil
}

func (h *handlers) ResumeAppliance(ctx context.Context, _ server.ResumeApplianceRequestObject) (server.ResumeApplianceResponseObject, error) {
	if err := h.s.core.ResumeAppliance(ctx, whoAsks(ctx)); err != nil {
		return nil, err
	}
	a, err := h.appliance(ctx)
	if err != nil {
		return nil, err
	}
	return server.ResumeAppliance200JSONResponse(a), nil
}

func applianceOf(a ApplianceInfo) server.Appliance {
	out := server.Appliance{
		ID: a.Appliance, Incarnation: a.Incarnation, State: server.ApplianceActive, RecoveredAt: at(a.RecoveredAt), RecoveredFrom: a.From,
		SupersededAt: at(a.SupersededAt), SupersededBy: a.By, Configuration: each(a.Repositories, configurationSaveOf),
	}
	switch {
	case a.SupersededAt != nil:
		out.State = server.ApplianceSuperseded
	case a.Held:
		out.State = server.ApplianceHeld
	}
	return out
}

func configurationSaveOf(r catalog.Repository) server.ConfigurationSave {
	out := server.ConfigurationSave{RepositoryID: r.ID, Repository: r.Name, State: server.ConfigurationNever}
	if r.Saved != nil {
		out.SavedAt, out.Error, out.State = at(r.Saved.SavedAt), failureOf(r.Saved.Error), server.ConfigurationSaved
		if r.Saved.Error != nil {
			out.State = server.ConfigurationFailed
		}
	}
	return out
}

func (h *handlers) CreateSupportBundle(ctx context.Context, _ server.CreateSupportBundleRequestObject) (server.CreateSupportBundleResponseObject, error) {
	name, archive, err := h.s.core.SupportBundle(ctx, whoAsks(ctx))
	if err != nil {
		return nil, err
	}
	return server.CreateSupportBundle200ApplicationZipResponse{
		Body: bytes.NewReader(archive), ContentLength: int64(len(archive)),
		Headers: server.CreateSupportBundle200ResponseHeaders{ContentDisposition: mime.FormatMediaType("attachment", map[string]string{"filename": name})},
	}, nil
}
