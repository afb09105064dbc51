package httpapi

import (
	"context"

	"github.com/cairn-backup/cairn/api/server"
)

func (h *handlers) StartCollect(ctx context.Context, r server.StartCollectRequestObject) (server.StartCollectResponseObject, error) {
	request := CollectRequest{DryRun: r.Body.DryRun}
	if below := r.Body.CompactBelow; below != nil {
		if request.Compact = *below; *below == 0 {
			request.Compact = -1
		}
	}
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartCollect(ctx, s, r.RepositoryID, request)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartCollect200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.StartCollect202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

func (h *handlers) StartRepositoryVerify(ctx context.Context, r server.StartRepositoryVerifyRequestObject) (server.StartRepositoryVerifyResponseObject, error) {
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartRepositoryVerify(ctx, s, r.RepositoryID, SweepRequest{
			BudgetBytes: r.Body.BudgetBytes, BytesPerSecond: r.Body.BytesPerSecond,
		})
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartRepositoryVerify200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.StartRepositoryVerify202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

func (h *handlers) StartHeal(ctx context.Context, r server.StartHealRequestObject) (server.StartHealResponseObject, error) {
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartHeal(ctx, s, r.RepositoryID, HealRequest{From: r.Body.From, DryRun: r.Body.DryRun})
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartHeal200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.StartHeal202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

func (h *handlers) StartScrub(ctx context.Context, r server.StartScrubRequestObject) (server.StartScrubResponseObject, error) {
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartScrub(ctx, s, r.RepositoryID, r.Body.BytesPerSecond)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartScrub200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.StartScrub202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}

func (h *handlers) StartRebuild(ctx context.Context, r server.StartRebuildRequestObject) (server.StartRebuildResponseObject, error) {
	run, done, err := h.start(ctx, r.Params.IdempotencyKey, r.Params.Prefer, func(s Start) (Started, error) {
		return h.s.core.StartRebuild(ctx, s, r.RepositoryID, r.MemberID, r.Body.Path)
	})
	if err != nil {
		return nil, err
	}
	if done {
		return server.StartRebuild200JSONResponse{RunEndedJSONResponse: ended(run)}, nil
	}
	return server.StartRebuild202JSONResponse{RunAcceptedJSONResponse: accepted(run)}, nil
}
