package command

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/desired"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

// change is one thing that is to be made, changed or removed, in the order in which it is done.
type change struct {
	Kind   string   `json:"kind"` // connection, repository, exclusion or policy
	Name   string   `json:"name"` // of an exclusion its filter
	Action string   `json:"action"`
	Fields []string `json:"fields,omitempty"` // what changes
	do     func(ctx context.Context) error
}

// The actions, and their signs.
const (
	actionCreate = "create"
	actionChange = "change"
	actionRemove = "remove"
)

var actionSigns = map[string]string{actionCreate: "+", actionChange: "~", actionRemove: "-"}

// difference is what turns what there is into what there shall be.
type difference struct {
	a      *App
	s      *remote.Session
	want   desired.State
	remove bool // what is not wanted

	connections  []client.Connection
	repositories []client.Repository
	policies     []client.Policy
	exclusions   []client.Exclusion

	steps    []change
	proposal client.CoverageProposal
	plan     client.CoveragePlan
	notes    []string
}

// newRepositoryID stands for a repository that is to be made, in what is only planned.
const newRepositoryID = "new"

// read reads what there is.
func (d *difference) read(ctx context.Context) (err error) {
	if d.connections, err = listConnections(ctx, d.s); err != nil {
		return err
	}
	if d.repositories, err = listRepositories(ctx, d.s); err != nil {
		return err
	}
	resp, err := d.s.ListPolicies(ctx)
	policies, err := remote.Decode[client.PolicyList](d.s, resp, err)
	if err != nil {
		return err
	}
	resp, err = d.s.ListExclusions(ctx)
	exclusions, err := remote.Decode[client.ExclusionList](d.s, resp, err)
	d.policies, d.exclusions = policies.Items, exclusions.Items
	return err
}

// compare works out the steps, and asks what comes of them. It changes nothing.
func (d *difference) compare(ctx context.Context) error {
	if err := d.read(ctx); err != nil {
		return err
	}
	if err := d.compareConnections(ctx); err != nil {
		return err
	}
	if err := d.compareRepositories(); err != nil {
		return err
	}
	d.compareExclusions()
	return d.comparePolicies(ctx)
}

func (d *difference) step(kind, name, action string, fields []string, do func(context.Context) error) {
	d.steps = append(d.steps, change{kind, name, action, fields, do})
}

func (d *difference) compareConnections(ctx context.Context) error {
	for _, w := range d.want.Connections {
		i := slices.IndexFunc(d.connections, func(h client.Connection) bool { return h.Name == w.Name })
		password, err := w.Password.Resolve(d.a.Getenv)
		if err != nil {
			return err
		}
		if i < 0 {
			req := client.CreateConnectionRequest{Name: w.Name, Platform: w.Platform, Address: w.Address, User: w.User, Password: password, Options: w.Options}
			d.notes = append(d.notes, fmt.Sprintf("Which VMs connection %q has is not known before it is made.", w.Name))
			d.step("connection", w.Name, actionCreate, nil, func(ctx context.Context) error {
				resp, err := d.s.CreateConnection(ctx, nil, req)
				_, err = remote.Decode[client.Connection](d.s, resp, err)
				return err
			})
			continue
		}
		have := d.connections[i]
		if w.Platform != have.Platform {
			return failure.UsageError("Remove the connection first, or name the new one otherwise.", "connection %q is one to %s, and shall be one to %s", w.Name, have.Platform, w.Platform)
		}
		req := client.ConnectionRequest{Address: w.Address, User: w.User, Password: password, Options: w.Options}
		replace := func(ctx context.Context, dry bool) (client.ConnectionChange, error) {
			return replaceConnection(ctx, d.s, have.ID, req, dry)
		}
		planned, err := replace(ctx, true)
		if err != nil {
			return err
		}
		if len(planned.Fields) > 0 {
			d.step("connection", w.Name, actionChange, planned.Fields, func(ctx context.Context) error {
				_, err := replace(ctx, false)
				return err
			})
		}
	}
	return nil
}

