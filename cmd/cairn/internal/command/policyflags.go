package command

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
)

// policyFlags are the flags of create and edit. A flag that is not given leaves what there is.
type policyFlags struct {
	filter, schedule, zone, repository, quiesce, mover, transport, missed string
	rpo, within, backoff                                                  string
	windows, limits, exclude, keep                                        []string
	priority, retries                                                     int
	fallback                                                              bool
}

func (p *policyFlags) add(a *App, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.filter, "filter", "", "which VMs, for example `'cluster = prod and not tag = scratch'`; all for every one")
	f.StringVar(&p.schedule, "schedule", "", "when it is due, for example `'Mon..Fri 22:00'`")
	f.StringVar(&p.zone, "zone", "", "on whose clocks, for example `Europe/Zurich`; UTC when not given")
	f.StringArrayVar(&p.windows, "window", nil, "backups begin only in it, for example `'Fri 22:00-06:00'`; may be repeated, '' for always")
	f.StringVar(&p.missed, "missed", "", "a turn that could not begin when it was due: `run|skip`, begin it later or report it")
	f.StringVar(&p.within, "within", "", "with --missed skip: how late it may begin, `TIME` such as 90m; 1h when not given")
	f.StringVar(&p.rpo, "rpo", "", "how old the newest restore point may become, `TIME` such as 26h or 7d; follows from the schedule when not given, or 0")
	f.StringVarP(&p.repository, "repository", "r", "", "`REPOSITORY` for the restore points; may be left out if there is only one")
	f.StringSliceVar(&p.keep, "keep", nil, "restore points to keep, `RULES` such as last=3,hourly=24,daily=14,weekly=8,monthly=12,yearly=5; all for every one")
	f.IntVar(&p.priority, "priority", 0, "of several policies that select a VM the one with the highest `N` covers it, -1000 to 1000")
	f.IntVar(&p.retries, "retries", 2, "`N` more attempts after a failure")
	f.StringVar(&p.backoff, "backoff", "", "before the first of them, `TIME`, twice as long before each further one; 5m when not given")
	f.StringSliceVar(&p.limits, "limit", nil, "tasks at once, `OF=N`: connection=8,host=2,datastore=4; 0 is no limit")
	f.StringVar(&p.quiesce, "quiesce", "", "`try|require|never` to ask the guest agent; try when not given")
	f.StringSliceVar(&p.exclude, "exclude-disk", nil, "leave out disks with these `IDS`, of VMs that have them")
	f.StringVar(&p.mover, "mover", "", "`MOVER` that shall do it; chosen when not given")
	f.StringVar(&p.transport, "transport", "", "`WAY` to the disks: network, hotadd or san; chosen when not given")
	f.BoolVar(&p.fallback, "fallback", false, "when the transport of a disk fails, another one takes its place")
	_ = cmd.RegisterFlagCompletionFunc("repository", a.completeRepositories)
	_ = cmd.RegisterFlagCompletionFunc("mover", a.completeMovers)
	_ = cmd.RegisterFlagCompletionFunc("missed", cobra.FixedCompletions([]string{"run", "skip"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions(quiesceModes, cobra.ShellCompDirectiveNoFileComp))
}

// fill changes a request as the flags that were given say. The repository's id is filled in by the caller.
func (p *policyFlags) fill(cmd *cobra.Command, req *client.PolicyRequest) error {
	given := cmd.Flags().Changed
	texts := []struct {
		flag, from string
		to         *string
	}{
		{"filter", p.filter, &req.Filter}, {"schedule", p.schedule, &req.Schedule}, {"zone", p.zone, &req.TimeZone},
		{"missed", p.missed, (*string)(&req.Missed)}, {"quiesce", p.quiesce, (*string)(&req.Quiesce)},
		{"mover", p.mover, &req.Mover}, {"transport", p.transport, &req.Transport},
	}
	for _, t := range texts {
		if given(t.flag) {
			*t.to = t.from
		}
	}
	times := []struct {
		flag, from string
		to         *int64
	}{{"rpo", p.rpo, &req.RPOSeconds}, {"within", p.within, &req.WithinSeconds}, {"backoff", p.backoff, &req.BackoffSeconds}}
	for _, t := range times {
		if !given(t.flag) {
			continue
		}
		d, err := parseSpan(t.from)
		if err != nil {
			return err
		}
		*t.to = int64(d / time.Second)
	}
	if given("window") {
		req.Windows = nil
		for _, w := range p.windows {
			if w != "" {
				req.Windows = append(req.Windows, w)
			}
		}
	}
	if given("priority") {
		req.Priority = p.priority
	}
	if given("retries") {
		req.Retries = &p.retries
	}
	if given("exclude-disk") {
		req.ExcludeDisks = p.exclude
	}
	if given("fallback") {
		req.Fallback = p.fallback
	}
	if given("keep") {
		kept, err := parseKeep(p.keep)
		if err != nil {
			return err
		}
		req.Retention = kept
	}
	if given("limit") {
		return parsePairs(p.limits, "limit", map[string]*int{
			"connection": &req.Limits.Connection, "host": &req.Limits.Host, "datastore": &req.Limits.Datastore,
		})
	}
	return nil
}

// parseKeep reads retention rules; "all" alone is none.
func parseKeep(rules []string) (client.Retention, error) {
	var r client.Retention
	if slices.Equal(rules, []string{"all"}) {
		return r, nil
	}
	if len(rules) == 0 {
		rules = []string{""}
	}
	err := parsePairs(rules, "rule", map[string]*int{
		"last": &r.Last, "hourly": &r.Hourly, "daily": &r.Daily, "weekly": &r.Weekly, "monthly": &r.Monthly, "yearly": &r.Yearly,
	})
	return r, err
}

func parsePairs(pairs []string, noun string, to map[string]*int) error {
	seen := map[string]bool{}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		n, err := strconv.Atoi(value)
		if to[name] == nil || err != nil || n < 0 {
			return failure.UsageError("Write it as NAME=NUMBER; see --help for the names.", "%q is no %s", pair, noun)
		}
		if seen[name] {
			return failure.UsageError("Say each one once.", "%s %s is there twice", noun, name)
		}
		seen[name] = true
		*to[name] = n
	}
	return nil
}

