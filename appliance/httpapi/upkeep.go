package httpapi

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/erasure"
)

// Upkeep is the part of Core that keeps repositories whole: space, verification, healing, and the members of sets.
type Upkeep interface {
	StartCollect(ctx context.Context, s Start, repository string, r CollectRequest) (Started, error)
	UpdateRepository(ctx context.Context, repository string, change RepositoryChange) (RepositoryInfo, error)
	StartRepositoryVerify(ctx context.Context, s Start, repository string, r SweepRequest) (Started, error)
	RepositoryDamage(ctx context.Context, repository string) (DamageInfo, error)
	// StartHeal heals from the repositories with the ids, in this order.
	StartHeal(ctx context.Context, s Start, repository string, r HealRequest) (Started, error)
	// RepositorySpace also says what pruning the restore points without would free, if there are any.
	RepositorySpace(ctx context.Context, repository string, without []string) (SpaceInfo, error)
	// StartScrub, StartRebuild and GrowRepository are Unsupported errors for a repository that is not on a set.
	StartScrub(ctx context.Context, s Start, repository string, bytesPerSecond int64) (Started, error)
	// StartRebuild first puts the directory path in the place of the member, unless it is "".
	StartRebuild(ctx context.Context, s Start, repository, member, path string) (Started, error)
	GrowRepository(ctx context.Context, repository string, members []NewMember, force bool) (RepositoryInfo, error)
	// TrustMembers makes a set usable with what members have, by id or path, although others may have more; a Conflict
	// error while tasks use it, or if it can be used without that. It is audited.
	TrustMembers(ctx context.Context, who fleet.Who, repository string, members []string) (RepositoryInfo, error)
}

// Keys is the part of Core about the keys that open a repository.
type Keys interface {
	ListKeys(ctx context.Context, repository string) ([]KeyInfo, error)
	// AddKey makes a key open the repository; page is what is to be printed of a paper key, and a secret.
	AddKey(ctx context.Context, repository string, k NewKey) (key KeyInfo, page catalog.Secret, err error)
	// RemoveKey is a Conflict error for the key the appliance uses.
	RemoveKey(ctx context.Context, repository, key string) error
	RotateKey(ctx context.Context, repository string) (KeyInfo, error)
	DrillKey(ctx context.Context, repository string, k GivenKey) (DrillInfo, error)
}

// CollectRequest is how space is to be freed.
type CollectRequest struct {
	DryRun  bool
	Compact float64 // as in store.CollectOptions
}

// RepositoryChange is what is to be set anew of a repository; what is nil or "" stays.
type RepositoryChange struct {
	Verification *VerificationSettings
	Compression  string // one of pack.Compressions
}

// words say what is to be set, for the audit log.
func (c RepositoryChange) words() string {
	var out []string
	if c.Compression != "" {
		out = append(out, "compression "+c.Compression)
	}
	if v := c.Verification; v != nil {
		every := "never"
		if v.EveryDays > 0 {
			every = fmt.Sprintf("every %d days", v.EveryDays)
		}
		if v.BytesPerSecond > 0 {
			every += fmt.Sprintf(" with at most %d bytes a second", v.BytesPerSecond)
		}
		out = append(out, "verification "+every)
	}
	return strings.Join(out, ", ")
}

// VerificationSettings are what can be set of a repository's verification.
type VerificationSettings struct {
	EveryDays      int // 0: never
	BytesPerSecond int64
}

// SweepRequest asks for a repository to be read back; 0 is no limit.
type SweepRequest struct{ BudgetBytes, BytesPerSecond int64 }

// HealRequest asks for a repository to be healed.
type HealRequest struct {
	From   []string // ids of repositories
	DryRun bool
}

// NewMember is a directory of a set.
type NewMember struct{ Path, Domain string }

// NewSet describes a set to create; to attach one, its members are enough.
type NewSet struct {
	Layout  erasure.Layout
	Members []NewMember
	Force   bool
	Trust   []string // to attach one: as Upkeep.TrustMembers
}

// SetInfo is how a set is.
type SetInfo struct {
	Layout                     erasure.Layout
	CanLose                    int
	Objects, Below, Unreadable int
	Groups                     int
	Members                    []MemberInfo
}

// MemberInfo is how one member of a set is.
type MemberInfo struct {
	erasure.MemberHealth
	Group int
}

// DamageInfo is the damage that is known in a repository.
type DamageInfo struct {
	Packs   []store.PackDamage
	Touched []TouchedInfo
}

// TouchedInfo is a restore point that is not whole, with the VM it is of.
type TouchedInfo struct {
	store.TouchedPoint
	VMID, VMName string
}

// SpaceInfo says who takes the space of a repository. Rows has the catalog's rows of restore points by their ids, VMs
// one of them by series.
type SpaceInfo struct {
	store.SpaceReport
	Rows, VMs map[string]catalog.RestorePoint
	WouldFree *int64
}

// KeyInfo is a key that opens a repository.
type KeyInfo struct {
	store.Wrapping
	InUse bool // by the appliance
}

// NewKey describes a key to add; its kind is that of a store.Wrapping.
type NewKey struct {
	Kind, Label, Recipient string
	KeyFile                string   // "": where the appliance looks for its own
	By                     GivenKey // opens the repository; none: the appliance's own key does
}

// GivenKey is a key as a request has it: exactly one is set.
type GivenKey struct {
	Paper, Identity, Key catalog.Secret
	Source               string
}

// DrillInfo is what a drill has proven.
type DrillInfo struct {
	store.DrillReport
	RepositoryID, VMName string
	InUse                bool
}

// VerificationInfo is how far the verification of a repository is.
type VerificationInfo struct {
	catalog.Verification
	DamagedPacks, DamagedPoints int
}

// longTimeout bounds what has to look at a whole repository before it can answer.
const longTimeout = 15 * time.Minute

func patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, longTimeout)
}
