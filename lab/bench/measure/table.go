package measure

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/lab/bench/images"
)

// Median is the median of each number over the rounds.
type Median struct {
	Row
	Rounds int
}

// Medians condenses rows, by step and engine, in the order of Steps and of appearance.
func Medians(rows []Row) []Median {
	var order []string
	groups := map[string][]Row{}
	for _, r := range rows {
		key := r.Step + "\x00" + r.Engine
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], r)
	}
	var out []Median
	for _, key := range order {
		g := groups[key]
		m := Median{Row: g[0], Rounds: len(g)}
		m.Round = 0
		m.Wall, m.CPU = median(g, func(r Row) float64 { return r.Wall }), median(g, func(r Row) float64 { return r.CPU })
		m.RSS, m.Bytes = median(g, func(r Row) int64 { return r.RSS }), median(g, func(r Row) int64 { return r.Bytes })
		m.Added, m.Restored = median(g, func(r Row) int64 { return r.Added }), median(g, func(r Row) int64 { return r.Restored })
		out = append(out, m)
	}
	slices.SortStableFunc(out, func(a, b Median) int { return cmp.Compare(slices.Index(Steps, a.Step), slices.Index(Steps, b.Step)) })
	return out
}

func median[T cmp.Ordered](rows []Row, of func(Row) T) T {
	var v []T
	for _, r := range rows {
		v = append(v, of(r))
	}
	slices.Sort(v)
	return v[(len(v)-1)/2]
}

// Table returns the medians in Markdown.
func Table(medians []Median) string {
	var b strings.Builder
	b.WriteString("| step | engine | wall s | CPU s | peak RSS, MiB | added, MiB | repository, MiB |\n|---|---|---|---|---|---|---|\n")
	for _, m := range medians {
		fmt.Fprintf(&b, "| %s | %s | %.1f | %.2f | %d | %s | %s |\n", m.Step, m.Engine, m.Wall, m.CPU, m.RSS>>20, mebi(m.Added), mebi(m.Bytes))
	}
	return b.String()
}

func mebi(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", float64(n)/(1<<20))
}

// Target is one promise about speed or size with what was measured.
type Target struct {
	What     string
	Measured string  // how the ratio is made
	Ratio    float64 // NaN-free: targets without all their rows are left out
	Limit    float64
	AtLeast  bool // the ratio has to be at least the limit; otherwise at most
}

// Met reports whether the target is reached.
func (t Target) Met() bool {
	if t.AtLeast {
		return t.Ratio >= t.Limit
	}
	return t.Ratio <= t.Limit
}

// field finds numbers among medians.
type field []Median

func (f field) get(step, engine string) (Median, bool) {
	i := slices.IndexFunc(f, func(m Median) bool { return m.Step == step && m.Engine == engine })
	if i < 0 {
		return Median{}, false
	}
	return f[i], true
}

// best is the smallest number of any peer.
func (f field) best(step string, of func(Median) float64) (least float64, who string) {
	for _, m := range f {
		if m.Step != step || m.Engine == "bare" || strings.HasPrefix(m.Engine, "cairn") {
			continue
		}
		if v := of(m); who == "" || v < least {
			least, who = v, m.Engine
		}
	}
	return least, who
}

func allImages(k images.Kind) string { return "all images of " + string(k) + " VMs" }

// withSums adds what each engine has stored for all images of a kind. What machines of both kinds have in common counts
// for whichever came first.
func withSums(medians []Median) field {
	f := field(slices.Clone(medians))
	at := map[string]int{}
	for _, m := range medians {
		if m.Kind == "" || !slices.Contains(firsts, m.Step) && !slices.Contains([]string{Of(NextDay, m.Kind), Of(LaterDays, m.Kind)}, m.Step) {
			continue
		}
		step := allImages(m.Kind)
		i, ok := at[step+m.Engine]
		if !ok {
			i = len(f)
			at[step+m.Engine] = i
			f = append(f, Median{Row: Row{Step: step, Engine: m.Engine, Kind: m.Kind}, Rounds: m.Rounds})
		}
		f[i].Added += m.Added
	}
	return f
}

// perGiB is a number for each GiB that was restored; 0 if it is not known how much that was.
func perGiB(of func(Median) float64) func(Median) float64 {
	return func(m Median) float64 {
		if m.Restored == 0 {
			return 0
		}
		return of(m) / (float64(m.Restored) / (1 << 30))
	}
}

func cpu(m Median) float64   { return m.CPU }
func wall(m Median) float64  { return m.Wall }
func added(m Median) float64 { return float64(m.Added) }
func size(m Median) float64  { return float64(m.Bytes) }
func rss(m Median) float64   { return float64(m.RSS) }

// Targets judges what STORE.md promises, as far as its rows are there. A ratio is that of one round, since a machine is
// another one an hour later; of several rounds, the one with the median ratio is shown.
func Targets(rows []Row) (out []Target) {
	rounds := map[int][]Row{}
	for _, r := range rows {
		rounds[r.Round] = append(rounds[r.Round], r)
	}
	var order []string
	all := map[string][]Target{}
	for _, n := range slices.Sorted(maps.Keys(rounds)) {
		for _, t := range targets(Medians(rounds[n])) {
			if all[t.What] == nil {
				order = append(order, t.What)
			}
			all[t.What] = append(all[t.What], t)
		}
	}
	for _, what := range order {
		same := all[what]
		slices.SortStableFunc(same, func(a, b Target) int { return cmp.Compare(a.Ratio, b.Ratio) })
		out = append(out, same[(len(same)-1)/2])
	}
	return out
}

