package httpapi

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/hypervisors"
)

// Core is what the interface needs of the appliance. Errors carry a fault kind; it decides the HTTP status, and
// their Meaning and Advice are shown to the person who asked. A call that returns an error has changed nothing.
type Core interface {
	Connections
	Inventory
	Repositories
	Upkeep
	Keys
	Movers
	Policies
	Standings
	Protection
	Activity
	// Ready returns nil when the appliance can do its work.
	Ready(ctx context.Context) error
}

// Connections is the part of Core about connections.
type Connections interface {
	ListConnections(ctx context.Context, p catalog.Page) (catalog.List[ConnectionInfo], error)
	GetConnection(ctx context.Context, id string) (ConnectionInfo, error)
	// TryConnection looks whether the connection would work and keeps nothing.
	TryConnection(ctx context.Context, c NewConnection) (hypervisors.Health, error)
	// AddConnection tries the connection, keeps it and reads its inventory. A name that is taken is an Exists error.
	AddConnection(ctx context.Context, c NewConnection) (ConnectionInfo, error)
	// ReplaceConnection changes address, user, options, and the password unless it is "", and says what differs. With dry it changes
	// nothing. A Conflict error when the new way leads to another host than the one before or the one that is accepted; an Exists error when
	// another connection leads to that.
	ReplaceConnection(ctx context.Context, who fleet.Who, id string, c NewConnection, dry bool) ([]string, error)
	// RemoveConnection is a Conflict error while a task uses the connection or a clean-up is owed on it.
	RemoveConnection(ctx context.Context, id string) error
	CheckConnection(ctx context.Context, id string) (hypervisors.Health, error)
	RefreshConnection(ctx context.Context, id string) (catalog.InventoryReport, error)
}

// Inventory is the part of Core about what the connections have.
type Inventory interface {
	ListVMs(ctx context.Context, f catalog.VMFilter, p catalog.Page) (catalog.List[VMInfo], error)
	GetVM(ctx context.Context, id string) (VMInfo, error)
	// ListDatastores and ListNetworks ask the platform, not the catalog.
	ListDatastores(ctx context.Context, connection string) ([]hypervisors.Datastore, error)
	ListNetworks(ctx context.Context, connection string) ([]hypervisors.Network, error)
}

// Repositories is the part of Core about repositories.
type Repositories interface {
	ListRepositories(ctx context.Context, p catalog.Page) (catalog.List[RepositoryInfo], error)
	GetRepository(ctx context.Context, id string) (RepositoryInfo, error)
	AddRepository(ctx context.Context, r NewRepository) (RepositoryInfo, error)
	// DetachRepository forgets the repository, leaves its files and does not look at them, and returns the name it had; a Conflict error
	// while a task or a policy uses it.
	DetachRepository(ctx context.Context, id string) (name string, err error)
}

// Protection is the part of Core that makes and uses restore points.
type Protection interface {
	StartBackup(ctx context.Context, s Start, r BackupRequest) (Started, error)
	StartRestore(ctx context.Context, s Start, r RestoreRequest) (Started, error)
	StartRestores(ctx context.Context, s Start, r RestoresRequest) (Started, error)
	// PlanRestores says what StartRestores would make, and why some VMs cannot be restored. It changes nothing.
	PlanRestores(ctx context.Context, r RestoresRequest) (RestoresPlan, error)
	// PlanRestore says what StartRestore would make, or returns the error it would fail with. It changes nothing.
	PlanRestore(ctx context.Context, r RestoreRequest) (RestorePlan, error)
	StartVerify(ctx context.Context, s Start, restorePoint string) (Started, error)
	ListRestorePoints(ctx context.Context, f catalog.PointFilter, p catalog.Page) (catalog.List[catalog.RestorePoint], error)
	GetRestorePoint(ctx context.Context, id string) (PointInfo, error)
	PruneRestorePoint(ctx context.Context, id string) error
}

// Activity is the part of Core about runs and tasks. Cancel is a Conflict error for what has ended; it may be
// repeated, and it returns before the task has stopped.
type Activity interface {
	ListRuns(ctx context.Context, f catalog.RunFilter, p catalog.Page) (catalog.List[RunInfo], error)
	GetRun(ctx context.Context, id string) (RunInfo, error)
	CancelRun(ctx context.Context, id string) error
	// ListRunEvents returns up to limit events of a run with a sequence number above after, the oldest first; a
	// NotFound error when there is no such run.
	ListRunEvents(ctx context.Context, run string, after int64, limit int) ([]catalog.Event, error)
	ListTasks(ctx context.Context, f catalog.TaskFilter, p catalog.Page) (catalog.List[catalog.Task], error)
	GetTask(ctx context.Context, id string) (catalog.Task, error)
	CancelTask(ctx context.Context, id string) error
}

