package httpapi

import (
	"cmp"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/pack"
)

func repositoryOf(r RepositoryInfo) server.Repository {
	out := server.Repository{
		ID: r.ID, Name: r.Name, Path: r.Path, StoreID: r.StoreID, CreatedAt: r.CreatedAt.UTC(),
		Status: server.Status(r.Status), CheckedAt: at(r.LastChecked), Error: failureOf(r.LastError), KeyFile: r.KeyFile,
		Verification: verificationOf(r.Verification), Compression: server.Compression(cmp.Or(r.Compression, string(pack.Standard))),
	}
	if r.Usage != nil {
		out.Usage = server.Usage{
			RestorePoints: r.Usage.RestorePoints, Packs: r.Usage.Packs, LogicalBytes: r.Usage.LogicalBytes,
			StoredBytes: r.Usage.StoredBytes, FreeBytes: r.Usage.FreeBytes,
		}
	}
	if s := r.Set; s != nil {
		out.Redundancy = server.Redundancy{
			Data: s.Layout.Data, Parity: s.Layout.Parity, Groups: s.Groups, CanLose: s.CanLose, Objects: s.Objects,
			ObjectsBelow: s.Below, ObjectsUnreadable: s.Unreadable,
		}
		out.Members = each(s.Members, memberOf)
	}
	return out
}

func memberOf(m MemberInfo) server.Member {
	return server.Member{
		ID: m.ID, Path: m.Place, Domain: m.Domain, Group: m.Group, State: server.MemberState(m.State), Message: m.Reason,
		FreeBytes: max(0, m.FreeBytes), TotalBytes: m.TotalBytes, Lacking: m.Lacking, Errors: m.Errors,
	}
}

func verificationOf(v VerificationInfo) server.Verification {
	return server.Verification{
		EveryDays: v.EveryDays, BytesPerSecond: v.BytesPerSecond, CycleStartedAt: at(v.CycleStarted), DoneBytes: v.DoneBytes,
		TotalBytes: v.TotalBytes, LastCompletedAt: at(v.LastCompleted), DamagedPacks: v.DamagedPacks,
		DamagedRestorePoints: v.DamagedPoints,
	}
}

func damagedPackOf(d store.PackDamage) server.DamagedPack {
	return server.DamagedPack{Pack: d.Pack, Missing: d.Missing, Objects: d.Objects, Lost: d.Lost, Cause: d.Cause}
}

func touchedOf(t TouchedInfo) server.TouchedPoint {
	return server.TouchedPoint{
		RestorePointID: t.RestorePoint, VMID: t.VMID, VMName: t.VMName, Series: t.Series, Time: t.Time.UTC(), Documents: t.Documents,
		Disks: each(t.Images, func(i store.TouchedImage) server.TouchedImage {
			return server.TouchedImage{Disk: i.Name, LostBytes: i.Bytes, Ranges: i.Count}
		}),
	}
}

func bytesOf(s store.Space) server.Space {
	return server.Space{
		LogicalBytes: s.LogicalBytes, UniqueBytes: s.UniqueBytes, SharedBytes: s.SharedBytes, FairShareBytes: s.FairShareBytes,
	}
}

func spaceOf(s SpaceInfo) server.RepositorySpace {
	return server.RepositorySpace{
		StoredBytes: s.StoredBytes, UnreferencedBytes: s.UnreferencedBytes, UnknownObjects: s.Unknown, WouldFreeBytes: s.WouldFree,
		VMs: each(s.Series, func(v store.SeriesSpace) server.VMSpace {
			row := s.VMs[v.Series]
			return server.VMSpace{
				Series: v.Series, VMID: row.VMID, VMName: row.VMName, RestorePoints: v.RestorePoints, Space: bytesOf(v.Space),
			}
		}),
		RestorePoints: each(s.SpaceReport.RestorePoints, func(p store.PointSpace) server.PointSpace {
			row := s.Rows[p.ID]
			return server.PointSpace{
				RestorePointID: p.ID, Series: p.Series, VMName: row.VMName, Time: row.Time.UTC(), Space: bytesOf(p.Space),
			}
		}),
	}
}

func resultOf(r catalog.Result) server.TaskResult {
	out := server.TaskResult{
		RestorePointID: r.RestorePointID, VMPlatformID: r.VMPlatformID, VMName: r.VMName, MoverID: r.MoverID, Started: r.Started,
		BytesRead: r.BytesRead, BytesNew: r.BytesNew, BytesStored: r.BytesStored, BytesVerified: r.BytesVerified,
		BytesFreed: r.BytesFreed,
	}
	if p := r.Pruned; p != nil {
		out.VMsPruned, out.PointsPruned, out.PointsKept, out.PointsLeft, out.BytesPruned, out.BytesLeft = p.VMs, p.Points, p.Kept, p.Left, p.Bytes, p.BytesLeft
	}
	if p := r.Reread; p != nil {
		out.PointsThere, out.PointsFound, out.PointsForgotten, out.PointsLeft = p.Points, p.Added, p.Removed, p.Left
	}
	if c := r.Collected; c != nil {
		out.PacksFreed, out.PacksCompacted, out.BytesCompacted, out.BytesRewritten = c.PacksFreed, c.PacksCompacted, c.BytesCompacted, c.BytesRewritten
		out.BytesLive, out.BytesDead, out.NoRoom, out.PacksLater = c.BytesLive, c.BytesDead, c.NoRoom, c.PacksLater
	}
	if s := r.Swept; s != nil {
		out.PacksVerified, out.PacksDamaged, out.BytesLeft, out.CycleComplete = s.Packs, s.PacksDamaged, s.BytesLeft, s.Complete
		out.PointsProven, out.PointsDamaged = s.PointsProven, s.PointsDamaged
	}
	if h := r.Healed; h != nil {
		out.PacksDamaged, out.PacksQuarantined, out.PacksKept = h.PacksDamaged, h.PacksQuarantined, h.PacksKept
		out.ObjectsMoved, out.ObjectsHealed, out.BytesHealed, out.ObjectsMissing = h.Moved, h.Healed, h.BytesHealed, h.Missing
		out.RecordsRestored, out.PointsDamaged = h.Records, h.PointsDamaged
	}
	if r := r.Repaired; r != nil {
		out.MemberID, out.ObjectsChecked, out.ObjectsDamaged, out.ShardsRepaired = r.Member, r.Objects, r.Damaged, r.Shards
	}
	return out
}
