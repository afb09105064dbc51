package httpapi

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// This file holds the operations that start a run.

// startOf tells the Core who starts something, and how a repetition is recognised.
func startOf(ctx context.Context, key *string) Start {
	a := askedOf(ctx)
	return Start{User: a.caller.User, Key: value(key), Fingerprint: a.fingerprint}
}

// start has a run started, and returns it and whether it ended while the client wanted to wait.
func (h *handlers) start(
	ctx context.Context, idempotencyKey, prefer *string, begin func(Start) (Started, error),
) (run RunInfo, done bool, err error) {
	key := startOf(ctx, idempotencyKey)
	started, err := begin(key)
	if err != nil {
		return RunInfo{}, false, err
	}
	if started.Replayed && started.Fingerprint != key.Fingerprint {
		return RunInfo{}, false, otherRequest()
	}
	wait := waitOf(value(prefer))
	if wait == 0 {
		run, err = h.s.core.GetRun(ctx, started.RunID)
		return run, false, err
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := h.s.stream.waitRun(waiting, h.s.closing, started.RunID, h.s.core.GetRun); err != nil {
		return RunInfo{}, false, err
	}
	run, err = h.s.core.GetRun(ctx, started.RunID)
	return run, err == nil && run.State.Final(), err
}

// waitOf reads "wait=N" of a Prefer header; what it does not know it ignores, as RFC 7240 wants it.
func waitOf(prefer string) time.Duration {
	for _, preference := range strings.Split(prefer, ",") {
		preference, _, _ = strings.Cut(preference, ";")
		name, seconds, _ := strings.Cut(strings.TrimSpace(preference), "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(seconds), `"`), 10, 31)
		if err != nil {
			return 0
		}
		return min(time.Duration(n)*time.Second, maxWait)
	}
	return 0
}

// ended and accepted are the two answers of an operation that starts a run.
func ended(run RunInfo) server.RunEndedJSONResponse {
	return server.RunEndedJSONResponse{
		Body: runOf(run), Headers: server.RunEndedResponseHeaders{Location: location("runs", run.ID)},
	}
}

func accepted(run RunInfo) server.RunAcceptedJSONResponse {
	return server.RunAcceptedJSONResponse{
		Body: runOf(run), Headers: server.RunAcceptedResponseHeaders{Location: location("runs", run.ID)},
	}
}

func (h *handlers) StartBackup(ctx context.Context, r server.StartBackupRequestObject) (server.StartBackupResponseObject, error) {
	quiesce := hypervisors.Quiesce(r.Body.Quiesce)
	if quiesce == "" {
		quiesce = hypervisors.QuiesceTry
	}
	request := BackupRequest{
		VMID: r.VMID, RepositoryID: r.Body.Repository, Quiesce: quiesce, ExcludeDisks: r.Body.ExcludeDisks, Full: r.Body.Full,
		Mover: r.Body.Mover, Transport: r.Body.Transport, Fallback: r.Body.Fallback,
	}
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartBackup(ctx, s, request)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartBackup200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.StartBackup202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

func (h *handlers) StartVerify(ctx context.Context, r server.StartVerifyRequestObject) (server.StartVerifyResponseObject, error) {
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartVerify(ctx, s, r.RestorePointID)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartVerify200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.StartVerify202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

func (h *handlers) StartRestore(ctx context.Context, r server.StartRestoreRequestObject) (server.StartRestoreResponseObject, error) {
	request, err := restoreOf(*r.Body)
	if err != nil {
		return nil, err
	}
	if r.Body.DryRun {
		ctx, cancel := bounded(ctx)
		defer cancel()
		plan, err := h.s.core.PlanRestore(ctx, request)
		if err != nil {
			return nil, err
		}
		return server.StartRestore200JSONResponse{Plan: planOf(plan)}, nil
	}
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartRestore(ctx, s, request)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartRestore200JSONResponse{Run: runOf(run)}, nil
	}
	return server.StartRestore202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

// restoreOf translates a request and refuses what contradicts itself.
func restoreOf(b server.RestoreRequest) (RestoreRequest, error) {
	out := RestoreRequest{
		RestorePointID: b.RestorePoint, Mode: hypervisors.RestoreMode(b.Mode), Name: b.Name, IntoVMID: b.VM, ConnectionID: b.Connection,
		Datastore: b.Datastore, OnlyDisks: b.OnlyDisks, Networks: b.Networks, KeepMACs: b.KeepMACs, Start: b.Start,
		Mover: b.Mover, Transport: b.Transport, Fallback: b.Fallback,
	}
	var wrong []server.ProblemField
	if out.Mode == hypervisors.RestoreNew && b.Name == "" {
		wrong = append(wrong, server.ProblemField{Pointer: "#/name", Detail: "a new VM needs a name"})
	}
	if out.Mode == hypervisors.RestoreInPlace {
		if len(b.Networks) > 0 {
			wrong = append(wrong, server.ProblemField{Pointer: "#/networks", Detail: "in place the VM keeps its networks"})
		}
		if b.Name != "" {
			wrong = append(wrong, server.ProblemField{Pointer: "#/name", Detail: "in place the VM keeps its name"})
		}
		if b.Connection != "" {
			wrong = append(wrong, server.ProblemField{Pointer: "#/connection", Detail: "in place the VM stays where it is"})
		}
	}
	wrong = append(wrong, disksAloneWrong(out)...)
	for i, id := range b.OnlyDisks {
		if slices.Contains(b.OnlyDisks[:i], id) {
			wrong = append(wrong, server.ProblemField{Pointer: "#/only_disks/" + strconv.Itoa(i), Detail: "this disk is named twice"})
		}
	}
	seen := map[string]bool{}
	for i, d := range b.Disks {
		if seen[d.ID] {
			at := "#/disks/" + strconv.Itoa(i) + "/id"
			wrong = append(wrong, server.ProblemField{Pointer: at, Detail: "this disk is named twice"})
		}
		seen[d.ID] = true
		out.Disks = append(out.Disks, hypervisors.RestoreDisk{
			ID: d.ID, Datastore: d.Datastore, Format: hypervisors.DiskFormat(d.Format),
		})
	}
	if len(wrong) > 0 {
		r := reject(fault.Invalid, 0, "body", wrong[0].Pointer+": "+wrong[0].Detail)
		r.fields = wrong
		return RestoreRequest{}, r
	}
	return out, nil
}

// disksAloneWrong says what contradicts a restore of disks that makes no VM, and who else names a VM.
func disksAloneWrong(r RestoreRequest) (wrong []server.ProblemField) {
	add := func(bad bool, pointer, detail string) {
		if bad {
			wrong = append(wrong, server.ProblemField{Pointer: pointer, Detail: detail})
		}
	}
	into := r.Mode == hypervisors.RestoreInto
	add(into && r.IntoVMID == "", "#/vm", "the VM that gets the disks is not named")
	add(!into && r.IntoVMID != "", "#/vm", "a VM is named only for disks that are restored into it")
	if !r.Mode.DisksOnly() {
		return wrong
	}
	add(into && r.Name != "", "#/name", "the VM keeps its name, and the disks are named after it")
	add(into && r.ConnectionID != "", "#/connection", "the disks go where the VM is")
	add(len(r.Networks) > 0, "#/networks", "disks have no networks")
	add(r.KeepMACs, "#/keep_macs", "disks have no MAC addresses")
	add(r.Start, "#/start", "no VM is restored that could be started")
	return wrong
}

func (h *handlers) CancelRun(ctx context.Context, r server.CancelRunRequestObject) (server.CancelRunResponseObject, error) {
	if err := h.s.core.CancelRun(ctx, r.RunID); err != nil {
		return nil, err
	}
	run, err := h.s.core.GetRun(ctx, r.RunID)
	if err != nil {
		return nil, err
	}
	return server.CancelRun202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}
