package protect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// The labels of a restore point's manifest.
const (
	labelPlatform   = "platform"
	labelConnection = "connection_id"
	labelConnName   = "connection_name"
	labelVM         = "vm_platform_id"
	labelVMName     = "vm_name"
	labelTask       = "task_id"
	labelRun        = "run_id"
)

// pointMeta is what a manifest says beyond what the store knows of, so that the catalog's row can be made again.
type pointMeta struct {
	Consistency     hypervisors.Consistency `json:"consistency"`
	ConsistencyNote string                  `json:"consistency_note,omitempty"`
	Checkpoint      string                  `json:"checkpoint,omitempty"`
	CheckpointOf    string                  `json:"checkpoint_of,omitempty"` // restore point it was made with; this one if empty
	Skipped         []catalog.SkippedDisk   `json:"skipped,omitempty"`
	Warnings        []string                `json:"warnings,omitempty"`
}

// diskMeta is the same for one disk.
type diskMeta struct {
	Format      hypervisors.DiskFormat `json:"format,omitempty"`
	Mode        string                 `json:"mode"`
	Reason      string                 `json:"reason,omitempty"`
	BytesRead   int64                  `json:"bytes_read"`
	BytesNew    int64                  `json:"bytes_new"`
	BytesStored int64                  `json:"bytes_stored"`
}

// manifest says everything about the restore point but its images.
func (b *backup) manifest() store.Manifest {
	meta := pointMeta{
		Consistency: b.info.Consistency, ConsistencyNote: b.info.ConsistencyNote, Checkpoint: b.info.Checkpoint,
		CheckpointOf: b.base.checkpointOf(b.info.Checkpoint), Warnings: b.info.Warnings,
	}
	for _, s := range b.info.Skipped {
		meta.Skipped = append(meta.Skipped, catalog.SkippedDisk{ID: s.Disk.ID, Kind: s.Disk.Kind, Reason: s.Reason})
	}
	m := store.Manifest{
		Series: b.series(), Time: b.info.Time.UTC(), Description: encode(b.info.VM), Meta: encode(meta),
		Labels: map[string]string{
			labelPlatform: string(b.conn.Platform), labelConnection: b.conn.ID, labelConnName: b.conn.Name,
			labelVM: b.vm.PlatformID, labelVMName: b.info.VM.Name, labelTask: b.t.ID, labelRun: b.t.RunID,
		},
	}
	for _, d := range b.info.Documents {
		m.Documents = append(m.Documents, store.Document{Name: d.Name, MediaType: d.MediaType, Data: d.Data})
	}
	return m
}

// pointRow makes the catalog's row of a restore point from its manifest alone.
func pointRow(repositoryID, vmID string, p store.RestorePoint) (catalog.RestorePoint, error) {
	var meta pointMeta
	if err := json.Unmarshal(p.Meta, &meta); err != nil {
		return catalog.RestorePoint{}, fault.Wrap(fault.Unsupported, "read restore point", p.ID, err)
	}
	row := catalog.RestorePoint{
		ID: p.ID, RepositoryID: repositoryID, ConnectionID: p.Labels[labelConnection], VMID: vmID,
		VMName: p.Labels[labelVMName], Series: p.Series, TaskID: p.Labels[labelTask], Time: p.Time, Published: p.Published,
		Kind: catalog.Incremental, Consistency: meta.Consistency, ConsistencyNote: meta.ConsistencyNote,
		Checkpoint: meta.Checkpoint, Skipped: meta.Skipped, Warnings: meta.Warnings,
	}
	for _, img := range p.Images {
		var d diskMeta
		if err := json.Unmarshal(img.Meta, &d); err != nil {
			return catalog.RestorePoint{}, fault.Wrap(fault.Unsupported, "read restore point", p.ID, err)
		}
		if d.Mode != catalog.Incremental {
			row.Kind = catalog.Full
		}
		row.Disks = append(row.Disks, catalog.PointDisk{
			ID: img.Name, SizeBytes: img.Ref.SizeBytes, Root: fmt.Sprint(img.Ref.Root), Format: d.Format, Mode: d.Mode,
			Reason: d.Reason, BytesRead: d.BytesRead, BytesNew: d.BytesNew, BytesStored: d.BytesStored,
		})
		row.SizeBytes += img.Ref.SizeBytes
		row.BytesRead += d.BytesRead
		row.BytesNew += d.BytesNew
		row.BytesStored += d.BytesStored
	}
	return row, nil
}

// Reconcile makes the catalog's restore points those of a repository on which no task is under way: unknown ones are taken in, vanished
// ones are forgotten. Restore points that Cairn did not write are left out.
func (p *Protector) Reconcile(ctx context.Context, repositoryID string) (added, removed int, err error) {
	repo, err := p.repositories(ctx, repositoryID)
	if err != nil {
		return 0, 0, err
	}
	known, err := p.catalog.RestorePointIDs(ctx, repositoryID)
	if err != nil {
		return 0, 0, err
	}
	points, err := repo.RestorePoints(ctx)
	if err != nil {
		return 0, 0, fault.Context("list restore points of repository", repositoryID, err)
	}
	var errs []error
	var found []catalog.RestorePoint
	for _, point := range points {
		if known[point.ID] {
			delete(known, point.ID)
			continue
		}
		row, err := p.rowOf(ctx, repositoryID, point)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, row)
	}
	news, err := p.catalog.AddRestorePoints(ctx, found)
	if err != nil {
		return 0, 0, errors.Join(append(errs, err)...)
	}
	for id := range known {
		if err := p.catalog.DeleteRestorePoint(ctx, id); err != nil {
			errs = append(errs, err)
			continue
		}
		removed++
	}
	return len(news), removed, errors.Join(errs...)
}

// rowOf is the row of a restore point that was found in a repository. Its VM is known only if its connection is.
func (p *Protector) rowOf(ctx context.Context, repositoryID string, point store.RestorePoint) (catalog.RestorePoint, error) {
	vmID := ""
	connection := point.Labels[labelConnection]
	if _, err := p.catalog.Connection(ctx, connection); err == nil {
		var desc hypervisors.VM
		if err := json.Unmarshal(point.Description, &desc); err != nil {
			return catalog.RestorePoint{}, fault.Wrap(fault.Unsupported, "read restore point", point.ID, err)
		}
		vm, err := p.catalog.EnsureVM(ctx, connection, desc)
		if err != nil {
			return catalog.RestorePoint{}, err
		}
		vmID = vm.ID
	}
	return pointRow(repositoryID, vmID, point)
}
