package httpapi

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// This file holds restores of many VMs at once.

// RestoresRequest asks for the restores of many VMs. Empty fields mean: as in the restore points.
type RestoresRequest struct {
	Filter                 string
	Before                 time.Time // zero is any
	RepositoryID           string    // "" is any
	Mode                   hypervisors.RestoreMode
	NamePrefix, NameSuffix string
	ConnectionID           string
	Datastore              string
	Networks               map[string]string
	KeepMACs, Start        bool
	Mover, Transport       string // "" is chosen
	Fallback               bool   // to another transport when one fails
	LeaveOut               bool   // the VMs that cannot be restored
}

// RestoresPlan says what the restores of many VMs would make.
type RestoresPlan struct {
	VMs      []RestoresPlanVM
	Warnings []string
}

// RestoresPlanVM is one VM that was selected; Err says why it cannot be restored.
type RestoresPlanVM struct {
	ID, Name     string
	ConnectionID string // where it is restored to
	As           string
	Point        catalog.RestorePoint // without an id there is none
	Disks        []hypervisors.RestoreDisk
	Warnings     []string
	Err          error
}

// StartRestores implements server.StrictServerInterface.
func (h *handlers) StartRestores(ctx context.Context, r server.StartRestoresRequestObject) (server.StartRestoresResponseObject, error) {
	request, err := restoresOf(*r.Body)
	if err != nil {
		return nil, err
	}
	if r.Body.DryRun {
		ctx, cancel := bounded(ctx)
		defer cancel()
		plan, err := h.s.core.PlanRestores(ctx, request)
		if err != nil {
			return nil, err
		}
		return server.StartRestores200JSONResponse{Plan: restoresPlanOf(plan)}, nil
	}
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartRestores(ctx, s, request)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartRestores200JSONResponse{Run: runOf(run)}, nil
	}
	return server.StartRestores202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

// restoresOf translates a request and refuses what contradicts itself.
func restoresOf(b server.RestoresRequest) (RestoresRequest, error) {
	out := RestoresRequest{
		Filter: b.Filter, Before: b.Before.UTC(), RepositoryID: b.Repository, Mode: hypervisors.RestoreMode(b.Mode),
		NamePrefix: b.NamePrefix, NameSuffix: b.NameSuffix, ConnectionID: b.Connection, Datastore: b.Datastore, Networks: b.Networks,
		KeepMACs: b.KeepMACs, Start: b.Start, Mover: b.Mover, Transport: b.Transport, Fallback: b.Fallback, LeaveOut: b.LeaveOut,
	}
	var wrong []server.ProblemField
	if out.Mode == hypervisors.RestoreInPlace {
		for at, given := range map[string]string{"#/name_prefix": b.NamePrefix, "#/name_suffix": b.NameSuffix} {
			if given != "" {
				wrong = append(wrong, server.ProblemField{Pointer: at, Detail: "in place the VMs keep their names"})
			}
		}
		if b.Connection != "" {
			wrong = append(wrong, server.ProblemField{Pointer: "#/connection", Detail: "in place the VMs stay where they are"})
		}
		if len(b.Networks) > 0 {
			wrong = append(wrong, server.ProblemField{Pointer: "#/networks", Detail: "in place the VMs keep their networks"})
		}
	}
	if len(wrong) > 0 {
		r := reject(fault.Invalid, 0, "body", wrong[0].Pointer+": "+wrong[0].Detail)
		r.fields = wrong
		return RestoresRequest{}, r
	}
	return out, nil
}

func restoresPlanOf(p RestoresPlan) server.RestoresPlan {
	return server.RestoresPlan{Warnings: p.Warnings, VMs: each(p.VMs, func(v RestoresPlanVM) server.RestoresPlanVM {
		out := server.RestoresPlanVM{
			VMID: v.ID, VMName: v.Name, ConnectionID: v.ConnectionID, Name: v.As, RestorePointID: v.Point.ID, RestorePointAt: at(&v.Point.Time),
			Disks: len(v.Disks), Warnings: v.Warnings, Error: failureOf(catalog.FailureOf(v.Err)),
		}
		for _, d := range v.Disks {
			out.SizeBytes += d.SizeBytes
		}
		return out
	})}
}
