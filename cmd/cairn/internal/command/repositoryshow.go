package command

import (
	"fmt"
	"io"
	"strconv"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
)

// repositoryPlace is where a repository lies, in few words.
func repositoryPlace(r client.Repository) string {
	if n := len(r.Members); n > 1 {
		return r.Path + " and " + strconv.Itoa(n-1) + " more"
	}
	return r.Path
}

func (a *App) showRepository(r client.Repository) error {
	return a.one(r, r.Name, func(p output.Printer, w io.Writer) error {
		fields := []output.Field{
			{Name: "Name", Value: r.Name},
			{Name: "ID", Value: r.ID},
			{Name: "Path", Value: repositoryPlace(r)},
			{Name: "State", Value: string(r.Status), State: true},
			{Name: "Identity", Value: r.StoreID},
			{Name: "Key", Value: r.KeyFile},
			{Name: "Created", Value: a.when(r.CreatedAt)},
			{Name: "Checked", Value: a.when(r.CheckedAt)},
			{Name: "Restore points", Value: ifKnown(r, strconv.Itoa(r.Usage.RestorePoints))},
			{Name: "Disks in them", Value: ifKnown(r, output.SizeExact(r.Usage.LogicalBytes))},
			{Name: "Stored", Value: ifKnown(r, output.SizeExact(r.Usage.StoredBytes)+", "+strconv.Itoa(r.Usage.Packs)+" packs")},
			{Name: "Free", Value: sizeOrNone(r.Usage.FreeBytes)},
			{Name: "Compression", Value: string(r.Compression)},
		}
		fields = append(fields, redundancyFields(r.Redundancy)...)
		fields = append(fields, a.verificationFields(r)...)
		if err := p.Fields(w, append(fields, failureFields(r.Error)...)...); err != nil {
			return err
		}
		return output.Section(p, w, "Members", r.Members, memberColumns(r.Redundancy.Groups > 1))
	})
}

func redundancyFields(r client.Redundancy) []output.Field {
	if r.Data == 0 {
		return nil
	}
	set := fmt.Sprintf("%d+%d", r.Data, r.Parity)
	if r.Groups > 1 {
		set += fmt.Sprintf(", %d groups", r.Groups)
	}
	fields := []output.Field{{Name: "Set", Value: set + ": " + mayLose(r)}}
	if r.ObjectsBelow > 0 {
		fields = append(fields, output.Field{Name: "Not redundant", Value: fmt.Sprintf("%d of %d objects have fewer shards than they should", r.ObjectsBelow, r.Objects)})
	}
	if r.ObjectsUnreadable > 0 {
		fields = append(fields, output.Field{Name: "Not readable", Value: fmt.Sprintf("%d of %d objects have too few shards", r.ObjectsUnreadable, r.Objects)})
	}
	return fields
}

// mayLose says how many members may go; the worst group counts.
func mayLose(r client.Redundancy) string {
	of := ""
	if r.Groups > 1 {
		of = " of any group"
	}
	switch n := r.CanLose; {
	case n < 0:
		return "something cannot be read now"
	case n == 0:
		return "no further member may be lost"
	default:
		return plural(n, "further member") + of + " may be lost"
	}
}

func (a *App) verificationFields(r client.Repository) []output.Field {
	v := r.Verification
	every := "never by itself"
	if v.EveryDays > 0 {
		every = "all of it every " + plural(v.EveryDays, "day") + ", " + rateOrFree(v.BytesPerSecond)
	}
	last := a.when(v.LastCompletedAt)
	if last == "" {
		last = "never"
	}
	fields := []output.Field{{Name: "Verification", Value: every}, {Name: "Last complete", Value: last, State: true}}
	if !v.CycleStartedAt.IsZero() {
		fields = append(fields, output.Field{Name: "Under way", Value: fmt.Sprintf("%s, %s of %s, since %s",
			percent(v.DoneBytes, max(v.TotalBytes, 1)), output.Size(v.DoneBytes), output.Size(v.TotalBytes), a.when(v.CycleStartedAt))})
	}
	var damage words
	damage.count("", v.DamagedPacks, "pack")
	damage.count("", v.DamagedRestorePoints, "restore point")
	if len(damage) > 0 {
		what := damage[0][1]
		for _, more := range damage[1:] {
			what += ", " + more[1]
		}
		fields = append(fields, output.Field{Name: "Damage", Value: what + "; see \"cairn repository damage " + r.Name + "\""})
	}
	return fields
}

func rateOrFree(bytesPerSecond int64) string {
	if bytesPerSecond == 0 {
		return "as fast as it goes"
	}
	return "at most " + output.Rate(float64(bytesPerSecond))
}

func memberColumns(groups bool) []output.Column[client.Member] {
	return []output.Column[client.Member]{
		{Header: "MEMBER", Value: func(m client.Member) string { return m.ID }},
		{Header: "GROUP", Right: true, Wide: !groups, Value: func(m client.Member) string { return strconv.Itoa(m.Group) }},
		{Header: "STATE", State: true, Value: func(m client.Member) string { return string(m.State) }},
		{Header: "FREE", Right: true, Value: func(m client.Member) string { return sizeOrNone(m.FreeBytes) }},
		{Header: "LACKS", Right: true, Value: func(m client.Member) string { return countOrNone(m.Lacking) }},
		{Header: "ERRORS", Right: true, Value: func(m client.Member) string { return countOrNone(int(m.Errors)) }},
		{Header: "DOMAIN", Value: memberDomain},
		{Header: "PATH", Value: func(m client.Member) string { return m.Path }},
		{Header: "WHY", Value: func(m client.Member) string { return m.Message }},
	}
}

// memberDomain is what a member fails with; one that fails alone has its own id there.
func memberDomain(m client.Member) string {
	if m.Domain == m.ID {
		return ""
	}
	return m.Domain
}

func countOrNone(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
