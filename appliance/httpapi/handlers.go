package httpapi

import (
	"context"
	"runtime"
	"strconv"
	"time"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// handlers implements the operations of the document.
type handlers struct{ s *Server }

var _ server.StrictServerInterface = (*handlers)(nil)

// value returns what a pointer points to, or the zero value.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// paged are the parameters that lists share.
func paged(limit *int, token, sort *string, total *bool) catalog.Page {
	return catalog.Page{Limit: value(limit), Cursor: value(token), Sort: value(sort), Total: value(total)}
}

// bounded gives a call the time that a call may take.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTimeout)
}

func (h *handlers) GetLivez(context.Context, server.GetLivezRequestObject) (server.GetLivezResponseObject, error) {
	return server.GetLivez200JSONResponse{Status: "ok"}, nil
}

func (h *handlers) GetReadyz(ctx context.Context, _ server.GetReadyzRequestObject) (server.GetReadyzResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err := h.s.core.Ready(ctx)
	select {
	case <-h.s.closing: // whoever spreads requests is to look for another appliance
		err = fault.New(fault.Transient, "", "", "the appliance is stopping")
	default:
	}
	if err != nil {
		// Anybody may ask, so nobody is told why.
		h.s.log.WarnContext(ctx, "not ready", "err", err)
		return nil, fault.New(fault.Transient, "", "", "the appliance is not ready")
	}
	return server.GetReadyz200JSONResponse{Status: "ok"}, nil
}

