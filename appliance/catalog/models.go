package catalog

import (
	"encoding/json"
	"time"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
)

// Health of a connection or repository.
type Health string

// The healths.
const (
	HealthUnknown Health = "unknown"
	HealthOK      Health = "ok"
	HealthProblem Health = "problem"
)

// Connection is one instance of a platform. Its secret is sealed and read with ConnectionSecret only.
type Connection struct {
	ID           string               `gorm:"primaryKey" json:"id"`
	Name         string               `gorm:"uniqueIndex;not null" json:"name"`
	Platform     hypervisors.Platform `json:"platform"`
	Address      string               `json:"address"`
	User         string               `json:"user,omitempty"`
	SealedSecret []byte               `json:"-"`
	Options      map[string]string    `gorm:"serializer:json" json:"options,omitempty"`
	Status       Health               `json:"status"`
	Product      string               `json:"product,omitempty"`
	Host         string               `json:"host,omitempty"`
	HostID       string               `json:"host_id,omitempty"`
	Problems     []string             `gorm:"serializer:json" json:"problems,omitempty"`
	LastChecked  *time.Time           `json:"last_checked,omitempty"`
	LastError    *Failure             `gorm:"serializer:json" json:"last_error,omitempty"`
	// LastInventory is when the VMs were last read without an error.
	LastInventory *time.Time `json:"last_inventory,omitempty"`
	CreatedAt     time.Time  `json:"created_at"`
	UpdatedAt     time.Time  `json:"updated_at"`
}

// Repository is where restore points are kept.
type Repository struct {
	ID          string     `gorm:"primaryKey" json:"id"`
	Name        string     `gorm:"uniqueIndex;not null" json:"name"`
	Kind        string     `json:"kind"`                    // "directory" or "set"
	Path        string     `gorm:"uniqueIndex" json:"path"` // of a set: of its first member
	KeyFile     string     `json:"key_file"`                // or env:NAME, or credential:NAME
	StoreID     string     `json:"store_id"`                // the identity inside the repository itself
	Status      Health     `json:"status"`
	LastChecked *time.Time `json:"last_checked,omitempty"`
	LastError   *Failure   `gorm:"serializer:json" json:"last_error,omitempty"`
	CreatedAt   time.Time  `json:"created_at"`
	UpdatedAt   time.Time  `json:"updated_at"`

	Members      []RepositoryMember `gorm:"serializer:json" json:"members,omitempty"`   // of a set
	Generation   Generation         `gorm:"serializer:json" json:"generation,omitzero"` // of a set, the newest that was seen
	Verification *Verification      `gorm:"serializer:json" json:"verification,omitempty"`
	Compression  string             `json:"compression,omitempty"` // one of pack.Compressions, "" is pack.Standard
	Saved        *ConfigurationSave `gorm:"serializer:json" json:"saved,omitempty"`
}

// ConfigurationSave is how the appliance's configuration was last saved in a repository.
type ConfigurationSave struct {
	SavedAt *time.Time `json:"saved_at,omitempty"` // of the newest version
	Digest  string     `json:"digest,omitempty"`   // of what is in it
	Pending bool       `json:"pending,omitempty"`  // something was changed since
	Error   *Failure   `json:"error,omitempty"`    // why it could not be saved
}

// The kinds of repositories.
const (
	KindDirectory = "directory"
	KindSet       = "set" // several directories of which some may be lost
)

// RepositoryMember is a directory of a set. ID is "" as long as it is not known who lies there.
type RepositoryMember struct {
	ID     string `json:"id,omitempty"`
	Path   string `json:"path"`
	Domain string `json:"domain,omitempty"`
}

// Generation is how far a set had come, an erasure.Generation.
type Generation struct {
	Set      string `json:"set"`
	Version  uint64 `json:"version"`
	Document string `json:"document"`
	Session  uint64 `json:"session"`
}

