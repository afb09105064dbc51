package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/nocloud"
)

// tokenLife is longer than any deployment takes; its end makes the token worthless sooner.
const tokenLife = time.Hour

// Deploy is the handler of deployment tasks.
func (d *Deployer) Deploy(ctx context.Context, t *jobs.Task) error {
	t.SetPhase(ctx, "checking")
	var spec Spec
	if err := t.ReadSpec(&spec); err != nil {
		return err
	}
	o, err := d.order(ctx, spec, tagOf(t))
	if err != nil {
		return err
	}
	token, secret, err := d.Fleet.IssueToken(ctx, fleet.NewToken{Name: spec.Name, Life: tokenLife, By: spec.User})
	if err != nil {
		return err
	}
	config := o.config
	config.Token = secret
	document, err := config.Document()
	if err != nil {
		return fault.Wrap(fault.Internal, "describe mover", spec.Name, err)
	}
	o.req.Seed = nocloud.Seed(t.ID, spec.Name, document)
	fault.Point("deploy.token")
	mover, vm, err := d.make(ctx, t, o, token)
	ctx = context.WithoutCancel(ctx)
	if err == nil {
		err = d.record(ctx, t, o, mover, vm)
	}
	if err != nil {
		d.giveUp(ctx, t, spec, token)
		return err
	}
	return d.complete(ctx, t, o, mover, vm)
}

// make has the VM made, and waits for the mover in it.
func (d *Deployer) make(ctx context.Context, t *jobs.Task, o *order, token catalog.JoinToken) (fleet.Info, hypervisors.VM, error) {
	image, err := os.Open(o.image)
	if err != nil {
		return fleet.Info{}, hypervisors.VM{}, fault.Context("open mover image", o.image, err)
	}
	defer func() { _ = image.Close() }()
	t.SetPhase(ctx, "uploading")
	o.req.Image = &watched{image, func(n int64) {
		t.SetProgress(ctx, catalog.DiskProgress{Disk: "image", BytesTotal: o.req.ImageBytes, BytesScanned: n, BytesRead: n, Done: n == o.req.ImageBytes})
	}, 0}
	o.req.Owe = t.Journal().Owe(o.conn.ID, t.ID)
	vm, err := o.driver.DeployMover(ctx, o.req)
	if err != nil {
		return fleet.Info{}, vm, fault.Context("make VM of mover", o.spec.Name, err)
	}
	fault.Point("deploy.started")
	t.Event(ctx, fmt.Sprintf("VM %s is started.", vm.Name), "vm", vm.ID)
	for _, note := range vm.Notes {
		t.Event(ctx, note)
	}
	t.SetPhase(ctx, "waiting for the mover")
	m, err := d.await(ctx, o, token, vm)
	return m, vm, err
}

// await waits until the mover that has used the token is connected, from the machine that was made.
func (d *Deployer) await(ctx context.Context, o *order, token catalog.JoinToken, vm hypervisors.VM) (fleet.Info, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.Patience, fmt.Errorf("it was not connected within %v", d.Patience))
	defer cancel()
	for {
		changed := d.Fleet.Changed() // before the look, so that nothing falls between
		used, err := d.Catalog.JoinToken(ctx, token.ID)
		if err == nil && used.MoverID != "" {
			var all []fleet.Info
			if all, err = d.Fleet.List(ctx); err == nil {
				for _, m := range all {
					if m.ID == used.MoverID && m.State == fleet.Online {
						return m, sameMachine(m, vm)
					}
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			return fleet.Info{}, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			cause := context.Cause(ctx)
			if errors.Is(cause, context.Canceled) {
				return fleet.Info{}, fault.Wrap(fault.Canceled, "wait for mover", o.spec.Name, cause)
			}
			return fleet.Info{}, fault.Wrap(fault.Transient, "wait for mover", o.spec.Name, cause).Explain(
				"The mover's VM was started, and the mover in it did not come to the appliance at "+o.config.Manager+".",
				"Look on the VM's console what it says. Check that this address is right and can be reached from the network "+o.req.Network+
					", and that the mover gets an address there (--address where there is no DHCP).")
		}
	}
}

// sameMachine refuses a mover that has the token and runs elsewhere: somebody has read the seed.
func sameMachine(m fleet.Info, vm hypervisors.VM) error {
	if strings.EqualFold(m.Facts.MachineUUID, vm.ID) {
		return nil
	}
	return fault.New(fault.Denied, "wait for mover", m.Name, "a mover has enrolled from machine %q at %s, and %s was made", m.Facts.MachineUUID, m.Source, vm.ID).Explain(
		"Another machine has used the join token that was made for this one.", "Find out who could read the VM's seed on the datastore, then deploy it again.")
}

// giveUp makes the token worthless, and a mover that has it too. The VM is removed with what is owed.
func (d *Deployer) giveUp(ctx context.Context, t *jobs.Task, spec Spec, token catalog.JoinToken) {
	who := fleet.Who{User: spec.User}
	used, err := d.Catalog.SpendJoinToken(ctx, token.ID)
	if err == nil && used.MoverID != "" {
		err = d.forget(ctx, who, used.MoverID)
	}
	if err != nil && fault.KindOf(err) != fault.NotFound {
		t.Warn(ctx, "The mover's token or its certificate could not be made worthless: "+err.Error())
	}
}

// record notes durably that the mover is there: from then on its VM is no longer owed.
func (d *Deployer) record(ctx context.Context, t *jobs.Task, o *order, m fleet.Info, vm hypervisors.VM) error {
	if err := d.Catalog.DeployedMover(ctx, m.ID, o.conn.ID); err != nil {
		return err
	}
	return t.SetResult(ctx, catalog.Result{VMPlatformID: vm.ID, VMName: vm.Name, MoverID: m.ID})
}

// complete tells of it, and strikes off what was owed.
func (d *Deployer) complete(ctx context.Context, t *jobs.Task, o *order, m fleet.Info, vm hypervisors.VM) error {
	fault.Point("deploy.enrolled")
	entry := catalog.AuditEntry{Actor: o.spec.User, Action: "mover.deploy", Subject: m.Name, Detail: fmt.Sprintf("VM %s on connection %s", vm.ID, o.conn.Name)}
	if err := d.Catalog.Audit(ctx, entry); err != nil {
		t.Warn(ctx, "The deployment is not in the audit log: "+err.Error())
	}
	t.Event(ctx, fmt.Sprintf("Mover %s is connected, with the transports %s.", m.Name, strings.Join(m.Facts.Transports, ", ")), "mover", m.Name)
	return t.Journal().Settle(ctx, t.ID)
}

// watched tells how much of a reader has been read.
type watched struct {
	io.Reader
	tell func(n int64)
	n    int64
}

// Read reads.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.n += int64(n)
	w.tell(w.n)
	return n, err
}
