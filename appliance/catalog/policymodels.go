package catalog

import (
	"time"

	"github.com/cairn-backup/cairn/appliance/policy"
)

// The prefixes of ids of what policies need.
const (
	PrefixPolicy    = "pol"
	PrefixExclusion = "excl"
	PrefixTurn      = "turn"
)

// Policy is a rule of protection as it is kept.
type Policy struct {
	ID        string      `gorm:"primaryKey" json:"id"`
	Name      string      `gorm:"uniqueIndex;not null" json:"name"`
	Paused    bool        `json:"paused"`
	Spec      policy.Spec `gorm:"serializer:json" json:"spec"`
	Version   int         `json:"version"` // counts its changes
	CreatedAt time.Time   `json:"created_at"`
	UpdatedAt time.Time   `json:"updated_at"`
	UpdatedBy string      `json:"updated_by,omitempty"`
	// OpenedUntil is until when the schedule has been looked at: what was due is in the turns.
	OpenedUntil time.Time `json:"opened_until"`
}

// Exclusion keeps VMs from being covered by policies.
type Exclusion struct {
	ID        string     `gorm:"primaryKey" json:"id"`
	Filter    string     `json:"filter"`
	Reason    string     `json:"reason"`
	Until     *time.Time `gorm:"column:ends_at" json:"until,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	CreatedBy string     `json:"created_by,omitempty"`
}

// Occurrence is an instant at which a policy was due. There is one row, whoever noticed it.
type Occurrence struct {
	PolicyID string    `gorm:"primaryKey" json:"policy_id"`
	Due      time.Time `gorm:"primaryKey" json:"due"`
	VMs      int       `gorm:"column:vms" json:"vms"` // that it covered when it was noticed
	Missed   string    `json:"missed,omitempty"`      // why none of them had its turn; "" is that they had
	At       time.Time `gorm:"column:noticed_at" json:"at"`
}

// TurnState is how far the turn of a VM has come.
type TurnState string

// The states. All but the first two are final.
const (
	TurnWaiting   TurnState = "waiting" // for its first attempt, or for the next
	TurnRunning   TurnState = "running"
	TurnDone      TurnState = "done"
	TurnFailed    TurnState = "failed"    // also in its last attempt
	TurnMissed    TurnState = "missed"    // it never began
	TurnCancelled TurnState = "cancelled" // by a person
)

// Final reports whether nothing follows a state.
func (s TurnState) Final() bool { return s != TurnWaiting && s != TurnRunning }

// Turn is the turn of one VM when a policy was due: it becomes a restore point, in one attempt or more, or it is said why not.
type Turn struct {
	ID        string     `gorm:"primaryKey" json:"id"`
	PolicyID  string     `gorm:"uniqueIndex:idx_turns_due,priority:1;not null" json:"policy_id"`
	VMID      string     `gorm:"uniqueIndex:idx_turns_due,priority:2;index;not null" json:"vm_id"`
	Due       time.Time  `gorm:"uniqueIndex:idx_turns_due,priority:3;not null" json:"due"`
	State     TurnState  `gorm:"index" json:"state"`
	Attempt   int        `json:"attempt"`
	NotBefore time.Time  `json:"not_before"` // of the next attempt
	RunID     string     `json:"run_id,omitempty"`
	TaskID    string     `gorm:"index" json:"task_id,omitempty"` // of the last attempt
	Reason    string     `json:"reason,omitempty"`               // why it waits, failed or was missed
	EndedAt   *time.Time `json:"ended_at,omitempty"`
}

// Breaker is the circuit breaker of a connection: while it is open, policies begin nothing there.
type Breaker struct {
	ConnectionID string    `gorm:"primaryKey" json:"connection_id"`
	Failures     int       `json:"failures"` // in a row
	OpenUntil    time.Time `json:"open_until"`
	Opened       int       `json:"opened"` // times in a row
	Reason       string    `json:"reason"` // the last failure
}

// Hold keeps a restore point from being pruned.
type Hold struct {
	RestorePointID string     `gorm:"primaryKey" json:"restore_point_id"`
	Reason         string     `json:"reason"`
	Until          *time.Time `gorm:"column:ends_at" json:"until,omitempty"`
	CreatedAt      time.Time  `json:"created_at"`
	CreatedBy      string     `json:"created_by,omitempty"`
}

// Holds reports whether the hold is in force at an instant.
func (h Hold) Holds(now time.Time) bool { return h.Until == nil || now.Before(*h.Until) }