// Verification says how often a repository is read back, and how far that is.
type Verification struct {
	EveryDays      int        `json:"every_days"` // 0: never by itself
	BytesPerSecond int64      `json:"bytes_per_second"`
	CycleStarted   *time.Time `json:"cycle_started,omitempty"` // of the cycle that is not finished
	DoneBytes      int64      `json:"done_bytes,omitempty"`
	TotalBytes     int64      `json:"total_bytes,omitempty"`
	LastCompleted  *time.Time `json:"last_completed,omitempty"`
}

// DefaultVerifyDays is how often a repository is read back unless somebody has said otherwise.
const DefaultVerifyDays = 30

// VerificationOf returns what is set for a repository, or what holds for all.
func (r *Repository) VerificationOf() Verification {
	if r.Verification == nil {
		return Verification{EveryDays: DefaultVerifyDays}
	}
	return *r.Verification
}

// VM is a virtual machine of a connection. One that vanished keeps its row, with GoneAt set, as long as it has
// restore points.
type VM struct {
	ID           string            `gorm:"primaryKey" json:"id"`
	ConnectionID string            `gorm:"uniqueIndex:idx_vms_platform,priority:1;not null" json:"connection_id"`
	PlatformID   string            `gorm:"uniqueIndex:idx_vms_platform,priority:2;not null" json:"platform_id"`
	Name         string            `json:"name"`
	Power        hypervisors.Power `json:"power"`
	Description  hypervisors.VM    `gorm:"serializer:json" json:"description"`
	FirstSeen    time.Time         `json:"first_seen"`
	LastSeen     time.Time         `json:"last_seen"` // of one that is there: when it last changed, and it was seen by its connection's last inventory, too
	GoneAt       *time.Time        `json:"gone_at,omitempty"`
	Facts        policy.VM         `gorm:"serializer:json" json:"-"` // what filters look at, without the rest of the description
}

// RunKind says what a run or task does.
type RunKind string

// The kinds.
const (
	KindBackup  RunKind = "backup"
	KindRestore RunKind = "restore"
	KindVerify  RunKind = "verify"
	KindPrune   RunKind = "prune"
	KindReread  RunKind = "reread"
	KindCollect RunKind = "collect"
	KindHeal    RunKind = "heal"
	KindScrub   RunKind = "scrub"
	KindRebuild RunKind = "rebuild"
	KindDeploy  RunKind = "deploy"
)

// Trigger says who asked for a run.
type Trigger string

// The triggers.
const (
	TriggerManual    Trigger = "manual"    // a person or an API call
	TriggerScheduled Trigger = "scheduled" // the appliance itself
)