// targets judges one round.
func targets(medians []Median) (out []Target) {
	f := withSums(medians)
	against := func(what string, limit float64, of func(Median) float64, unit, step, engine, peerStep, peer string) {
		a, ok := f.get(step, engine)
		b, found := f.get(peerStep, peer)
		if !ok || !found || of(b) == 0 {
			return
		}
		out = append(out, Target{What: what, Ratio: of(a) / of(b), Limit: limit,
			Measured: fmt.Sprintf("%s %s: %.4g / %s %s: %.4g %s", engine, step, scale(of(a), unit), peer, peerStep, scale(of(b), unit), unit)})
	}
	anyone := func(what string, limit float64, of func(Median) float64, unit, step, engine string) {
		if _, who := f.best(step, of); who != "" {
			against(what, limit, of, unit, step, engine, step, who)
		}
	}
	against("full backup: at most 1.25 times the bare pipeline's CPU", 1.25, cpu, "s", Full, "cairn", BareZstd, "bare")
	anyone("full backup: repository not larger than the smallest peer's", 1, size, "MiB", Full, "cairn")
	anyone("full backup with --compression high: repository not larger than the smallest peer's", 1, size, "MiB", Full, "cairn-high")
	anyone("full backup with --compression high: not more CPU than the thriftiest peer", 1, cpu, "s", Full, "cairn-high")
	if a, ok := f.get(ReRead, "cairn"); ok && a.CPU > 0 {
		if b, found := f.get(BareRead, "bare"); found {
			out = append(out, Target{What: "re-read of known data: at least 80 % of bare read and BLAKE3", Ratio: b.CPU / a.CPU, Limit: 0.8, AtLeast: true,
				Measured: fmt.Sprintf("bare %.3g s / cairn %.3g s of CPU", b.CPU, a.CPU)})
		}
	}
	for _, k := range slices.Backward(images.Kinds) {
		step, who := Of(NextDay, k), string(k)+" VMs"
		against("a day with change tracking, "+who+": at most 1/12 of restic's bytes", 1./12, added, "MiB", step, "cairn-tracked", step, "restic")
		against("a day with change tracking, "+who+": at most 0.4 of borg's bytes (64 KiB)", 0.4, added, "MiB", step, "cairn-tracked", step, "borg-64k")
		anyone("a day with change tracking, "+who+": at most 1/10 of anyone's CPU", 0.1, cpu, "s", step, "cairn-tracked")
	}
	for _, k := range slices.Backward(images.Kinds) {
		step := allImages(k)
		against("all images of "+string(k)+" VMs: at most 1/3 of what restic stores for them", 1./3, added, "MiB", step, "cairn-tracked", step, "restic")
	}
	against("all images: repository, for orientation against the same 1/3", 1./3, size, "MiB", LaterDays, "cairn-tracked", LaterDays, "restic")
	against("restore: at most 1.5 times the bare pipeline's CPU", 1.5, cpu, "s", RestoreOld, "cairn", BareRestore, "bare")
	against("restore of the last day: at most 1.5 times the bare pipeline's CPU", 1.5, cpu, "s", RestoreNew, "cairn", BareRestore, "bare")
	anyone("restore: not slower than any peer by the wall clock", 1, wall, "s", RestoreOld, "cairn")
	anyone("restore of the last day: not slower than any peer by the wall clock", 1, wall, "s", RestoreNew, "cairn")
	anyone("restore of the last day of a scattered VM: not slower than any peer by the wall clock", 1, wall, "s", RestoreBusy, "cairn-tracked")
	against("restore after 30 days: at most 1.3 times the first day's CPU", 1.3, cpu, "s", LongNewest, "cairn-tracked", LongOldest, "cairn-tracked")
	against("restore after 30 days: at most 1.3 times the first day's time", 1.3, wall, "s", LongNewest, "cairn-tracked", LongOldest, "cairn-tracked")
	against("the same for each GiB that is restored, of which there is more: CPU", 1.3, perGiB(cpu), "s/GiB", LongNewest, "cairn-tracked", LongOldest, "cairn-tracked")
	against("the same for each GiB that is restored: time", 1.3, perGiB(wall), "s/GiB", LongNewest, "cairn-tracked", LongOldest, "cairn-tracked")
	anyone("verify: at most half of the best peer's CPU", 0.5, cpu, "s", Verify, "cairn")
	if m, step := f.largest("cairn"); step != "" {
		out = append(out, Target{What: "memory: at most 512 MiB in any step", Ratio: rss(m) / (512 << 20), Limit: 1,
			Measured: fmt.Sprintf("%d MiB at most, in %q", m.RSS>>20, step)})
	}
	return out
}

func (f field) largest(prefix string) (most Median, step string) {
	for _, m := range f {
		if strings.HasPrefix(m.Engine, prefix) && m.RSS > most.RSS {
			most, step = m, m.Step
		}
	}
	return most, step
}

func scale(v float64, unit string) float64 {
	if unit == "MiB" {
		return v / (1 << 20)
	}
	return v
}

// TargetTable returns the targets in Markdown.
func TargetTable(targets []Target) string {
	var b strings.Builder
	b.WriteString("| target | measured | ratio | limit | |\n|---|---|---|---|---|\n")
	for _, t := range targets {
		sign, verdict := "<=", "missed"
		if t.AtLeast {
			sign = ">="
		}
		if t.Met() {
			verdict = "met"
		}
		fmt.Fprintf(&b, "| %s | %s | %.3f | %s %.3f | %s |\n", t.What, t.Measured, t.Ratio, sign, t.Limit, verdict)
	}
	return b.String()
}