func (h *handlers) GetVersion(context.Context, server.GetVersionRequestObject) (server.GetVersionResponseObject, error) {
	v := h.s.version
	info, _ := h.s.contract.object("/info")["version"].(string)
	return server.GetVersion200JSONResponse{
		Version: v.Version, Commit: v.Commit, BuiltAt: v.Built.UTC(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		API: info, Schema: v.Schema,
	}, nil
}

func (h *handlers) SetUp(ctx context.Context, r server.SetUpRequestObject) (server.SetUpResponseObject, error) {
	issued, err := h.s.identity.SetUp(ctx, askedOf(ctx).source, r.Body.Token, string(r.Body.Username), string(r.Body.Password))
	if err != nil {
		return nil, unauthorized(err)
	}
	return server.SetUp201JSONResponse(issuedOf(issued)), nil
}

func (h *handlers) Login(ctx context.Context, r server.LoginRequestObject) (server.LoginResponseObject, error) {
	issued, err := h.s.identity.Login(ctx, askedOf(ctx).source, r.Body.Username, r.Body.Password)
	if err != nil {
		return nil, unauthorized(err)
	}
	return server.Login200JSONResponse(issuedOf(issued)), nil
}

func issuedOf(i identity.Issued) server.IssuedToken {
	return server.IssuedToken{Token: tokenOf(i.Token, i.User), Secret: i.Secret}
}

func (h *handlers) ListTokens(ctx context.Context, r server.ListTokensRequestObject) (server.ListTokensResponseObject, error) {
	caller := askedOf(ctx).caller
	list, err := h.s.identity.Tokens(ctx, caller, paged(r.Params.Limit, r.Params.PageToken, r.Params.Sort, r.Params.IncludeTotal))
	if err != nil {
		return nil, err
	}
	items := each(list.Items, func(t catalog.Token) server.Token { return tokenOf(t, caller.User) })
	return server.ListTokens200JSONResponse{Items: items, Next: list.Next, Total: list.Total}, nil
}

func (h *handlers) GetToken(ctx context.Context, r server.GetTokenRequestObject) (server.GetTokenResponseObject, error) {
	caller := askedOf(ctx).caller
	t, err := h.s.identity.Token(ctx, caller, r.TokenID)
	if err != nil {
		return nil, err
	}
	return server.GetToken200JSONResponse(tokenOf(t, caller.User)), nil
}

func (h *handlers) CreateToken(ctx context.Context, r server.CreateTokenRequestObject) (server.CreateTokenResponseObject, error) {
	scope := string(r.Body.Scope)
	if r.Body.Scope == server.ScopeAll {
		scope = ""
	}
	lifetime := time.Duration(r.Body.ExpiresInDays) * 24 * time.Hour
	issued, err := h.s.identity.IssueToken(ctx, askedOf(ctx).caller, r.Body.Name, scope, lifetime)
	if err != nil {
		return nil, err
	}
	h.note(ctx, "token.create", issued.Token.Name, issued.Token.ID)
	return server.CreateToken201JSONResponse(issuedOf(issued)), nil
}

func (h *handlers) DeleteToken(ctx context.Context, r server.DeleteTokenRequestObject) (server.DeleteTokenResponseObject, error) {
	if err := h.s.identity.DeleteToken(ctx, askedOf(ctx).caller, r.TokenID); err != nil {
		return nil, err
	}
	h.note(ctx, "token.remove", r.TokenID, "")
	return server.DeleteToken204Response{}, nil
}

func (h *handlers) ListConnections(ctx context.Context, r server.ListConnectionsRequestObject) (server.ListConnectionsResponseObject, error) {
	list, err := h.s.core.ListConnections(ctx, paged(r.Params.Limit, r.Params.PageToken, r.Params.Sort, r.Params.IncludeTotal))
	if err != nil {
		return nil, err
	}
	return server.ListConnections200JSONResponse{Items: each(list.Items, connectionOf), Next: list.Next, Total: list.Total}, nil
}

func (h *handlers) CreateConnection(ctx context.Context, r server.CreateConnectionRequestObject) (server.CreateConnectionResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	wanted := NewConnection{
		Name: r.Body.Name, Platform: hypervisors.Platform(r.Body.Platform), Address: r.Body.Address, User: r.Body.User,
		Password: catalog.Secret(r.Body.Password), Options: r.Body.Options,
	}
	if r.Body.DryRun {
		health, err := h.s.core.TryConnection(ctx, wanted)
		if err != nil {
			return nil, err
		}
		return server.CreateConnection200JSONResponse(healthOf(health)), nil
	}
	made, err := h.s.core.AddConnection(ctx, wanted)
	if err != nil {
		return nil, err
	}
	h.note(ctx, "connection.add", made.Name, made.ID)
	return server.CreateConnection201JSONResponse{
		Body: connectionOf(made), Headers: server.CreateConnection201ResponseHeaders{Location: location("connections", made.ID)},
	}, nil
}

func location(collection, id string) string { return api.BasePath + "/" + collection + "/" + id }

func (h *handlers) GetConnection(ctx context.Context, r server.GetConnectionRequestObject) (server.GetConnectionResponseObject, error) {
	c, err := h.s.core.GetConnection(ctx, r.ConnectionID)
	if err != nil {
		return nil, err
	}
	return server.GetConnection200JSONResponse(connectionOf(c)), nil
}

func (h *handlers) DeleteConnection(ctx context.Context, r server.DeleteConnectionRequestObject) (server.DeleteConnectionResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	was, err := h.s.core.GetConnection(ctx, r.ConnectionID)
	if err != nil {
		return nil, err
	}
	if err := h.s.core.RemoveConnection(ctx, r.ConnectionID); err != nil {
		return nil, err
	}
	h.note(ctx, "connection.remove", was.Name, was.ID)
	return server.DeleteConnection204Response{}, nil
}

func (h *handlers) CheckConnection(ctx context.Context, r server.CheckConnectionRequestObject) (server.CheckConnectionResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	health, err := h.s.core.CheckConnection(ctx, r.ConnectionID)
	if err != nil {
		return nil, err
	}
	return server.CheckConnection200JSONResponse(healthOf(health)), nil
}

func (h *handlers) RefreshConnection(ctx context.Context, r server.RefreshConnectionRequestObject) (server.RefreshConnectionResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	report, err := h.s.core.RefreshConnection(ctx, r.ConnectionID)
	if err != nil {
		return nil, err
	}
	return server.RefreshConnection200JSONResponse{
		VMs: report.VMs, Added: report.Added, Changed: report.Changed, Gone: report.Gone,
	}, nil
}

func (h *handlers) ListDatastores(ctx context.Context, r server.ListDatastoresRequestObject) (server.ListDatastoresResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	list, err := h.s.core.ListDatastores(ctx, r.ConnectionID)
	if err != nil {
		return nil, err
	}
	return server.ListDatastores200JSONResponse{Items: each(list, datastoreOf)}, nil
}

func (h *handlers) ListNetworks(ctx context.Context, r server.ListNetworksRequestObject) (server.ListNetworksResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	list, err := h.s.core.ListNetworks(ctx, r.ConnectionID)
	if err != nil {
		return nil, err
	}
	return server.ListNetworks200JSONResponse{Items: each(list, networkOf)}, nil
}

func (h *handlers) ListVMs(ctx context.Context, r server.ListVMsRequestObject) (server.ListVMsResponseObject, error) {
	list, err := h.s.core.ListVMs(ctx, catalog.VMFilter{
		ConnectionID: value(r.Params.Connection), Name: value(r.Params.Name),
		Power: hypervisors.Power(value(r.Params.Power)), Gone: value(r.Params.Gone), Filter: value(r.Params.Filter),
	}, paged(r.Params.Limit, r.Params.PageToken, r.Params.Sort, r.Params.IncludeTotal))
	if err != nil {
		return nil, err
	}
	return server.ListVMs200JSONResponse{Items: each(list.Items, vmOf), Next: list.Next, Total: list.Total}, nil
}

func (h *handlers) GetVM(ctx context.Context, r server.GetVMRequestObject) (server.GetVMResponseObject, error) {
	v, err := h.s.core.GetVM(ctx, r.VMID)
	if err != nil {
		return nil, err
	}
	out := vmOf(v)
	out.Description = descriptionOf(v.Description)
	if v.Coverage != nil {
		out.Coverage = coverageOf(*v.Coverage)
	}
	return server.GetVM200JSONResponse(out), nil
}

func (h *handlers) ListRestorePoints(ctx context.Context, r server.ListRestorePointsRequestObject) (server.ListRestorePointsResponseObject, error) {
	list, err := h.s.core.ListRestorePoints(ctx, catalog.PointFilter{
		VMID: value(r.Params.VM), RepositoryID: value(r.Params.Repository),
	}, paged(r.Params.Limit, r.Params.PageToken, r.Params.Sort, r.Params.IncludeTotal))
	if err != nil {
		return nil, err
	}
	return server.ListRestorePoints200JSONResponse{Items: each(list.Items, pointOf), Next: list.Next, Total: list.Total}, nil
}

func (h *handlers) GetRestorePoint(ctx context.Context, r server.GetRestorePointRequestObject) (server.GetRestorePointResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	p, err := h.s.core.GetRestorePoint(ctx, r.RestorePointID)
	if err != nil {
		return nil, err
	}
	return server.GetRestorePoint200JSONResponse(pointInfoOf(p)), nil
}

func pointInfoOf(p PointInfo) server.RestorePoint {
	out := pointOf(p.RestorePoint)
	if p.Description != nil {
		out.Description = descriptionOf(*p.Description)
	}
	return out
}

func (h *handlers) PruneRestorePoint(ctx context.Context, r server.PruneRestorePointRequestObject) (server.PruneRestorePointResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	was, err := h.s.core.GetRestorePoint(ctx, r.RestorePointID)
	if err != nil {
		return nil, err
	}
	if err := h.s.core.PruneRestorePoint(ctx, r.RestorePointID); err != nil {
		return nil, err
	}
	h.note(ctx, "point.prune", was.ID, "VM "+was.VMName+" of "+was.Time.UTC().Format(time.RFC3339))
	return server.PruneRestorePoint204Response{}, nil
}

func (h *handlers) ListRuns(ctx context.Context, r server.ListRunsRequestObject) (server.ListRunsResponseObject, error) {
	list, err := h.s.core.ListRuns(ctx, catalog.RunFilter{
		State: catalog.State(value(r.Params.State)), Kind: catalog.RunKind(value(r.Params.Kind)), VMID: value(r.Params.VM),
		PolicyID: value(r.Params.Policy),
	}, paged(r.Params.Limit, r.Params.PageToken, r.Params.Sort, r.Params.IncludeTotal))
	if err != nil {
		return nil, err
	}
	return server.ListRuns200JSONResponse{Items: each(list.Items, runOf), Next: list.Next, Total: list.Total}, nil
}

func (h *handlers) GetRun(ctx context.Context, r server.GetRunRequestObject) (server.GetRunResponseObject, error) {
	run, err := h.s.core.GetRun(ctx, r.RunID)
	if err != nil {
		return nil, err
	}
	return server.GetRun200JSONResponse(runOf(run)), nil
}

func (h *handlers) ListRunEvents(ctx context.Context, r server.ListRunEventsRequestObject) (server.ListRunEventsResponseObject, error) {
	var after int64
	if token := value(r.Params.PageToken); token != "" {
		var err error
		if after, err = strconv.ParseInt(token, 10, 64); err != nil || after < 0 {
			return nil, fault.New(fault.Invalid, "list events", "", "the page token is not one of this list")
		}
	}
	limit := value(r.Params.Limit)
	if limit == 0 {
		limit = catalog.DefaultLimit
	}
	events, err := h.s.core.ListRunEvents(ctx, r.RunID, after, limit)
	if err != nil {
		return nil, err
	}
	out := server.ListRunEvents200JSONResponse{Items: each(events, runEventOf)}
	if len(events) == limit {
		out.Next = out.Items[limit-1].ID
	}
	return out, nil
}

func (h *handlers) ListTasks(ctx context.Context, r server.ListTasksRequestObject) (server.ListTasksResponseObject, error) {
	f := catalog.TaskFilter{RunID: value(r.Params.Run), VMID: value(r.Params.VM)}
	if r.Params.State != nil {
		f.States = []catalog.State{catalog.State(*r.Params.State)}
	}
	list, err := h.s.core.ListTasks(ctx, f, paged(r.Params.Limit, r.Params.PageToken, r.Params.Sort, r.Params.IncludeTotal))
	if err != nil {
		return nil, err
	}
	return server.ListTasks200JSONResponse{Items: each(list.Items, taskOf), Next: list.Next, Total: list.Total}, nil
}

func (h *handlers) GetTask(ctx context.Context, r server.GetTaskRequestObject) (server.GetTaskResponseObject, error) {
	t, err := h.s.core.GetTask(ctx, r.TaskID)
	if err != nil {
		return nil, err
	}
	return server.GetTask200JSONResponse(taskOf(t)), nil
}

func (h *handlers) CancelTask(ctx context.Context, r server.CancelTaskRequestObject) (server.CancelTaskResponseObject, error) {
	if err := h.s.core.CancelTask(ctx, r.TaskID); err != nil {
		return nil, err
	}
	t, err := h.s.core.GetTask(ctx, r.TaskID)
	if err != nil {
		return nil, err
	}
	return server.CancelTask202JSONResponse(taskOf(t)), nil
}
