package ovirt

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// judgeTransfer looks at an image transfer that is about to begin.
func judgeTransfer(p sdk.ImageTransferPhase) (outcome, string) {
	switch p {
	case sdk.IMAGETRANSFERPHASE_TRANSFERRING:
		return ready, ""
	case sdk.IMAGETRANSFERPHASE_INITIALIZING, sdk.IMAGETRANSFERPHASE_RESUMING, sdk.IMAGETRANSFERPHASE_UNKNOWN, "":
		return pending, ""
	case sdk.IMAGETRANSFERPHASE_PAUSED_SYSTEM, sdk.IMAGETRANSFERPHASE_PAUSED_USER:
		return pending, "" // it is resumed
	}
	return failed, fmt.Sprintf("its phase is %q", p)
}

// paused says whether a transfer goes on only when it is resumed.
func paused(p sdk.ImageTransferPhase) bool {
	return p == sdk.IMAGETRANSFERPHASE_PAUSED_SYSTEM || p == sdk.IMAGETRANSFERPHASE_PAUSED_USER
}

// over says whether a transfer has ended, in whatever way.
func over(p sdk.ImageTransferPhase) bool {
	switch p {
	case sdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS, sdk.IMAGETRANSFERPHASE_FINISHED_FAILURE, sdk.IMAGETRANSFERPHASE_FINISHED_CLEANUP:
		return true
	}
	return false
}

// ending says whether a transfer ends by itself now.
func ending(p sdk.ImageTransferPhase) bool {
	switch p {
	case sdk.IMAGETRANSFERPHASE_FINALIZING_SUCCESS, sdk.IMAGETRANSFERPHASE_FINALIZING_FAILURE, sdk.IMAGETRANSFERPHASE_FINALIZING_CLEANUP,
		sdk.IMAGETRANSFERPHASE_CANCELLED, sdk.IMAGETRANSFERPHASE_CANCELLED_SYSTEM, sdk.IMAGETRANSFERPHASE_CANCELLED_USER:
		return true
	}
	return false
}

func transferPath(id string) string { return "/imagetransfers/" + id }

func (d *Driver) transfer(ctx context.Context, id string) (*sdk.ImageTransfer, error) {
	return engine.One(ctx, d.conn, engine.Request{Op: "look at image transfer", Subject: id, Path: transferPath(id)}, "image_transfer", sdk.XMLImageTransferReadOne)
}

// openTransfer begins an image transfer that is owed already and waits until it can be read or written.
func (d *Driver) openTransfer(ctx context.Context, tag string, spec transferSpec) (*sdk.ImageTransfer, error) {
	const op = "open image transfer of disk"
	doc, err := transferDocument(spec, idleOf(tag))
	if err != nil {
		return nil, err
	}
	var id string
	// A disk may be locked for a moment after what came before.
	err = d.pace.unlessBusy(ctx, op, func() error {
		id, err = makeFor(ctx, d, tag, op, spec.disk, func(ctx context.Context) (string, error) { return d.beginTransfer(ctx, tag, spec, doc) })
		return err
	})
	if err != nil {
		return nil, err
	}
	var t *sdk.ImageTransfer
	resumed := 0
	err = d.pace.poll(ctx, d.pace.transfer, "disk "+spec.disk+" can be transferred", func() (bool, error) {
		if t, err = d.transfer(ctx, id); err != nil && !engine.Gone(err) {
			return false, err
		}
		state, why := failed, "it is gone"
		if err == nil {
			state, why = judgeTransfer(val(t.Phase()))
		}
		if state == pending && paused(val(t.Phase())) {
			if resumed++; resumed > 3 {
				state, why = failed, "the engine pauses it again and again"
			} else if err := d.conn.Act(ctx, "resume image transfer of disk", spec.disk, transferPath(id)+"/resume", nil); err != nil && fault.KindOf(err) != fault.Conflict {
				return false, err
			}
		}
		if state == failed {
			return false, fault.New(fault.Transient, op, spec.disk, "%s", why).Explain(
				"The engine found no host to serve the disk, or lost it.",
				"Check that a host of the data center is up, that ovirt-imageio runs on it, and the engine's events.")
		}
		return state == ready, nil
	})
	return t, err
}

// beginTransfer makes the call, and finds its transfer when the reply was lost.
func (d *Driver) beginTransfer(ctx context.Context, tag string, spec transferSpec, doc []byte) (string, error) {
	out, err := d.conn.Post(ctx, "open image transfer of disk", spec.disk, "/imagetransfers", doc, "")
	if err != nil {
		if fault.KindOf(err) == fault.Transient {
			if ours, e := d.ourTransfers(ctx, tag, spec.disk); e == nil && len(ours) > 0 {
				return val(ours[0].Id()), nil
			}
		}
		return "", err
	}
	t, err := apixml.DecodeOne(out, "image_transfer", sdk.XMLImageTransferReadOne)
	if err != nil {
		return "", err
	}
	return val(t.Id()), checkID("image transfer", val(t.Id()))
}

