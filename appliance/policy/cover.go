package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Candidate is a policy that may cover VMs.
type Candidate struct {
	ID, Name string
	Paused   bool
	Rules    Rules
}

// Exclusion keeps VMs from being covered, for a reason and possibly until a date.
type Exclusion struct {
	ID     string
	Filter Filter
	Reason string
	Until  time.Time // zero: for good
	By     string
}

// Holds reports whether the exclusion is in force at an instant.
func (e Exclusion) Holds(now time.Time) bool { return e.Until.IsZero() || now.Before(e.Until) }

// Cover is which rule covers a VM, and why. At most one of the two ids is set; without any the VM is unprotected.
type Cover struct {
	PolicyID    string
	Policy      string // its name
	ExclusionID string
	Until       time.Time // of the exclusion
	// Unprotectable says that no policy covers the VM, and that none could: the platform has no way to freeze it.
	Unprotectable bool
	Why           string // in whole sentences
}

// Covers decides for VMs. It orders what it was given once, so that asking it for each of many VMs is cheap.
type Covers struct {
	policies   []Candidate // the one that counts first
	exclusions []Exclusion
}

// NewCovers makes the decision of policies and exclusions at an instant.
func NewCovers(policies []Candidate, exclusions []Exclusion, now time.Time) Covers {
	c := Covers{policies: slices.Clone(policies)}
	slices.SortStableFunc(c.policies, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(b.Rules.Spec.Priority, a.Rules.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for _, e := range exclusions {
		if e.Holds(now) {
			c.exclusions = append(c.exclusions, e)
		}
	}
	slices.SortStableFunc(c.exclusions, func(a, b Exclusion) int { return cmp.Compare(a.ID, b.ID) })
	return c
}

// Of says which rule covers a VM. An exclusion goes before every policy; of the policies that select the VM the one with the
// highest priority counts, and of those with the same the first by name. A paused policy covers its VMs all the same: another one
// must not take them over while somebody looks for a fault. A VM that cannot be backed up whatever happens to its disks is covered by
// no policy; one whose disks cannot be frozen as they are now stays covered, so that it is tried again.
func (c Covers) Of(vm VM) Cover {
	for _, e := range c.exclusions {
		if e.Filter.Match(vm) {
			return Cover{ExclusionID: e.ID, Until: e.Until, Why: e.why()}
		}
	}
	if vm.Unprotectable != "" {
		return Cover{Unprotectable: true, Why: "It cannot be backed up: " + vm.Unprotectable + "."}
	}
	var out Cover
	others := 0
	for _, p := range c.policies {
		switch {
		case !p.Rules.Filter.Match(vm):
		case out.PolicyID == "":
			out = Cover{PolicyID: p.ID, Policy: p.Name, Why: fmt.Sprintf("Policy %s covers it: %s.", p.Name, p.Rules.Filter.describe())}
			if p.Paused {
				out.Why += " The policy is paused."
			}
		default:
			if others++; others == 1 {
				out.Why += " It goes before " + p.Name
			} else {
				out.Why += ", " + p.Name
			}
		}
	}
	if others > 0 {
		out.Why += ", by priority and then by name."
	}
	if out.PolicyID == "" {
		out.Why = "No policy's filter selects it."
	}
	if vm.UnprotectableDisks != "" {
		out.Unprotectable = out.PolicyID == ""
		out.Why += " None of its disks can be backed up: " + vm.UnprotectableDisks + "."
	}
	return out
}

// Which returns the id of the policy that covers a VM, as Of does, and "" for none; it is for many VMs, and says nothing.
func (c Covers) Which(vm VM) string {
	for _, e := range c.exclusions {
		if e.Filter.Match(vm) {
			return ""
		}
	}
	if vm.Unprotectable != "" {
		return ""
	}
	for _, p := range c.policies {
		if p.Rules.Filter.Match(vm) {
			return p.ID
		}
	}
	return ""
}

func (e Exclusion) why() string {
	until := ""
	if !e.Until.IsZero() {
		until = ", until " + e.Until.UTC().Format("2006-01-02 15:04 UTC")
	}
	by := ""
	if e.By != "" {
		by = " by " + e.By
	}
	return fmt.Sprintf("It is excluded%s%s: %s.", by, until, e.Reason)
}

// Protection is how well a VM is protected.
type Protection string

// The values, from good to bad.
const (
	Protected     Protection = "protected"   // its newest good restore point is as young as was promised
	Late          Protection = "late"        // it is older
	NeverRan      Protection = "never_ran"   // it is covered and has no good restore point
	Unprotected   Protection = "unprotected" // no policy covers it
	Excluded      Protection = "excluded"
	Unprotectable Protection = "unprotectable" // no policy covers it, and none could
)

// Protections are all values in their order.
var Protections = []Protection{Protected, Late, NeverRan, Unprotected, Excluded, Unprotectable}

// Standing is how well a VM is protected at an instant.
type Standing struct {
	Protection Protection
	Age        time.Duration // the RPO that is achieved: the age of the newest good restore point; 0 when there is none
	Target     time.Duration // the RPO that was promised; 0 without a policy
}

// Stand judges a VM by its cover, what the policy promises, and when its newest good restore point was made.
func Stand(c Cover, target time.Duration, newestGood time.Time, now time.Time) Standing {
	s := Standing{Target: target}
	if !newestGood.IsZero() {
		s.Age = max(0, now.Sub(newestGood))
	}
	switch {
	case c.ExclusionID != "":
		s.Protection, s.Target = Excluded, 0
	case c.Unprotectable:
		s.Protection, s.Target = Unprotectable, 0
	case c.PolicyID == "":
		s.Protection, s.Target = Unprotected, 0
	case newestGood.IsZero():
		s.Protection = NeverRan
	case s.Age > target:
		s.Protection = Late
	default:
		s.Protection = Protected
	}
	return s
}
