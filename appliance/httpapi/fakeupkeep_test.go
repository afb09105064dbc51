package httpapi

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/store"
)

// This file is the part of fakeCore about the upkeep and the keys of repositories.

var (
	someKey = KeyInfo{
		Wrapping: store.Wrapping{ID: "key_1", Kind: "key-file", Key: "ab12", Created: someTime, Label: "l", Problem: "p"}, InUse: true,
	}
	someTouched = store.TouchedPoint{
		RestorePoint: "rp_1", Series: "s", Time: someTime, Documents: []string{"domain.xml"},
		Images: []store.TouchedImage{{Name: "vda", Bytes: 65536, Count: 1}},
	}
	someSpace = store.Space{LogicalBytes: 4, UniqueBytes: 1, SharedBytes: 2, FairShareBytes: 3}
)

func (f *fakeCore) StartCollect(_ context.Context, s Start, id string, r CollectRequest) (Started, error) {
	return f.start(s, catalog.KindCollect, r, id == "repo_1")
}

func (f *fakeCore) StartRepositoryVerify(_ context.Context, s Start, id string, r SweepRequest) (Started, error) {
	return f.start(s, catalog.KindVerify, r, id == "repo_1")
}

func (f *fakeCore) StartHeal(_ context.Context, s Start, id string, r HealRequest) (Started, error) {
	return f.start(s, catalog.KindHeal, r, id == "repo_1")
}

func (f *fakeCore) StartScrub(_ context.Context, s Start, id string, bytesPerSecond int64) (Started, error) {
	return f.start(s, catalog.KindScrub, bytesPerSecond, id == "repo_1")
}

func (f *fakeCore) StartRebuild(_ context.Context, s Start, id, member, path string) (Started, error) {
	return f.start(s, catalog.KindRebuild, []string{member, path}, id == "repo_1")
}

func (f *fakeCore) UpdateRepository(_ context.Context, id string, change RepositoryChange) (RepositoryInfo, error) {
	f.note(change)
	return one(f, id, "repo_1", someRepo)
}

func (f *fakeCore) GrowRepository(_ context.Context, id string, members []NewMember, force bool) (RepositoryInfo, error) {
	f.note([]any{members, force})
	return one(f, id, "repo_1", someRepo)
}

func (f *fakeCore) TrustMembers(_ context.Context, who fleet.Who, id string, members []string) (RepositoryInfo, error) {
	f.note([]any{who.User, members})
	return one(f, id, "repo_1", someRepo)
}

func (f *fakeCore) RepositoryDamage(_ context.Context, id string) (DamageInfo, error) {
	return one(f, id, "repo_1", DamageInfo{
		Packs:   []store.PackDamage{{Pack: "packs/ab", Missing: true, Objects: 2, Lost: 1, Cause: "rot"}},
		Touched: []TouchedInfo{{TouchedPoint: someTouched, VMID: "vm_1", VMName: "web"}},
	})
}

func (f *fakeCore) RepositorySpace(_ context.Context, id string, without []string) (SpaceInfo, error) {
	f.note(without)
	free := int64(0)
	return one(f, id, "repo_1", SpaceInfo{
		SpaceReport: store.SpaceReport{
			StoredBytes: 9, UnreferencedBytes: 6, Unknown: 1, Series: []store.SeriesSpace{{Series: "s", RestorePoints: 1, Space: someSpace}},
			RestorePoints: []store.PointSpace{{ID: "rp_1", Series: "s", Space: someSpace}},
		},
		Rows: map[string]catalog.RestorePoint{"rp_1": somePoint}, VMs: map[string]catalog.RestorePoint{"s": somePoint}, WouldFree: &free,
	})
}

func (f *fakeCore) ListKeys(_ context.Context, id string) ([]KeyInfo, error) {
	return one(f, id, "repo_1", []KeyInfo{someKey})
}

func (f *fakeCore) AddKey(_ context.Context, id string, k NewKey) (KeyInfo, catalog.Secret, error) {
	f.note(k)
	key, err := one(f, id, "repo_1", someKey)
	return key, "the page", err
}

func (f *fakeCore) RemoveKey(_ context.Context, id, key string) error {
	_, err := one(f, id+key, "repo_1key_1", 0)
	return err
}

func (f *fakeCore) RotateKey(_ context.Context, id string) (KeyInfo, error) {
	return one(f, id, "repo_1", someKey)
}

func (f *fakeCore) DrillKey(_ context.Context, id string, k GivenKey) (DrillInfo, error) {
	f.note(k)
	return one(f, id, "repo_1", DrillInfo{RepositoryID: id, VMName: "web", InUse: true, DrillReport: store.DrillReport{
		Time: someTime, Repository: "s", Name: "main", PublicKey: "cd", Wrapping: someKey.Wrapping, RestorePoint: "rp_1", Series: "s",
		Published: someTime, Pack: "packs/ab", FrameBytes: 5,
	}})
}
