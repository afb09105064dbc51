package protect

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// HealSpec is what is wanted of a heal.
type HealSpec struct {
	From   []string `json:"from,omitempty"` // ids of repositories
	DryRun bool     `json:"dry_run,omitempty"`
}

// RequestHeal makes the task that heals a repository. A collect and a heal of one repository are never done at once.
func (p *Protector) RequestHeal(ctx context.Context, repositoryID string, spec HealSpec) (*catalog.Task, error) {
	repo, err := p.repositories(ctx, repositoryID)
	if err != nil {
		return nil, err
	}
	for _, id := range spec.From {
		from, err := p.repositories(ctx, id)
		if err != nil {
			return nil, invalidIfUnknown(err)
		}
		if from == repo || !repo.SameDomain(from) {
			return nil, fault.New(fault.Invalid, "heal repository", repositoryID, "repository %s is not a copy of it nor of its domain", id).Explain(
				"Content has other ids in that repository, so nothing can be looked up there.",
				"Heal from a copy of this repository, or from one that was created in its domain.")
		}
	}
	return &catalog.Task{Subject: repositoryID, RepositoryID: repositoryID, Spec: encode(spec)}, nil
}

// invalidIfUnknown is for what the body of a request names: NotFound would be about its path.
func invalidIfUnknown(err error) error {
	if fault.KindOf(err) != fault.NotFound {
		return err
	}
	return fault.Wrap(fault.Invalid, "heal repository", "", err)
}

// Healing is a Conflict error while another repository is being healed from this one.
func (p *Protector) Healing(ctx context.Context, repositoryID string) error {
	active, err := p.catalog.ActiveTasks(ctx)
	if err != nil {
		return err
	}
	for _, t := range active {
		var spec HealSpec
		if t.Kind == catalog.KindHeal && json.Unmarshal(t.Spec, &spec) == nil && slices.Contains(spec.From, repositoryID) {
			return fault.New(fault.Conflict, "detach repository", repositoryID, "task %s heals another one from it", t.ID).Explain(
				"A task that is queued or running reads this repository.", "Wait for it, or cancel it.")
		}
	}
	return nil
}

// Heal is the handler of heal tasks: what restore points have lost is brought back, as far as it is anywhere.
func (p *Protector) Heal(ctx context.Context, t *jobs.Task) error {
	var spec HealSpec
	repo, err := begin(ctx, t, &spec, p.repositories)
	if err != nil {
		return err
	}
	o := store.HealOptions{DryRun: spec.DryRun}
	for _, id := range spec.From {
		from, err := p.repositories(ctx, id)
		if err != nil {
			return err
		}
		o.From = append(o.From, from)
	}
	t.SetPhase(ctx, "healing")
	report, err := repo.Heal(ctx, o)
	left := report.Remaining > 0 || len(report.Touched) > 0
	if err != nil && (fault.KindOf(err) != fault.Corrupt || !left) {
		return fault.Context("heal repository", t.RepositoryID, err)
	}
	after := context.WithoutCancel(ctx)
	if !spec.DryRun {
		if err := p.healed(after, t.RepositoryID, report.Touched); err != nil {
			return err
		}
	}
	result := healedOf(report)
	if err := t.SetResult(after, catalog.Result{Healed: &result}); err != nil {
		return err
	}
	word := ""
	if spec.DryRun {
		word = " would be"
	}
	t.Event(after, fmt.Sprintf("%d objects%s taken from good copies in the repository, %d from other repositories; %d damaged packs%s put aside.",
		result.Moved, word, result.Healed, result.PacksQuarantined, word))
	if left {
		return p.blast(after, t, "heal repository", nil, []string{fmt.Sprintf("%d objects were found nowhere.", report.Remaining)}, report.Touched)
	}
	return nil
}

func healedOf(r store.HealReport) catalog.Healed {
	out := catalog.Healed{
		PacksDamaged: len(r.Damage), PacksQuarantined: len(r.Quarantined), PacksKept: len(r.Kept), Moved: r.Moved.Objects,
		Missing: r.Remaining, Records: len(r.Records), PointsDamaged: len(r.Touched),
	}
	for _, from := range r.Healed {
		out.Healed += from.Objects
		out.BytesHealed += from.Bytes
	}
	return out
}
