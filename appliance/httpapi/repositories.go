package httpapi

import (
	"context"
	"strconv"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/erasure"
)

func (h *handlers) ListRepositories(ctx context.Context, r server.ListRepositoriesRequestObject) (server.ListRepositoriesResponseObject, error) {
	list, err := h.s.core.ListRepositories(ctx, paged(r.Params.Limit, r.Params.PageToken, r.Params.Sort, r.Params.IncludeTotal))
	if err != nil {
		return nil, err
	}
	return server.ListRepositories200JSONResponse{Items: each(list.Items, repositoryOf), Next: list.Next, Total: list.Total}, nil
}

func (h *handlers) CreateRepository(ctx context.Context, r server.CreateRepositoryRequestObject) (server.CreateRepositoryResponseObject, error) {
	wanted, err := newRepositoryOf(*r.Body)
	if err != nil {
		return nil, err
	}
	wanted.By = whoAsks(ctx)
	ctx, cancel := bounded(ctx)
	defer cancel()
	made, err := h.s.core.AddRepository(ctx, wanted)
	if err != nil {
		return nil, err
	}
	h.note(ctx, "repository.add", made.Name, made.ID)
	return server.CreateRepository201JSONResponse{
		Body: repositoryOf(made), Headers: server.CreateRepository201ResponseHeaders{Location: location("repositories", made.ID)},
	}, nil
}

// newRepositoryOf translates a request and refuses what contradicts itself.
func newRepositoryOf(b server.CreateRepositoryRequest) (NewRepository, error) {
	out := NewRepository{
		Name: b.Name, Path: b.Path, Attach: b.Mode == server.RepositoryAttach, KeyFile: b.KeyFile, KeySource: b.KeySource,
		DomainOf: b.DomainOf, Compression: string(b.Compression),
	}
	var w wrongs
	w.add(b.KeyFile != "" && !out.Attach, "#/key_file", "a repository that is created gets a new key")
	w.add(b.KeyFile != "" && b.KeySource != "", "#/key_source", "the key comes from one place")
	w.add(b.DomainOf != "" && out.Attach, "#/domain_of", "a repository that is there has its identities")
	set := len(b.Set.Members) > 0
	w.add(set && b.Path != "", "#/path", "the members of the set say where it lies")
	w.add(!set && b.Path == "", "#/path", "it is missing")
	w.add(set && !out.Attach && b.Set.Data == 0, "#/set/data", "it is missing")
	w.add(set && !out.Attach && b.Set.Parity == 0, "#/set/parity", "it is missing")
	w.add(out.Attach && b.Set.Data+b.Set.Parity > 0, "#/set/data", "a set that is there has its layout")
	w.add(!out.Attach && len(b.Set.Trust) > 0, "#/set/trust", "a new set has all there is")
	w.add(len(b.Set.Trust) > 0 && !bool(b.Set.AcceptLoss), "#/set/accept_loss", "it is missing")
	if set {
		out.Set = &NewSet{
			Layout: erasure.Layout{Data: b.Set.Data, Parity: b.Set.Parity}, Members: membersOf(b.Set.Members), Force: b.Set.Force, Trust: b.Set.Trust,
		}
	}
	return out, w.err()
}

func membersOf(in []server.SetMember) []NewMember {
	return each(in, func(m server.SetMember) NewMember { return NewMember{Path: m.Path, Domain: m.Domain} })
}

// wrongs collects contradictions in a body.
type wrongs []server.ProblemField

func (w *wrongs) add(wrong bool, pointer, detail string) {
	if wrong {
		*w = append(*w, server.ProblemField{Pointer: pointer, Detail: detail})
	}
}

func (w wrongs) err() error {
	if len(w) == 0 {
		return nil
	}
	r := reject(fault.Invalid, 0, "body", w[0].Pointer+": "+w[0].Detail)
	r.fields = w
	return r
}

func (h *handlers) GetRepository(ctx context.Context, r server.GetRepositoryRequestObject) (server.GetRepositoryResponseObject, error) {
	repo, err := h.s.core.GetRepository(ctx, r.RepositoryID)
	if err != nil {
		return nil, err
	}
	return server.GetRepository200JSONResponse(repositoryOf(repo)), nil
}

func (h *handlers) UpdateRepository(ctx context.Context, r server.UpdateRepositoryRequestObject) (server.UpdateRepositoryResponseObject, error) {
	change := RepositoryChange{Compression: string(r.Body.Compression)}
	if v := r.Body.Verification; v != nil {
		change.Verification = &VerificationSettings{EveryDays: v.EveryDays, BytesPerSecond: v.BytesPerSecond}
	}
	repo, err := h.s.core.UpdateRepository(ctx, r.RepositoryID, change)
	if err != nil {
		return nil, err
	}
	h.note(ctx, "repository.change", repo.Name, change.words())
	return server.UpdateRepository200JSONResponse(repositoryOf(repo)), nil
}

func (h *handlers) DetachRepository(ctx context.Context, r server.DetachRepositoryRequestObject) (server.DetachRepositoryResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	name, err := h.s.core.DetachRepository(ctx, r.RepositoryID)
	if err != nil {
		return nil, err
	}
	h.note(ctx, "repository.detach", name, r.RepositoryID)
	return server.DetachRepository204Response{}, nil
}

func (h *handlers) GrowRepository(ctx context.Context, r server.GrowRepositoryRequestObject) (server.GrowRepositoryResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	repo, err := h.s.core.GrowRepository(ctx, r.RepositoryID, membersOf(r.Body.Members), r.Body.Force)
	if err != nil {
		return nil, err
	}
	h.note(ctx, "repository.grow", repo.Name, strconv.Itoa(len(r.Body.Members))+" more members")
	return server.GrowRepository200JSONResponse(repositoryOf(repo)), nil
}

func (h *handlers) TrustMembers(ctx context.Context, r server.TrustMembersRequestObject) (server.TrustMembersResponseObject, error) {
	who := whoAsks(ctx)
	ctx, cancel := patiently(ctx)
	defer cancel()
	repo, err := h.s.core.TrustMembers(ctx, who, r.RepositoryID, r.Body.Members)
	if err != nil {
		return nil, err
	}
	return server.TrustMembers200JSONResponse(repositoryOf(repo)), nil
}

func (h *handlers) GetRepositoryDamage(ctx context.Context, r server.GetRepositoryDamageRequestObject) (server.GetRepositoryDamageResponseObject, error) {
	ctx, cancel := patiently(ctx)
	defer cancel()
	d, err := h.s.core.RepositoryDamage(ctx, r.RepositoryID)
	if err != nil {
		return nil, err
	}
	return server.GetRepositoryDamage200JSONResponse{Packs: each(d.Packs, damagedPackOf), Touched: each(d.Touched, touchedOf)}, nil
}

func (h *handlers) GetRepositorySpace(ctx context.Context, r server.GetRepositorySpaceRequestObject) (server.GetRepositorySpaceResponseObject, error) {
	ctx, cancel := patiently(ctx)
	defer cancel()
	space, err := h.s.core.RepositorySpace(ctx, r.RepositoryID, value(r.Params.Without))
	if err != nil {
		return nil, err
	}
	return server.GetRepositorySpace200JSONResponse(spaceOf(space)), nil
}