// Run is something that was asked for; its tasks do it.
type Run struct {
	ID         string     `gorm:"primaryKey" json:"id"`
	Kind       RunKind    `json:"kind"`
	Trigger    Trigger    `json:"trigger"`
	User       string     `gorm:"column:requested_by" json:"user,omitempty"`
	State      State      `json:"state"`
	Error      *Failure   `gorm:"serializer:json" json:"error,omitempty"` // of the first task that failed
	CreatedAt  time.Time  `json:"created_at"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
	// RequestKey and RequestPrint tell a repetition of the request that started the run.
	RequestKey   string `gorm:"index" json:"-"`
	RequestPrint string `json:"-"`
	// PolicyID and TurnID say for whom it is; empty when somebody asked for it.
	PolicyID string `gorm:"index" json:"policy_id,omitempty"`
	TurnID   string `json:"turn_id,omitempty"`
}

// Task is the part of a run that deals with one VM.
type Task struct {
	ID     string  `gorm:"primaryKey" json:"id"`
	RunID  string  `gorm:"not null" json:"run_id"`
	Kind   RunKind `json:"kind"`
	VMID   string  `json:"vm_id,omitempty"`
	VMName string  `json:"vm_name,omitempty"`
	// Subject is what the task must have for itself: no two tasks that are queued or running share one. Empty: nothing.
	Subject         string          `gorm:"uniqueIndex:idx_tasks_active,where:state IN ('queued'\\,'running') AND subject <> ''" json:"-"`
	ConnectionID    string          `gorm:"index" json:"connection_id,omitempty"`
	RepositoryID    string          `json:"repository_id,omitempty"`
	RestorePointID  string          `json:"restore_point_id,omitempty"` // read by a restore or verify, made by a backup
	Spec            json.RawMessage `json:"spec,omitempty"`             // what was asked for, in the kind's own words
	State           State           `json:"state"`
	Phase           string          `json:"phase,omitempty"`
	Progress        Progress        `gorm:"serializer:json" json:"progress"`
	Warnings        []string        `gorm:"serializer:json" json:"warnings,omitempty"`
	Result          *Result         `gorm:"serializer:json" json:"result,omitempty"`
	Error           *Failure        `gorm:"serializer:json" json:"error,omitempty"`
	CancelRequested bool            `json:"cancel_requested"`
	Attempt         int             `json:"attempt"`
	ManagerID       string          `gorm:"index" json:"-"` // who runs it; while it waits, who is to: "" is any
	JobID           int64           `json:"-"`              // River's
	CreatedAt       time.Time       `json:"created_at"`
	StartedAt       *time.Time      `json:"started_at,omitempty"`
	FinishedAt      *time.Time      `json:"finished_at,omitempty"`
}

// Progress of a task: one entry a disk.
type Progress struct {
	Disks []DiskProgress `json:"disks,omitempty"`
}

// Sum adds the entries up; the ETA is the longest one.
func (p Progress) Sum() DiskProgress {
	var sum DiskProgress
	for _, d := range p.Disks {
		sum.BytesTotal += d.BytesTotal
		sum.BytesScanned += d.BytesScanned
		sum.BytesRead += d.BytesRead
		sum.BytesSkipped += d.BytesSkipped
		sum.BytesNew += d.BytesNew
		sum.BytesStored += d.BytesStored
		sum.Rate += d.Rate
		sum.ETASeconds = max(sum.ETASeconds, d.ETASeconds)
	}
	return sum
}

// DiskProgress is how far one transfer is.
type DiskProgress struct {
	Disk         string `json:"disk"`
	Transport    string `json:"transport,omitempty"`
	Mover        string `json:"mover,omitempty"`  // its name
	Mode         string `json:"mode,omitempty"`   // "full" or "incremental"
	Reason       string `json:"reason,omitempty"` // why full
	Choice       Choice `json:"choice,omitzero"`
	BytesTotal   int64  `json:"bytes_total"`
	BytesScanned int64  `json:"bytes_scanned"`
	BytesRead    int64  `json:"bytes_read"`    // moved
	BytesSkipped int64  `json:"bytes_skipped"` // zero or unchanged, so not moved
	BytesNew     int64  `json:"bytes_new"`     // new to the repository
	BytesStored  int64  `json:"bytes_stored"`  // what these take there
	Rate         int64  `json:"rate"`          // bytes a second
	ETASeconds   int64  `json:"eta_seconds"`
	Bottleneck   string `json:"bottleneck,omitempty"`
	Done         bool   `json:"done,omitempty"`
}

// Choice is why a transfer goes by its mover and transport.
type Choice struct {
	Reason   string        `json:"reason,omitempty"`
	Rejected []RejectedWay `json:"rejected,omitempty"`
}

// RejectedWay is a mover, or a transport, that was not chosen, and why. One of the two may be empty: then it is all of them.
type RejectedWay struct {
	Mover     string `json:"mover,omitempty"`
	Transport string `json:"transport,omitempty"`
	Reason    string `json:"reason"`
}

// Result is what a task made or found.
type Result struct {
	RestorePointID string `json:"restore_point_id,omitempty"`
	VMPlatformID   string `json:"vm_platform_id,omitempty"` // the VM a restore or a deployment made
	MoverID        string `json:"mover_id,omitempty"`       // that was deployed
	VMName         string `json:"vm_name,omitempty"`
	Started        bool   `json:"started,omitempty"`
	BytesRead      int64  `json:"bytes_read,omitempty"`
	BytesNew       int64  `json:"bytes_new,omitempty"`
	BytesStored    int64  `json:"bytes_stored,omitempty"`
	BytesVerified  int64  `json:"bytes_verified,omitempty"`
	BytesFreed     int64  `json:"bytes_freed,omitempty"`

	Pruned    *Pruned    `json:"pruned,omitempty"`
	Reread    *Reread    `json:"reread,omitempty"`
	Collected *Collected `json:"collected,omitempty"`
	Swept     *Swept     `json:"swept,omitempty"`
	Healed    *Healed    `json:"healed,omitempty"`
	Repaired  *Repaired  `json:"repaired,omitempty"`
}

// Pruned is what a scheduled prune did.
type Pruned struct {
	VMs       int   `json:"vms"` // whose retention was carried out
	Points    int   `json:"points"`
	Bytes     int64 `json:"bytes"` // that those had stored
	Kept      int   `json:"kept"`
	Left      int   `json:"left"` // for the next time
	BytesLeft int64 `json:"bytes_left"`
}

// Reread is what came of a repository's restore points being read into the catalog.
type Reread struct {
	Points  int `json:"points"`  // in the repository
	Added   int `json:"added"`   // that the catalog did not know
	Removed int `json:"removed"` // that were in the catalog only
	Left    int `json:"left"`    // for the next time
}

// Collected is what a collect found beside what it freed.
type Collected struct {
	PacksFreed     int   `json:"packs_freed"`
	PacksCompacted int   `json:"packs_compacted"`
	BytesCompacted int64 `json:"bytes_compacted"`
	BytesRewritten int64 `json:"bytes_rewritten"`
	BytesLive      int64 `json:"bytes_live"`
	BytesDead      int64 `json:"bytes_dead"`
	NoRoom         bool  `json:"no_room"`
	PacksLater     int   `json:"packs_later,omitempty"`
}

// Swept is what the verification of a repository found.
type Swept struct {
	Packs         int   `json:"packs"`
	PacksDamaged  int   `json:"packs_damaged"`
	BytesLeft     int64 `json:"bytes_left"`
	Complete      bool  `json:"complete"`
	PointsProven  int   `json:"points_proven"`
	PointsDamaged int   `json:"points_damaged"`
}

// Healed is what a heal brought back.
type Healed struct {
	PacksDamaged     int   `json:"packs_damaged"`
	PacksQuarantined int   `json:"packs_quarantined"`
	PacksKept        int   `json:"packs_kept"`
	Moved            int   `json:"moved"`
	Healed           int   `json:"healed"`
	BytesHealed      int64 `json:"bytes_healed"`
	Missing          int   `json:"missing"`
	Records          int   `json:"records"`
	PointsDamaged    int   `json:"points_damaged"`
}

// Repaired is what a scrub or a rebuild of a set did.
type Repaired struct {
	Member  string `json:"member,omitempty"`
	Objects int    `json:"objects"`
	Damaged int    `json:"damaged"`
	Shards  int    `json:"shards"`
}

// Level of an event.
type Level string

// The levels.
const (
	LevelInfo    Level = "info"
	LevelWarning Level = "warning"
	LevelError   Level = "error"
)

// Event is a line in a run's own list, for the admin.
type Event struct {
	Seq     int64             `gorm:"primaryKey;autoIncrement" json:"seq"`
	RunID   string            `gorm:"index" json:"run_id"`
	TaskID  string            `json:"task_id,omitempty"`
	Time    time.Time         `json:"time"`
	Level   Level             `json:"level"`
	Message string            `json:"message"`
	Meaning string            `json:"meaning,omitempty"`
	Advice  string            `json:"advice,omitempty"`
	Fields  map[string]string `gorm:"serializer:json" json:"fields,omitempty"`

	ManagerID string `json:"-"` // who wrote it
}

// RestorePoint is the catalog's row of a restore point in a repository.
type RestorePoint struct {
	ID              string                  `gorm:"primaryKey" json:"id"` // the store's
	RepositoryID    string                  `gorm:"not null" json:"repository_id"`
	ConnectionID    string                  `json:"connection_id"`
	VMID            string                  `json:"vm_id"`
	VMName          string                  `json:"vm_name"`
	Series          string                  `json:"series"`
	TaskID          string                  `gorm:"index" json:"task_id,omitempty"`
	Time            time.Time               `json:"time"` // of the freeze
	Published       time.Time               `json:"published"`
	Kind            string                  `json:"kind"` // "full" when at least one disk was read whole
	Consistency     hypervisors.Consistency `json:"consistency"`
	ConsistencyNote string                  `json:"consistency_note,omitempty"`
	Checkpoint      string                  `json:"checkpoint,omitempty"`
	Disks           []PointDisk             `gorm:"serializer:json" json:"disks"`
	Skipped         []SkippedDisk           `gorm:"serializer:json" json:"skipped,omitempty"`
	Warnings        []string                `gorm:"serializer:json" json:"warnings,omitempty"`
	SizeBytes       int64                   `json:"size_bytes"` // virtual
	BytesRead       int64                   `json:"bytes_read"`
	BytesNew        int64                   `json:"bytes_new"`
	BytesStored     int64                   `json:"bytes_stored"`
	Verified        *time.Time              `json:"verified,omitempty"`
	VerifyResult    string                  `json:"verify_result,omitempty"` // "good" or "damaged"
	VerifyError     *Failure                `gorm:"serializer:json" json:"verify_error,omitempty"`
	Hold            *Hold                   `gorm:"-" json:"hold,omitempty"` // not of the row: who looks at it adds it
}

// The values of RestorePoint.Kind and PointDisk.Mode, and of RestorePoint.VerifyResult.
const (
	Full          = "full"
	Incremental   = "incremental"
	VerifyGood    = "good"
	VerifyDamaged = "damaged"
)

// PointDisk is one disk of a restore point.
type PointDisk struct {
	ID          string                 `json:"id"`
	SizeBytes   int64                  `json:"size_bytes"`
	Format      hypervisors.DiskFormat `json:"format,omitempty"`
	Root        string                 `json:"root"` // of the image
	Mode        string                 `json:"mode"` // "full" or "incremental"
	Reason      string                 `json:"reason,omitempty"`
	BytesRead   int64                  `json:"bytes_read"`
	BytesNew    int64                  `json:"bytes_new"`
	BytesStored int64                  `json:"bytes_stored"`
}

// SkippedDisk is a disk that is not in a restore point.
type SkippedDisk struct {
	ID     string               `json:"id"`
	Kind   hypervisors.DiskKind `json:"kind"`
	Reason string               `json:"reason"`
}

// OwedCleanup is something made on a platform that must be removed.
type OwedCleanup struct {
	ID           string           `gorm:"primaryKey" json:"id"`
	ConnectionID string           `gorm:"index;not null" json:"connection_id"`
	TaskID       string           `gorm:"index" json:"task_id"`
	Owed         hypervisors.Owed `gorm:"serializer:json" json:"owed"`
	Attempts     int              `json:"attempts"`
	LastError    *Failure         `gorm:"serializer:json" json:"last_error,omitempty"`
	CreatedAt    time.Time        `json:"created_at"`
	DoneAt       *time.Time       `gorm:"index" json:"done_at,omitempty"`
}

// User is a person who may log in.
type User struct {
	ID           string     `gorm:"primaryKey" json:"id"`
	Name         string     `gorm:"uniqueIndex;not null" json:"name"`
	PasswordHash string     `json:"-"` // argon2id, in its own text form
	CreatedAt    time.Time  `json:"created_at"`
	LastLogin    *time.Time `json:"last_login,omitempty"`
}

// Token is an API token; only a hash of it is kept.
type Token struct {
	ID        string     `gorm:"primaryKey" json:"id"`
	Hash      string     `gorm:"uniqueIndex;not null" json:"-"`
	Name      string     `json:"name"`
	Scope     string     `gorm:"not null;default:''" json:"scope,omitempty"` // what it is good for; "" is everything its user may do
	UserID    string     `gorm:"not null" json:"user_id"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	LastUsed  *time.Time `json:"last_used,omitempty"`
}