func keepOf(r client.Retention) string {
	var out []string
	for _, rule := range []struct {
		name string
		n    int
	}{{"last", r.Last}, {"hourly", r.Hourly}, {"daily", r.Daily}, {"weekly", r.Weekly}, {"monthly", r.Monthly}, {"yearly", r.Yearly}} {
		if rule.n > 0 {
			out = append(out, fmt.Sprintf("%s=%d", rule.name, rule.n))
		}
	}
	if len(out) == 0 {
		return "all"
	}
	return strings.Join(out, ",")
}

// parseSpan reads a duration as people write it: 90m, 26h, 7d, 2w; 0 is none.
func parseSpan(s string) (time.Duration, error) {
	units := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	if s == "0" {
		return 0, nil
	}
	if len(s) > 1 && units[s[len(s)-1]] != 0 {
		unit := units[s[len(s)-1]]
		if n, err := strconv.ParseUint(s[:len(s)-1], 10, 63); err == nil && n <= uint64(math.MaxInt64/unit) {
			return time.Duration(n) * unit, nil
		}
	}
	return 0, failure.UsageError("Write it as a number of minutes, hours, days or weeks: 90m, 26h, 7d, 2w.", "%q is no time", s)
}

// span writes a duration with the two largest units that it has.
func span(seconds int64) string {
	parts := ""
	n := 0
	for _, u := range []struct {
		name string
		size int64
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}} {
		if v := seconds / u.size; v > 0 && n < 2 {
			parts += strconv.FormatInt(v, 10) + u.name
			seconds -= v * u.size
			n++
		} else if n > 0 {
			n++
		}
	}
	return parts
}