func (d *difference) compareRepositories() error {
	for _, w := range d.want.Repositories {
		i := slices.IndexFunc(d.repositories, func(h client.Repository) bool { return h.Name == w.Name })
		if i < 0 {
			d.step("repository", w.Name, actionCreate, nil, func(ctx context.Context) error { return d.createRepository(ctx, w) })
			continue
		}
		have := d.repositories[i]
		is := placesOf(have.Path, have.Members, func(m client.Member) string { return m.Path })
		shall := placesOf(w.Path, w.Set.Members, func(m client.SetMember) string { return m.Path })
		if !slices.Equal(is, shall) {
			return failure.UsageError("A repository stays where it is: detach it and attach it there, or name the new one otherwise.",
				"repository %q lies in %s, and shall lie in %s", w.Name, strings.Join(is, ", "), strings.Join(shall, ", "))
		}
		update, fields := client.UpdateRepositoryRequest{}, []string(nil)
		if v := w.Verification; v != nil && (v.EveryDays != have.Verification.EveryDays || v.BytesPerSecond != have.Verification.BytesPerSecond) {
			update.Verification, fields = v, append(fields, "verification")
		}
		if w.Compression != "" && w.Compression != have.Compression {
			update.Compression, fields = w.Compression, append(fields, "compression")
		}
		if len(fields) > 0 {
			d.step("repository", w.Name, actionChange, fields, func(ctx context.Context) error { return d.updateRepository(ctx, have.ID, update) })
		}
	}
	return nil
}

