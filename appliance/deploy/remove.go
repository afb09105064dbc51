package deploy

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Remove removes a deployed mover: it gets no more transfers, its VM goes with its disks, then the mover is forgotten. One
// that has transfers is a Conflict. It may be repeated after an error.
func (d *Deployer) Remove(ctx context.Context, who fleet.Who, m fleet.Info) error {
	driver, err := d.Drivers(ctx, m.DeployedOn)
	if err != nil {
		return fault.Context("remove mover", m.Name, err)
	}
	if m.RevokedAt == nil {
		// Nothing new may come between the look for transfers and the end of the VM.
		if m, err = d.Fleet.Drain(ctx, who, m.ID, true); err != nil {
			return err
		}
	}
	if m.Transfers > 0 {
		return fault.New(fault.Conflict, "remove mover", m.Name, "it has %d transfers under way", m.Transfers).Explain(
			"Its VM would be switched off under them. It gets no more transfers from now on.", "Wait until they have ended, then remove it again; or resume it.")
	}
	ctx = context.WithoutCancel(ctx)
	if err := driver.RemoveMover(ctx, m.Facts.MachineUUID); err != nil {
		return fault.Context("remove VM of mover", m.Name, err)
	}
	return d.forget(ctx, who, m.ID)
}

// forgetTime is how long the end of a mover's stream may take once it was cut.
const forgetTime = 30 * time.Second

// forget takes a mover's certificates and then the mover itself away, as soon as its stream has ended.
func (d *Deployer) forget(ctx context.Context, who fleet.Who, id string) error {
	ctx, cancel := context.WithTimeout(ctx, forgetTime)
	defer cancel()
	if _, err := d.Fleet.Revoke(ctx, who, id); err != nil {
		return err
	}
	for {
		changed := d.Fleet.Changed() // before the attempt, so that nothing falls between
		err := d.Fleet.Remove(ctx, who, id)
		if err == nil || fault.KindOf(err) != fault.Conflict {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return err
		}
	}
}
