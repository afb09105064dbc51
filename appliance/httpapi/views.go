package httpapi

import (
	"strconv"
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The functions of this file turn what the appliance knows into what the document says.

func at(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// each returns a slice that is never nil, so that an empty list is [] and not null.
func each[In, Out any](in []In, f func(In) Out) []Out {
	out := make([]Out, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

func failureOf(f *catalog.Failure) server.Failure {
	if f == nil {
		return server.Failure{}
	}
	kind, _ := fault.KindNamed(f.Kind)
	return server.Failure{
		Type: problemPath + kind.String(), Detail: f.What, Meaning: f.Meaning, Advice: f.Advice, Retryable: kind.Retryable(),
	}
}

func connectionOf(c ConnectionInfo) server.Connection {
	out := server.Connection{
		ID: c.ID, Name: c.Name, Platform: server.Platform(c.Platform), Address: c.Address, User: c.User, Options: c.Options,
		CreatedAt: c.CreatedAt.UTC(), VMs: c.VMs, Status: server.Status(c.Status), Product: c.Product, Host: c.Host, HostID: c.HostID,
		Problems: c.Problems, CheckedAt: at(c.LastChecked), InventoryAt: at(c.LastInventory), Error: failureOf(c.LastError),
	}
	if c.Capabilities != nil {
		out.Capabilities = capabilitiesOf(*c.Capabilities)
	}
	return out
}

func capabilitiesOf(c hypervisors.Capabilities) server.Capabilities {
	return server.Capabilities{
		Backup: c.Backup, ChangeTracking: c.ChangeTracking, Quiesce: c.Quiesce, StoppedBackup: c.StoppedBackup,
		Restore: c.Restore, RestoreInPlace: c.RestoreInPlace, RestoreDisks: c.RestoreDisks, RestoreInto: c.RestoreInto, Power: c.Power, Watch: c.Watch,
		Transports: each(c.Transports, func(t hypervisors.Transport) string { return string(t) }),
		Formats:    each(c.Formats, func(f hypervisors.DiskFormat) string { return string(f) }),
	}
}

func healthOf(h hypervisors.Health) server.ConnectionHealth {
	return server.ConnectionHealth{Product: h.Product, Host: h.Host, VMs: h.VMs, Movers: h.Movers, Problems: h.Problems}
}

func datastoreOf(d hypervisors.Datastore) server.Datastore {
	return server.Datastore{
		ID: d.ID, Name: d.Name, Kind: d.Kind, Path: d.Path, CapacityBytes: d.CapacityBytes, FreeBytes: d.FreeBytes,
		Active: d.Active,
	}
}

func networkOf(n hypervisors.Network) server.Network {
	return server.Network{Name: n.Name, Kind: n.Kind, Active: n.Active}
}

// holdsData reports whether a disk is one a backup is about.
func holdsData(d hypervisors.Disk) bool {
	return d.Kind == hypervisors.KindDisk || d.Kind == hypervisors.KindLUN
}

func vmOf(v VMInfo) server.VM {
	out := server.VM{
		ID: v.ID, Name: v.Name, ConnectionID: v.ConnectionID, PlatformID: v.PlatformID, Host: v.Description.Host,
		Power: powerOf(v.Power), Gone: v.GoneAt != nil, SeenAt: v.LastSeen.UTC(),
		DataCenter: v.Description.DataCenter, Cluster: v.Description.Cluster, Folder: v.Description.Folder, Tags: v.Description.Tags,
		UnprotectableReason: v.Description.Unprotectable, LastRestorePointID: v.LastPointID, LastRestorePointAt: at(&v.LastPointAt),
	}
	for _, d := range v.Description.Disks {
		if !holdsData(d) {
			continue
		}
		out.Disks++
		out.SizeBytes += d.SizeBytes
		if d.Unprotectable != "" {
			out.Unprotectable = append(out.Unprotectable, server.Unprotectable{Disk: d.ID, Reason: d.Unprotectable})
		}
	}
	return out
}

func powerOf(p hypervisors.Power) server.Power {
	if out := server.Power(p); out.Valid() {
		return out
	}
	return server.PowerOther
}

func descriptionOf(v hypervisors.VM) server.VMDescription {
	return server.VMDescription{
		Title: v.Title, Description: v.Description, Arch: v.Arch, Machine: v.Machine, Firmware: string(v.Firmware),
		SecureBoot: v.SecureBoot, TPM: v.TPM, CPUs: v.CPUs, MemoryBytes: v.MemoryBytes, Agent: v.Agent,
		Disks: each(v.Disks, diskOf), NICs: each(v.NICs, nicOf), Tags: v.Tags, Metadata: v.Metadata, Notes: v.Notes,
	}
}

func diskOf(d hypervisors.Disk) server.Disk {
	return server.Disk{
		ID: d.ID, Kind: string(d.Kind), Bus: d.Bus, Format: string(d.Format), SizeBytes: d.SizeBytes, UsedBytes: d.UsedBytes,
		Datastore: d.Datastore, Path: d.Path, Serial: d.Serial, BootOrder: d.BootOrder, ReadOnly: d.ReadOnly,
		Shareable: d.Shareable, Unprotectable: d.Unprotectable,
	}
}

func nicOf(n hypervisors.NIC) server.NIC {
	return server.NIC{ID: n.ID, MAC: n.MAC, Model: n.Model, Network: n.Network, BootOrder: n.BootOrder}
}

func pointOf(p catalog.RestorePoint) server.RestorePoint {
	out := server.RestorePoint{
		ID: p.ID, VMID: p.VMID, VMName: p.VMName, Series: p.Series, RepositoryID: p.RepositoryID,
		ConnectionID: p.ConnectionID, TaskID: p.TaskID, Kind: p.Kind, Checkpoint: p.Checkpoint, Time: p.Time.UTC(),
		PublishedAt: p.Published.UTC(), Consistency: server.RestorePointConsistency(p.Consistency),
		ConsistencyNote: p.ConsistencyNote, SizeBytes: p.SizeBytes, ReadBytes: p.BytesRead, NewBytes: p.BytesNew,
		StoredBytes: p.BytesStored, Disks: each(p.Disks, pointDiskOf), Warnings: p.Warnings, VerifiedAt: at(p.Verified), Hold: holdOf(p.Hold),
	}
	for _, s := range p.Skipped {
		out.Skipped = append(out.Skipped, server.Unprotectable{Disk: s.ID, Reason: s.Reason})
	}
	if p.VerifyError != nil {
		out.VerifyProblem = p.VerifyError.What
	}
	return out
}

func pointDiskOf(d catalog.PointDisk) server.RestorePointDisk {
	return server.RestorePointDisk{
		ID: d.ID, SizeBytes: d.SizeBytes, Format: string(d.Format), Root: d.Root, Mode: server.RestorePointDiskMode(d.Mode),
		FullReason: d.Reason, ReadBytes: d.BytesRead,
	}
}

func runOf(r RunInfo) server.Run {
	return server.Run{
		ID: r.ID, Kind: server.RunKind(r.Kind), State: server.State(r.State), RequestedBy: r.User, PolicyID: r.PolicyID,
		CreatedAt: r.CreatedAt.UTC(), StartedAt: at(r.StartedAt), EndedAt: at(r.FinishedAt), Error: failureOf(r.Error),
		Tasks: each(r.Tasks, taskOf),
	}
}

func taskOf(t catalog.Task) server.Task {
	out := server.Task{
		ID: t.ID, RunID: t.RunID, Kind: server.RunKind(t.Kind), State: server.State(t.State), Phase: t.Phase,
		ConnectionID: t.ConnectionID, VMID: t.VMID, VMName: t.VMName, RepositoryID: t.RepositoryID,
		RestorePointID: t.RestorePointID, CreatedAt: t.CreatedAt.UTC(), StartedAt: at(t.StartedAt),
		EndedAt: at(t.FinishedAt), CancelRequested: t.CancelRequested, Attempt: t.Attempt,
		Progress: progressOf(t.Progress.Sum()), Warnings: t.Warnings, Error: failureOf(t.Error),
	}
	for _, d := range t.Progress.Disks {
		out.Transfers = append(out.Transfers, server.Transfer{
			Disk: d.Disk, Transport: d.Transport, Mover: d.Mover, Mode: d.Mode, FullReason: d.Reason, Done: d.Done, Progress: progressOf(d),
			ChosenBecause: d.Choice.Reason, Rejected: each(d.Choice.Rejected, rejectedOf),
		})
	}
	if t.Result != nil {
		out.Result = resultOf(*t.Result)
	}
	return out
}

func rejectedOf(r catalog.RejectedWay) server.RejectedWay {
	return server.RejectedWay{Mover: r.Mover, Transport: r.Transport, Reason: r.Reason}
}

func progressOf(d catalog.DiskProgress) server.Progress {
	return server.Progress{
		BytesTotal: d.BytesTotal, BytesScanned: d.BytesScanned, BytesRead: d.BytesRead,
		BytesSkipped: d.BytesSkipped, BytesNew: d.BytesNew, BytesStored: d.BytesStored,
		RateBytesPerSecond: d.Rate, ETASeconds: d.ETASeconds, Bottleneck: d.Bottleneck,
	}
}

func runEventOf(e catalog.Event) server.RunEvent {
	return server.RunEvent{
		ID: strconv.FormatInt(e.Seq, 10), Time: e.Time.UTC(), Level: server.Level(e.Level), RunID: e.RunID, TaskID: e.TaskID,
		Message: e.Message, Meaning: e.Meaning, Advice: e.Advice, Fields: e.Fields,
	}
}

func planOf(p RestorePlan) server.RestorePlan {
	networks := p.Networks
	if networks == nil {
		networks = map[string]string{}
	}
	return server.RestorePlan{
		Mode: string(p.Mode), ConnectionID: p.ConnectionID, VMName: p.VMName, Networks: networks, Warnings: p.Warnings,
		Disks: each(p.Disks, func(d hypervisors.RestoreDisk) server.PlannedDisk {
			return server.PlannedDisk{ID: d.ID, SizeBytes: d.SizeBytes, Datastore: d.Datastore, Format: string(d.Format), Name: d.Name}
		}),
		LeftOut: each(p.LeftOut, func(l LeftOut) server.LeftOutDisk { return server.LeftOutDisk{ID: l.Disk, Reason: l.Reason} }),
	}
}

func tokenOf(t catalog.Token, user string) server.Token {
	scope := server.ScopeAll
	if t.Scope != "" {
		scope = server.TokenScope(t.Scope)
	}
	return server.Token{
		ID: t.ID, Name: t.Name, Scope: scope, User: user, CreatedAt: t.CreatedAt.UTC(), ExpiresAt: at(t.ExpiresAt), LastUsedAt: at(t.LastUsed),
	}
}
