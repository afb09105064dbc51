package httpapi

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/policy"
)

// Policies is the part of Core about policies, exclusions, coverage and holds.
type Policies interface {
	ListPolicies(ctx context.Context) ([]PolicyInfo, error)
	GetPolicy(ctx context.Context, id string) (PolicyInfo, error)
	CreatePolicy(ctx context.Context, who fleet.Who, c PolicyChange) (PolicyInfo, error)
	ReplacePolicy(ctx context.Context, who fleet.Who, id string, c PolicyChange) (PolicyPlan, error)
	// PlanPolicy says what ReplacePolicy, or CreatePolicy for an empty id, would change. It changes nothing.
	PlanPolicy(ctx context.Context, id string, c PolicyChange) (PolicyPlan, error)
	RemovePolicy(ctx context.Context, who fleet.Who, id string) error
	// PlanCoverage says what would become of VMs and restore points if policies and exclusions were others. It changes nothing.
	PlanCoverage(ctx context.Context, p CoverageProposal) (CoveragePlan, error)
	// RunPolicy answers how many VMs have their turn now; a Conflict error for a paused policy.
	RunPolicy(ctx context.Context, who fleet.Who, id string) (int, error)
	// PreviewPolicy judges the restore points of the VMs that a policy covers.
	PreviewPolicy(ctx context.Context, id string, r PreviewRequest) (Preview, error)
	ListTurns(ctx context.Context, f catalog.TurnFilter, p catalog.Page) (catalog.List[TurnInfo], error)
	ListExclusions(ctx context.Context) ([]ExclusionInfo, error)
	AddExclusion(ctx context.Context, who fleet.Who, e catalog.Exclusion) (ExclusionInfo, error)
	RemoveExclusion(ctx context.Context, who fleet.Who, id string) error
	ListCoverage(ctx context.Context, f CoverageFilter, p catalog.Page) (CoverageList, error)
	// CoverageHistory returns the days from the first to the last on which something is known, oldest first.
	CoverageHistory(ctx context.Context, f HistoryFilter) ([]HistoryDay, error)
	// HoldRestorePoint replaces an earlier hold.
	HoldRestorePoint(ctx context.Context, who fleet.Who, h catalog.Hold) error
	ReleaseRestorePoint(ctx context.Context, who fleet.Who, id string) error
	ListMaintenance(ctx context.Context) ([]MaintenanceInfo, error)
	// ReplaceMaintenance changes when a kind is due; RunMaintenance begins it now, unless it is under way.
	ReplaceMaintenance(ctx context.Context, who fleet.Who, m catalog.Maintenance) error
	RunMaintenance(ctx context.Context, who fleet.Who, kind catalog.MaintenanceKind) error
}

// MaintenanceInfo is a kind of maintenance with what follows from it now.
type MaintenanceInfo struct {
	catalog.Maintenance
	Busy bool
	Next time.Time          // zero: never
	Runs map[string]RunInfo // that it began last, by id
}

// PolicyChange is what a policy shall be.
type PolicyChange struct {
	Name   string
	Paused bool
	Spec   policy.Spec
}

// PolicyInfo is a policy with what follows from it now.
type PolicyInfo struct {
	catalog.Policy
	Rules            policy.Rules
	RPO              time.Duration
	VMs              int // that it covers
	Waiting, Running int // turns
	NextDue          []time.Time
	LastMissed       *catalog.Occurrence
}

// PolicyPlan is what a change of a policy changes.
type PolicyPlan struct {
	Policy  PolicyInfo // as it is then; the zero value for one that is not made
	Changed []PlannedVM
	Pruned  []PointVerdict
}

// CoverageProposal is all policies and exclusions as they shall be, and what shall not be there any more.
type CoverageProposal struct {
	Policies            []ProposedPolicy
	Exclusions          []catalog.Exclusion
	WithoutConnections  []string // ids
	WithoutRepositories []string // ids
}

// ProposedPolicy is a policy that shall be. ID is "" for one that is to be made. Its repository may be one that is to be made.
type ProposedPolicy struct {
	ID string
	PolicyChange
}

// PlanAction is what becomes of something.
type PlanAction string

// The actions.
const (
	PlanCreate PlanAction = "create"
	PlanChange PlanAction = "change"
	PlanRemove PlanAction = "remove"
)

// PolicyDiff is what becomes of a policy; Fields are those that change.
type PolicyDiff struct {
	Name   string
	Action PlanAction
	Fields []string
}

// CoveragePlan is what a proposal changes. Pruned are the restore points that go with the next backup of each VM and would not go with it
// now, at most MaxVerdicts; Anyway counts those that go then as things are, too.
type CoveragePlan struct {
	Policies []PolicyDiff
	Changed  []PlannedVM
	Pruned   []PointVerdict
	More     bool
	Anyway   int
}

// PlannedVM is a VM that another policy covers than before. Before and After are names; "" is none.
type PlannedVM struct{ ID, Name, Before, After string }

// PreviewRequest asks what retention does.
type PreviewRequest struct {
	Retention *policy.Retention // nil is the policy's
	VMID      string            // "" is all that the policy covers
	All       bool              // also restore points that stay
}

// PointVerdict is what becomes of a restore point.
type PointVerdict struct {
	policy.Verdict
	VMID, VMName string
	SizeBytes    int64
}

// Preview is what retention does. Items are at most MaxVerdicts.
type Preview struct {
	VMs, Kept, Pruned int
	Items             []PointVerdict
	More              bool
}

// MaxVerdicts bounds the items of a Preview.
const MaxVerdicts = 10_000

// TurnInfo is a turn with the VM's name, and with why it waits.
type TurnInfo struct {
	catalog.Turn
	VMName string
}

// ExclusionInfo is an exclusion with what follows from it now.
type ExclusionInfo struct {
	catalog.Exclusion
	Holds bool
	VMs   int
}

// HistoryFilter selects days (midnights, UTC), and VMs: one by its id, or by a filter; neither is all.
type HistoryFilter struct {
	VMID, Filter string
	From, To     time.Time
}

// HistoryDay is what VMs have achieved on a day.
type HistoryDay struct {
	policy.Day
	VMs, VMsLate int // that a policy covered; that were late
}

// Add adds what one VM has.
func (h HistoryDay) Add(d policy.Day) HistoryDay {
	if h.Date = d.Date; d.Covered > 0 {
		h.VMs++
	}
	if d.Late > 0 {
		h.VMsLate++
	}
	h.Day = h.Day.Add(d)
	return h
}

// CoverageFilter selects VMs; empty fields select all.
type CoverageFilter struct {
	Filter   string
	State    policy.Protection
	PolicyID string
}

// CoverageInfo is how well a VM is protected.
type CoverageInfo struct {
	VM policy.VM
	policy.Cover
	policy.Standing
	Newest catalog.NewestPoint // the newest good restore point; its ID is "" for none
	Waits  string              // why its turn has not begun
}

// CoverageList is a page of VMs, and how many of all that were asked for are in which state, whichever state was asked for.
type CoverageList struct {
	Items  []CoverageInfo
	Counts map[policy.Protection]int
	Next   string
}
