package server

import (
	"testing"

	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestWhatIsAskedForAndIsNotThereIsRefusedAtOnce(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	tests := map[string]struct {
		mover, transport string
		networks         map[string]string
		want             fault.Kind
	}{
		"mover":             {mover: "nobody", want: fault.NotFound},
		"transport":         {transport: "pigeon", want: fault.Invalid},
		"network":           {networks: map[string]string{"memory:oen": "memory:two"}, want: fault.Invalid},
		"network to nobody": {networks: map[string]string{"memory:one": "memory:two", "memory:oen": ""}, want: fault.Invalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httpapi.RestoreRequest{
				RestorePointID: p.ID, Mode: hypervisors.RestoreNew, Name: "copy", Mover: tt.mover, Transport: tt.transport, Networks: tt.networks,
			}
			if _, err := b.PlanRestore(t.Context(), r); fault.KindOf(err) != tt.want {
				t.Errorf("plan: %v, want %v", err, tt.want)
			}
			if _, err := b.StartRestore(t.Context(), httpapi.Start{}, r); fault.KindOf(err) != tt.want {
				t.Errorf("restore: %v, want %v", err, tt.want)
			}
			if tt.networks != nil {
				return
			}
			_, err := b.StartBackup(t.Context(), httpapi.Start{}, httpapi.BackupRequest{
				VMID: b.vmID, RepositoryID: b.repo, Mover: tt.mover, Transport: tt.transport,
			})
			if fault.KindOf(err) != tt.want {
				t.Errorf("backup: %v, want %v", err, tt.want)
			}
		})
	}
	_, err := b.CreatePolicy(t.Context(), fleet.Who{User: "admin"}, httpapi.PolicyChange{
		Name: "birds", Spec: policy.Spec{Filter: "all", Schedule: "22:00", RepositoryID: b.repo, Transport: "pigeon"},
	})
	if fault.KindOf(err) != fault.Invalid {
		t.Errorf("policy: %v, want %v", err, fault.Invalid)
	}
	for _, word := range []string{fleet.Network, string(hypervisors.TransportNBD)} {
		_, err := b.PlanRestore(t.Context(), httpapi.RestoreRequest{
			RestorePointID: p.ID, Mode: hypervisors.RestoreNew, Name: "copy", Mover: "built-in", Transport: word, Networks: map[string]string{"memory:one": ""},
		})
		if err != nil {
			t.Errorf("by the built-in mover and %s: %v", word, err)
		}
	}
	b.clean()
}

func TestPolicyThatCouldNeverBegin(t *testing.T) {
	b := newBench(t)
	noon := httpapi.PolicyChange{Name: "noon", Spec: policy.Spec{
		Filter: "all", Schedule: "12:00", Windows: []string{"22:00-06:00"}, Missed: policy.MissedSkip, RepositoryID: b.repo,
	}}
	who := fleet.Who{User: "admin"}
	if _, err := b.CreatePolicy(t.Context(), who, noon); fault.KindOf(err) != fault.Invalid {
		t.Errorf("got %v, want %v", err, fault.Invalid)
	}
	noon.Paused = true // made for later
	info, err := b.CreatePolicy(t.Context(), who, noon)
	if err != nil {
		t.Fatal(err)
	}
	noon.Paused = false
	if _, err := b.ReplacePolicy(t.Context(), who, info.ID, noon); fault.KindOf(err) != fault.Invalid {
		t.Errorf("resumed: got %v, want %v", err, fault.Invalid)
	}
	noon.Spec.Missed = policy.MissedRun
	if _, err := b.ReplacePolicy(t.Context(), who, info.ID, noon); err != nil {
		t.Errorf("with turns that may be late: %v", err)
	}
}