// placesOf are the directories of a repository: path, or those of its members, if it has any.
func placesOf[M any](path string, members []M, at func(M) string) (out []string) {
	for _, m := range members {
		out = append(out, at(m))
	}
	if len(out) == 0 {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

func (d *difference) createRepository(ctx context.Context, w desired.Repository) error {
	req := w.CreateRepositoryRequest
	if req.DomainOf != "" {
		other, err := findRepository(ctx, d.s, req.DomainOf)
		if err != nil {
			return err
		}
		req.DomainOf = other.ID
	}
	resp, err := d.s.CreateRepository(ctx, nil, req)
	r, err := remote.Decode[client.Repository](d.s, resp, err)
	if err != nil {
		return err
	}
	d.a.sayKeep(r.KeyFile)
	d.repositories = append(d.repositories, r)
	if w.Verification == nil {
		return nil
	}
	return d.updateRepository(ctx, r.ID, client.UpdateRepositoryRequest{Verification: w.Verification})
}

func (d *difference) updateRepository(ctx context.Context, id string, req client.UpdateRepositoryRequest) error {
	resp, err := d.s.GetRepository(ctx, id)
	if _, err := remote.Decode[client.Repository](d.s, resp, err); err != nil {
		return err
	}
	resp, err = d.s.UpdateRepository(ctx, id, nil, req)
	_, err = remote.Decode[client.Repository](d.s, resp, err)
	return err
}

// compareExclusions tells exclusions apart by their filters. One that is changed is made anew before the old one goes, so that its
// VMs are never covered in between; one that has ended already need not be there.
func (d *difference) compareExclusions() {
	left := slices.Clone(d.exclusions)
	for _, w := range d.want.Exclusions {
		d.proposal.Exclusions = append(d.proposal.Exclusions, w)
		var old client.Exclusion
		if i := slices.IndexFunc(left, func(h client.Exclusion) bool { return h.Filter == w.Filter }); i >= 0 {
			old = left[i]
			left = slices.Delete(left, i, i+1)
		}
		ended := !w.EndsAt.IsZero() && w.EndsAt.Before(d.a.Now())
		if old.ID == "" && ended {
			continue
		}
		var fields []string
		if old.ID != "" && old.Reason != w.Reason {
			fields = append(fields, "reason")
		}
		if old.ID != "" && !old.EndsAt.Equal(w.EndsAt) {
			fields = append(fields, "ends_at")
		}
		switch {
		case old.ID == "":
			d.step("exclusion", w.Filter, actionCreate, nil, func(ctx context.Context) error { return d.addExclusion(ctx, w) })
		case len(fields) > 0:
			d.step("exclusion", w.Filter, actionChange, fields, func(ctx context.Context) error {
				if !ended {
					if err := d.addExclusion(ctx, w); err != nil {
						return err
					}
				}
				return d.removeExclusion(ctx, old.ID)
			})
		}
	}
	for _, h := range left {
		if !d.remove {
			d.proposal.Exclusions = append(d.proposal.Exclusions, client.ExclusionRequest{Filter: h.Filter, Reason: h.Reason, EndsAt: h.EndsAt})
			continue
		}
		d.step("exclusion", h.Filter, actionRemove, nil, func(ctx context.Context) error { return d.removeExclusion(ctx, h.ID) })
	}
}

func (d *difference) addExclusion(ctx context.Context, e client.ExclusionRequest) error {
	resp, err := d.s.AddExclusion(ctx, nil, e)
	_, err = remote.Decode[client.Exclusion](d.s, resp, err)
	return err
}

func (d *difference) removeExclusion(ctx context.Context, id string) error {
	resp, err := d.s.GetExclusion(ctx, id)
	if _, err := remote.Decode[client.Exclusion](d.s, resp, err); err != nil {
		return err
	}
	resp, err = d.s.RemoveExclusion(ctx, id, nil)
	return remote.Done(d.s, resp, err)
}

// comparePolicies asks the appliance what differs, and what comes of all of it. Removals are the last steps.
func (d *difference) comparePolicies(ctx context.Context) error {
	ids := map[string]string{}
	for _, w := range d.want.Policies {
		p := client.ProposedPolicy{Policy: w}
		if i := slices.IndexFunc(d.policies, func(h client.Policy) bool { return h.Name == w.Name }); i >= 0 {
			p.ID = d.policies[i].ID
			ids[p.ID] = w.Name
		}
		id, err := d.repositoryID(w)
		if err != nil {
			return err
		}
		p.Policy.Repository = id
		d.proposal.Policies = append(d.proposal.Policies, p)
	}
	for _, h := range d.policies {
		if ids[h.ID] == "" && !d.remove {
			d.proposal.Policies = append(d.proposal.Policies, client.ProposedPolicy{ID: h.ID, Policy: requestOf(h)})
		}
	}
	before := len(d.steps) // where what comes of policies is done: a repository that goes must be used by none
	d.removals()
	for _, p := range d.proposal.Policies {
		if slices.Contains(d.proposal.WithoutRepositories, p.Policy.Repository) {
			return failure.UsageError("Put the repository into the files, too, or change the policy.", "policy %q needs a repository that would be detached", p.Policy.Name)
		}
	}
	if d.proposal.Policies == nil {
		d.proposal.Policies = []client.ProposedPolicy{}
	}
	if d.proposal.Exclusions == nil {
		d.proposal.Exclusions = []client.ExclusionRequest{}
	}
	resp, err := d.s.PlanCoverage(ctx, d.proposal)
	if d.plan, err = remote.Decode[client.CoveragePlan](d.s, resp, err); err != nil {
		return err
	}
	var made, gone []change
	for _, p := range d.plan.Policies {
		step := change{Kind: "policy", Name: p.Name, Action: string(p.Action), Fields: p.Fields, do: func(ctx context.Context) error { return d.putPolicy(ctx, p.Name) }}
		if p.Action == client.PlanRemove {
			step.do = func(ctx context.Context) error { return d.removePolicy(ctx, p.Name) }
			gone = append(gone, step)
			continue
		}
		made = append(made, step)
	}
	d.steps = slices.Insert(d.steps, before, append(made, gone...)...)
	return nil
}

// repositoryID is that of the repository that a policy names, or newRepositoryID if that is to be made. It may be left out where there
// is only one.
func (d *difference) repositoryID(w client.PolicyRequest) (string, error) {
	ids := map[string]string{}
	for _, r := range d.want.Repositories {
		ids[r.Name] = newRepositoryID
	}
	for _, h := range d.repositories {
		ids[h.Name] = h.ID
	}
	id, known := ids[w.Repository]
	switch {
	case known:
		return id, nil
	case w.Repository != "":
		return "", failure.UsageError("Name one that is there, or put it into the files, too.", "policy %q names repository %q, and there is none", w.Name, w.Repository)
	case len(ids) == 0:
		return "", failure.UsageError("Put one into the files, or make it with \"cairn repository create NAME PATH\".", "policy %q needs a repository, and there is none", w.Name)
	case len(ids) > 1:
		names := slices.Sorted(maps.Keys(ids))
		return "", failure.UsageError("Choose one: "+strings.Join(names, ", ")+".", "policy %q names no repository, and there are %d", w.Name, len(ids))
	}
	for _, only := range ids {
		id = only
	}
	return id, nil
}

// removals are the steps that remove connections and detach repositories.
func (d *difference) removals() {
	if !d.remove {
		return
	}
	for _, h := range d.repositories {
		if !slices.ContainsFunc(d.want.Repositories, func(w desired.Repository) bool { return w.Name == h.Name }) {
			d.proposal.WithoutRepositories = append(d.proposal.WithoutRepositories, h.ID)
			d.step("repository", h.Name, actionRemove, nil, func(ctx context.Context) error {
				resp, err := d.s.GetRepository(ctx, h.ID)
				if _, err := remote.Decode[client.Repository](d.s, resp, err); err != nil {
					return err
				}
				resp, err = d.s.DetachRepository(ctx, h.ID, nil)
				return remote.Done(d.s, resp, err)
			})
		}
	}
	for _, h := range d.connections {
		if !slices.ContainsFunc(d.want.Connections, func(w desired.Connection) bool { return w.Name == h.Name }) {
			d.proposal.WithoutConnections = append(d.proposal.WithoutConnections, h.ID)
			d.step("connection", h.Name, actionRemove, nil, func(ctx context.Context) error {
				resp, err := d.s.GetConnection(ctx, h.ID)
				if _, err := remote.Decode[client.Connection](d.s, resp, err); err != nil {
					return err
				}
				resp, err = d.s.DeleteConnection(ctx, h.ID, nil)
				return remote.Done(d.s, resp, err)
			})
		}
	}
}

// putPolicy makes or replaces a policy. By now its repository is there.
func (d *difference) putPolicy(ctx context.Context, name string) error {
	i := slices.IndexFunc(d.want.Policies, func(w client.PolicyRequest) bool { return w.Name == name })
	req := d.want.Policies[i]
	id, err := d.repositoryID(req)
	if err != nil {
		return err
	}
	req.Repository = id
	if i := slices.IndexFunc(d.policies, func(h client.Policy) bool { return h.Name == name }); i >= 0 {
		if _, err := seePolicy(ctx, d.s, d.policies[i].ID); err != nil {
			return err
		}
		_, err := d.a.replacePolicy(ctx, d.s, d.policies[i].ID, req, false)
		return err
	}
	resp, err := d.s.CreatePolicy(ctx, nil, req)
	_, err = remote.Decode[client.Policy](d.s, resp, err)
	return err
}

func (d *difference) removePolicy(ctx context.Context, name string) error {
	p, err := seePolicy(ctx, d.s, name)
	if err != nil {
		return err
	}
	resp, err := d.s.RemovePolicy(ctx, p.ID, nil)
	return remote.Done(d.s, resp, err)
}