func (d *Driver) transfers(ctx context.Context) ([]*sdk.ImageTransfer, error) {
	return engine.All[*sdk.ImageTransfer](ctx, d.conn, engine.Request{Op: "list image transfers", Path: "/imagetransfers"}, "image_transfers", sdk.XMLImageTransferReadMany)
}

// diskOf is the disk of a transfer; engines before 4.3 call it image.
func diskOf(t *sdk.ImageTransfer) string {
	if id := idOf(t.Disk()); id != "" {
		return id
	}
	return idOf(t.Image())
}

// ourTransfers are those of a disk that were opened for a tag and are not over.
func (d *Driver) ourTransfers(ctx context.Context, tag, disk string) (out []*sdk.ImageTransfer, err error) {
	all, err := d.transfers(ctx)
	for _, t := range all {
		if diskOf(t) == disk && val(t.InactivityTimeout()) == idleOf(tag) && !over(val(t.Phase())) {
			out = append(out, t)
		}
	}
	return out, err
}

// endTransfers ends what a tag has open of a disk.
func (d *Driver) endTransfers(ctx context.Context, tag, disk, verb string) error {
	ours, err := d.ourTransfers(ctx, tag, disk)
	if err != nil {
		return err
	}
	for _, t := range ours {
		if _, err := d.endTransfer(ctx, val(t.Id()), disk, verb); err != nil {
			return err
		}
	}
	return nil
}

// The verbs that end a transfer.
const (
	verbFinalize = "finalize"
	verbCancel   = "cancel"
)

// endTransfer finalizes or cancels a transfer and waits until it is over. It returns the last phase, "" where the engine
// has forgotten the transfer already.
func (d *Driver) endTransfer(ctx context.Context, id, disk, verb string) (last sdk.ImageTransferPhase, err error) {
	err = d.pace.poll(ctx, d.pace.transfer, "the image transfer of disk "+disk+" is over", func() (bool, error) {
		t, err := d.transfer(ctx, id)
		if engine.Gone(err) {
			last = ""
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if last = val(t.Phase()); over(last) {
			return true, nil
		}
		if ending(last) || last == sdk.IMAGETRANSFERPHASE_INITIALIZING || last == sdk.IMAGETRANSFERPHASE_RESUMING {
			return false, nil
		}
		err = d.conn.Act(ctx, verb+" image transfer of disk", disk, transferPath(id)+"/"+verb, nil)
		if err != nil && fault.KindOf(err) != fault.Conflict && !engine.Gone(err) { // it may end by itself between the two calls
			return false, err
		}
		return false, nil
	})
	return last, err
}

// offer describes an open transfer for a mover.
func (d *Driver) offer(t *sdk.ImageTransfer, ca string, e hypervisors.Export, idle int64) (hypervisors.Export, error) {
	direct, proxy := val(t.TransferUrl()), val(t.ProxyUrl())
	if d.cfg.Options[OptTransferVia] == viaEngine || direct == "" {
		direct, proxy = proxy, ""
	}
	first, err := ticketURL(direct)
	if err == nil && proxy != "" {
		_, err = ticketURL(proxy)
	}
	if err != nil {
		return e, fault.New(fault.Transient, "open image transfer of disk", e.Name, "%w", err).
			Explain("The engine does not say where the disk is served.", "Look at the engine's version, and whether the image proxy is configured.")
	}
	port := first.Port()
	if port == "" {
		port = "443"
	}
	e.Transport, e.Network, e.Address = hypervisors.TransportImageio, "tcp", net.JoinHostPort(d.reach(first.Hostname()), port)
	e.Imageio = &hypervisors.Imageio{
		TransferURL: hypervisors.TicketURL(direct), ProxyURL: hypervisors.TicketURL(proxy), CA: ca, Addresses: d.addresses, InactivitySeconds: int(idle),
		Checksum: d.cfg.Options[OptChecksums] == checksumsOn && !e.Writable,
	}
	return e, nil
}

func (d *Driver) reach(host string) string {
	if to := d.addresses[strings.ToLower(host)]; to != "" {
		if h, _, err := net.SplitHostPort(to); err == nil {
			return h
		}
		return to
	}
	return host
}

// ticketURL doubts what the engine says of where to go. It never quotes the URL: its end is a key.
func ticketURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || !strings.HasPrefix(u.Path, "/images/") || u.User != nil {
		return nil, fmt.Errorf("the address of the transfer is none of imageio's")
	}
	return u, nil
}