// Start says who starts a run and how a repetition of the same request is told. With a Key, the run and the triple
// (User, Key, Fingerprint) are made durable together, for 24 hours; when (User, Key) is known already, nothing is
// started and the answer is the known run with its fingerprint, which the caller compares.
type Start struct {
	User        string
	Key         string // the Idempotency-Key; "" for none
	Fingerprint string // of the request, hexadecimal
}

// Started names the run.
type Started struct {
	RunID       string
	Replayed    bool   // nothing was started, RunID is the run of the same Key
	Fingerprint string // when Replayed: of the request that started it
}

// NewConnection describes a connection to make.
type NewConnection struct {
	Name     string
	Platform hypervisors.Platform
	Address  string
	User     string
	Password catalog.Secret
	Options  map[string]string
	// AcceptHost is the identity of the host that a change may lead to though it is another than before; "none" is one that says none.
	AcceptHost string
}

// ConnectionInfo is a connection with what the catalog does not keep in its row.
type ConnectionInfo struct {
	catalog.Connection
	VMs          int                       // in the inventory, gone ones not counted
	Capabilities *hypervisors.Capabilities // nil when not known
}

// VMInfo is a VM with its newest restore point.
type VMInfo struct {
	catalog.VM
	LastPointID string
	LastPointAt time.Time
	Coverage    *CoverageInfo // nil in lists, and for one that is gone
}

// NewRepository describes a repository to create, or to attach when Attach is set.
type NewRepository struct {
	Name      string
	Path      string
	Set       *NewSet // instead of Path
	Attach    bool
	KeyFile   string // with Attach: "" is the key the appliance kept for this repository
	KeySource string // a key that is used where it is, as store.LoadKey has it
	By        fleet.Who
	DomainOf  string // id of a repository of which the new one shares the identities of content

	Compression string // one of pack.Compressions; "" is what a repository has by itself
}

// RepositoryInfo is a repository with its usage.
type RepositoryInfo struct {
	catalog.Repository
	Usage        *Usage   // nil when it cannot be told now
	Set          *SetInfo // nil when it is not on a set, or cannot be told now
	Verification VerificationInfo
}

// Usage is what a repository holds.
type Usage struct {
	RestorePoints, Packs      int
	LogicalBytes, StoredBytes int64
	FreeBytes                 int64 // on the backend; 0 when not known
}

// BackupRequest asks for a backup of one VM.
type BackupRequest struct {
	VMID         string
	RepositoryID string
	Quiesce      hypervisors.Quiesce
	ExcludeDisks []string
	Full         bool
	Mover        string // "" is chosen
	Transport    string // "" is chosen
	Fallback     bool   // to another transport when one fails
}

// RestoreRequest asks for a restore. Empty fields mean: as in the restore point.
type RestoreRequest struct {
	RestorePointID string
	Mode           hypervisors.RestoreMode
	Name           string
	IntoVMID       string
	ConnectionID   string
	Datastore      string                    // for the disks that name none
	Disks          []hypervisors.RestoreDisk // only ID, Datastore and Format are set
	OnlyDisks      []string                  // ids; empty is all
	Networks       map[string]string
	KeepMACs       bool
	Start          bool
	Mover          string // "" is chosen
	Transport      string // "" is chosen
	Fallback       bool   // to another transport when one fails
}

// RestorePlan says what a restore would make.
type RestorePlan struct {
	Mode         hypervisors.RestoreMode
	ConnectionID string
	VMName       string
	Disks        []hypervisors.RestoreDisk
	LeftOut      []LeftOut
	Networks     map[string]string
	Warnings     []string
}

// LeftOut is a disk of the source that is not restored, and why.
type LeftOut struct{ Disk, Reason string }

// PointInfo is a restore point with the saved description of its VM.
type PointInfo struct {
	catalog.RestorePoint
	Description *hypervisors.VM // nil when the repository cannot be read now
}

// RunInfo is a run with its tasks.
type RunInfo struct {
	catalog.Run
	Tasks []catalog.Task
}
