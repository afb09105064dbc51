package kvm

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// Seconds that a guest agent is given. libvirt's own freeze call waits without a limit, so the agent is asked by
// its own commands, which have one.
const (
	pingSeconds   = 5
	freezeSeconds = 30
	thawSeconds   = 10
)

// agent sends one command to the guest agent and decodes its result.
func agent(dom *libvirt.Domain, command string, seconds int, result any) error {
	out, err := dom.QemuAgentCommand(fmt.Sprintf(`{"execute":%q}`, command), libvirt.DomainQemuAgentCommandTimeout(seconds), 0)
	if err != nil {
		return err
	}
	answer := struct{ Return any }{result}
	return json.Unmarshal([]byte(out), &answer)
}

// quiesced is the outcome of asking the guest to hold still.
type quiesced struct {
	frozen bool
	note   string // why not
}

// freezeGuest asks the guest agent to flush and hold the file systems. Once it has been asked to, frozen is true
// even after an error: the answer may just have been lost, so it must be thawed.
func (d *Driver) freezeGuest(ctx context.Context, req hypervisors.FreezeRequest, vm hypervisors.VM) (quiesced, error) {
	if req.Quiesce == hypervisors.QuiesceNever {
		return quiesced{}, nil
	}
	refuse := func(note string) (quiesced, error) {
		if req.Quiesce == hypervisors.QuiesceRequire {
			return quiesced{}, fault.New(fault.Conflict, "quiesce VM", vm.Name, "%s", note).
				Explain("This backup is only wanted with the guest's file systems at rest, and that is not possible now.",
					"Start the QEMU guest agent in the guest, or allow crash-consistent backups of this VM.")
		}
		return quiesced{note: note}, nil
	}
	switch {
	case vm.Power != hypervisors.PowerOn:
		return refuse("the VM is paused, so its guest agent cannot answer")
	case !vm.Agent:
		return refuse("the VM has no guest agent channel")
	}
	var status string
	_, err := onDomain(ctx, d.conn, "ask guest agent of", vm.ID, func(_ *libvirt.Connect, dom *libvirt.Domain) (none, error) {
		if err := agent(dom, "guest-ping", pingSeconds, nil); err != nil {
			return none{}, err
		}
		return none{}, agent(dom, "guest-fsfreeze-status", pingSeconds, &status)
	})
	if ctx.Err() != nil {
		return quiesced{}, err
	}
	if err != nil {
		return refuse("the guest agent does not answer (" + err.Error() + ")")
	}
	if status != "thawed" {
		return refuse("somebody else has frozen the guest's file systems already")
	}
	if err := req.Owe(ctx, hypervisors.Owed{Kind: kindFreeze, VM: vm.ID, Name: marker + req.Tag}); err != nil {
		return quiesced{}, err
	}
	var count int
	_, err = onDomain(ctx, d.conn, "freeze file systems of", vm.ID, func(_ *libvirt.Connect, dom *libvirt.Domain) (none, error) {
		return none{}, agent(dom, "guest-fsfreeze-freeze", freezeSeconds, &count)
	})
	switch {
	case ctx.Err() != nil:
		return quiesced{frozen: true}, err
	case err != nil:
		_ = d.thawGuest(ctx, vm.ID)
		return refuse("the guest could not hold its file systems (" + err.Error() + ")")
	case count == 0:
		_ = d.thawGuest(ctx, vm.ID)
		return refuse("the guest agent found no file system that it could hold")
	}
	return quiesced{frozen: true}, nil
}

// thawGuest lets the guest's file systems go, whatever has become of ctx. It tries for a minute: a guest that stays
// frozen hangs.
func (d *Driver) thawGuest(ctx context.Context, uuid string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var last error
	err := poll(ctx, time.Minute, "the guest's file systems are thawed", func() (bool, error) {
		done, err := onDomain(ctx, d.conn, "thaw file systems of", uuid, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
			return thaw(dom)
		})
		last = err
		if err != nil && fault.KindOf(err) == fault.NotFound {
			return true, nil
		}
		return done, nil
	})
	if err != nil && last != nil {
		return last
	}
	return err
}

// thaw reports true when nothing is frozen: thawed now, thawed before, or the guest does not run.
func thaw(dom *libvirt.Domain) (bool, error) {
	active, err := dom.IsActive()
	if err != nil || !active {
		return err == nil, err
	}
	if err := agent(dom, "guest-fsfreeze-thaw", thawSeconds, nil); err != nil {
		return false, err
	}
	var status string
	if err := agent(dom, "guest-fsfreeze-status", thawSeconds, &status); err != nil {
		return false, err
	}
	return status == "thawed", nil
}
