package protect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/words"
	"github.com/cairn-backup/cairn/store"
)

// The functions of this file put damage into the words of those who own the VMs.

const (
	maxNamed  = 100 // VMs, or packs, with a line of their own
	maxListed = 20  // restore points, or VMs, in one line
)

// Touched is a restore point that is not whole, with the VM it is of.
type Touched struct {
	store.TouchedPoint
	VMID, VMName string
}

// NameTouched says which VMs restore points are of. A VM that the catalog does not know has its series for a name.
func (p *Protector) NameTouched(ctx context.Context, repositoryID string, touched []store.TouchedPoint) ([]Touched, error) {
	rows, err := p.catalog.PointsOfRepository(ctx, repositoryID)
	if err != nil {
		return nil, err
	}
	var out []Touched
	for _, t := range touched {
		row := rows[t.RestorePoint]
		out = append(out, Touched{TouchedPoint: t, VMID: row.VMID, VMName: cmp.Or(row.VMName, t.Series)})
	}
	slices.SortStableFunc(out, func(a, b Touched) int {
		return cmp.Or(cmp.Compare(a.VMName, b.VMName), cmp.Compare(a.Series, b.Series), a.Time.Compare(b.Time))
	})
	return out, nil
}

// blast tells the task's readers what damage touches, a line for each VM, and returns the error that says it in one.
func (p *Protector) blast(
	ctx context.Context, t *jobs.Task, op string, packs []store.PackDamage, problems []string, touched []store.TouchedPoint,
) error {
	named, err := p.NameTouched(ctx, t.RepositoryID, touched)
	if err != nil {
		return err
	}
	for _, d := range packs[:min(len(packs), maxNamed)] {
		t.Event(ctx, fmt.Sprintf("%s is damaged: %s", d.Pack, d.Cause), "pack", d.Pack)
	}
	for _, problem := range problems[:min(len(problems), maxNamed)] {
		t.Event(ctx, problem)
	}
	vms := byVM(named)
	var short []string
	for i, points := range vms {
		if i < maxListed {
			short = append(short, fmt.Sprintf("%s (%d)", points[0].VMName, len(points)))
		}
		if i < maxNamed {
			tellVM(ctx, t, points)
		}
	}
	name := t.RepositoryID
	if row, err := p.catalog.Repository(ctx, t.RepositoryID); err == nil {
		name = row.Name
	}
	damaged := words.Count(len(packs)+len(problems), "object is damaged", "objects are damaged")
	if len(vms) == 0 {
		return fault.New(fault.Corrupt, op, name, "%s; no restore point is known to need what was there", damaged).Explain(
			"Files of the repository are not what was written, or missing; what that touches is not known yet, or nothing.",
			"Verify the repository to the end of the cycle, heal it, and look for the cause in its storage.")
	}
	if len(vms) > maxListed {
		short = append(short, fmt.Sprintf("and %d more", len(vms)-maxListed))
	}
	return fault.New(fault.Corrupt, op, name, "%s; not whole are restore points of %s",
		damaged, strings.Join(short, ", ")).Explain(
		"Files of the repository are not what was written, or missing. The VMs named have restore points that cannot be restored in full; the events of the run name them and their disks.",
		"Heal the repository from a copy, or make full backups of these VMs now; then look for the cause in the storage of the repository.")
}

func tellVM(ctx context.Context, t *jobs.Task, points []Touched) {
	var ids, lines []string
	for i, point := range points {
		ids = append(ids, point.RestorePoint)
		if i < maxListed {
			lines = append(lines, fmt.Sprintf("%s of %s (%s)", point.RestorePoint, point.Time.UTC().Format("2006-01-02 15:04"), piecesOf(point.TouchedPoint)))
		}
	}
	if len(points) > maxListed {
		lines = append(lines, fmt.Sprintf("and %d more", len(points)-maxListed))
	}
	t.Warn(ctx, fmt.Sprintf("VM %s: %s: %s.", points[0].VMName,
		words.Count(len(points), "restore point is not whole", "restore points are not whole"), strings.Join(lines, "; ")),
		"vm", points[0].VMName, "vm_id", points[0].VMID, "restore_points", strings.Join(ids, " "))
}

// byVM splits restore points, which are sorted by VM, into those of each VM.
func byVM(named []Touched) (out [][]Touched) {
	for i, t := range named {
		if i == 0 || t.VMName != named[i-1].VMName || t.Series != named[i-1].Series {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], t)
	}
	return out
}

// piecesOf says what of a restore point is lost.
func piecesOf(point store.TouchedPoint) string {
	var parts []string
	for _, image := range point.Images {
		parts = append(parts, fmt.Sprintf("disk %s: %s in %s", image.Name,
			words.Count(image.Bytes, "byte", "bytes"), words.Count(image.Count, "place", "places")))
	}
	for _, document := range point.Documents {
		parts = append(parts, "document "+document)
	}
	if len(parts) == 0 {
		return "its record"
	}
	return strings.Join(parts, ", ")
}

// healed forgets the damage of restore points that are whole again.
func (p *Protector) healed(ctx context.Context, repositoryID string, left []store.TouchedPoint) error {
	keep := map[string]bool{}
	for _, t := range left {
		keep[t.RestorePoint] = true
	}
	if err := p.catalog.ForgetDamage(ctx, repositoryID, keep); err != nil {
		return err
	}
	return p.noteTouched(ctx, left)
}
