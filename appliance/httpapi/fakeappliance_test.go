package httpapi

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
)

// This file is the part of fakeCore about the appliance itself.

func (f *fakeCore) GetAppliance(context.Context) (ApplianceInfo, error) {
	return one(f, "", "", ApplianceInfo{
		Standing: catalog.Standing{
			Appliance: "app_1", Incarnation: 2, RecoveredAt: &someTime, From: "repository main", Held: true, SupersededAt: &someTime, By: "on b",
		},
		Repositories: []catalog.Repository{
			{ID: "repo_1", Name: "main", Saved: &catalog.ConfigurationSave{SavedAt: &someTime, Digest: "d"}},
			{ID: "repo_2", Name: "full", Saved: &catalog.ConfigurationSave{Error: someFailure}}, {ID: "repo_3", Name: "new"},
		},
	})
}

func (f *fakeCore) ResumeAppliance(context.Context, fleet.Who) error {
	_, err := one(f, "", "", 0)
	return err
}

func (f *fakeCore) SupportBundle(context.Context, fleet.Who) (name string, archive []byte, err error) {
	_, err = one(f, "", "", 0)
	return "bundle.zip", []byte("PK"), err
}
