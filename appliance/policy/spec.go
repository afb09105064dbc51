package policy

import (
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Spec is what a person says of a policy. Durations are seconds in JSON.
type Spec struct {
	Filter   string `json:"filter"`
	Priority int    `json:"priority,omitempty"` // of two policies that select a VM the higher one covers it, and its tasks begin first

	Schedule string   `json:"schedule"`
	TimeZone string   `json:"time_zone"`
	Windows  []string `json:"windows,omitempty"`
	Missed   Missed   `json:"missed,omitempty"`
	RPO      Seconds  `json:"rpo_seconds,omitempty"` // 0: one and a half times the longest pause of the schedule
	Within   Seconds  `json:"within_seconds,omitempty"`

	RepositoryID string    `json:"repository_id"`
	Retention    Retention `json:"retention,omitzero"`

	Quiesce      string   `json:"quiesce,omitempty"`
	ExcludeDisks []string `json:"exclude_disks,omitempty"` // by id; VMs that have no such disk lose none
	Mover        string   `json:"mover,omitempty"`
	Transport    string   `json:"transport,omitempty"`
	Fallback     bool     `json:"fallback,omitempty"`

	Retries int     `json:"retries"`                   // after the first attempt
	Backoff Seconds `json:"backoff_seconds,omitempty"` // before the first retry; each one more waits twice as long

	Limits Limits `json:"limits,omitzero"`
}

// Seconds is a duration in whole seconds.
type Seconds int64

// Duration returns it as Go has it.
func (s Seconds) Duration() time.Duration { return time.Duration(s) * time.Second }

// Missed says what becomes of a run that could not begin when it was due.
type Missed string

// The values. The zero value is MissedRun.
const (
	MissedRun  Missed = "run"  // it begins as soon as it can, until the next one is due
	MissedSkip Missed = "skip" // it is reported, and the next one is waited for
)

// Limits bound the tasks that are under way at once; 0 is no limit. They count all tasks, whichever policy they are of.
type Limits struct {
	Connection int `json:"connection,omitempty"`
	Host       int `json:"host,omitempty"`
	Datastore  int `json:"datastore,omitempty"`
}

// What holds when a policy does not say.
const (
	DefaultWithin  = Seconds(3600)
	DefaultBackoff = Seconds(300)
	DefaultRetries = 2
	maxBackoff     = 6 * time.Hour
)

// The bounds of numbers in a Spec.
const (
	maxRetries  = 20
	maxKept     = 100_000
	maxSeconds  = Seconds(10 * 366 * 86400)
	maxPriority = 1000
)

// Rules is a Spec that was understood.
type Rules struct {
	Spec     Spec
	Filter   Filter
	Calendar Calendar
	Windows  Windows
	Zone     *time.Location
}

// Understand reads the texts of a spec and fills in what it does not say.
func Understand(s Spec) (Rules, error) {
	r, err := Stored(s)
	if err != nil {
		return Rules{}, err
	}
	if err := r.Filter.check(); err != nil {
		return Rules{}, err
	}
	return r, nil
}

// Stored is Understand for a spec that was taken before; see StoredFilter.
func Stored(s Spec) (Rules, error) {
	r := Rules{Spec: s}
	var err error
	if r.Filter, err = StoredFilter(s.Filter); err != nil {
		return Rules{}, err
	}
	if r.Calendar, err = ParseCalendar(s.Schedule); err != nil {
		return Rules{}, err
	}
	if r.Windows, err = ParseWindows(s.Windows); err != nil {
		return Rules{}, err
	}
	if r.Zone, err = LoadZone(s.TimeZone); err != nil {
		return Rules{}, err
	}
	if err := s.check(); err != nil {
		return Rules{}, err
	}
	if r.Spec.Missed == "" {
		r.Spec.Missed = MissedRun
	}
	if r.Spec.Within == 0 {
		r.Spec.Within = DefaultWithin
	}
	if r.Spec.Backoff == 0 {
		r.Spec.Backoff = DefaultBackoff
	}
	return r, nil
}

// LoadZone returns a time zone by its name; "" is UTC. The zone of the machine has no name, for what a policy says must not
// depend on where it is read.
func LoadZone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "Local" {
		return nil, fault.New(fault.Invalid, "read time zone", name, "it is not known").Explain(
			"A policy is due on the clocks of a place.", `Name one as the time zone database does: "Europe/Zurich", "America/New_York", "UTC".`)
	}
	return loc, nil
}

// check looks at the numbers and words of a spec.
func (s Spec) check() error {
	wrong := func(field string, format string, args ...any) error {
		return fault.New(fault.Invalid, "check policy", field, format, args...).Explain(
			"A value of the policy means nothing.", "Correct it; docs/policies.md says what each one may be.")
	}
	if s.Missed != "" && s.Missed != MissedRun && s.Missed != MissedSkip {
		return wrong("missed", "%q is neither %s nor %s", s.Missed, MissedRun, MissedSkip)
	}
	for name, v := range map[string]Seconds{"rpo_seconds": s.RPO, "within_seconds": s.Within, "backoff_seconds": s.Backoff} {
		if v < 0 || v > maxSeconds {
			return wrong(name, "%d is not between 0 and %d", v, maxSeconds)
		}
	}
	if s.Retries < 0 || s.Retries > maxRetries {
		return wrong("retries", "%d is not between 0 and %d", s.Retries, maxRetries)
	}
	if s.Priority < -maxPriority || s.Priority > maxPriority {
		return wrong("priority", "%d is not between %d and %d", s.Priority, -maxPriority, maxPriority)
	}
	for _, rule := range s.Retention.rules() {
		if rule.count < 0 || rule.count > maxKept {
			return wrong("retention "+rule.name, "%d is not between 0 and %d", rule.count, maxKept)
		}
	}
	for name, n := range map[string]int{"connection": s.Limits.Connection, "host": s.Limits.Host, "datastore": s.Limits.Datastore} {
		if n < 0 {
			return wrong("limit of each "+name, "%d is negative", n)
		}
	}
	return nil
}

// RPO returns how old a VM's newest restore point may become, seen from an instant.
func (r Rules) RPO(now time.Time) time.Duration {
	if r.Spec.RPO > 0 {
		return r.Spec.RPO.Duration()
	}
	pause := r.Calendar.LongestPause(now, r.Zone)
	return pause + pause/2
}

// RetryAfter returns how long an attempt waits after so many have failed; false when there is none any more.
func (r Rules) RetryAfter(failed int) (time.Duration, bool) {
	if failed > r.Spec.Retries {
		return 0, false
	}
	wait := r.Spec.Backoff.Duration()
	for range failed - 1 {
		if wait *= 2; wait >= maxBackoff {
			return maxBackoff, true
		}
	}
	return min(wait, maxBackoff), true
}
