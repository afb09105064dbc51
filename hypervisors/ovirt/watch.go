package ovirt

import (
	"context"
	"strconv"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
)

// eventVMRemoved is the engine's number for a VM that is gone; the event names none any more.
const eventVMRemoved = 113

// Watch looks at what the engine has recorded since the last time. It pushes nothing.
func (d *Driver) Watch(ctx context.Context, tell func(vm string)) error {
	last, err := d.lastEvent(ctx)
	if err == nil {
		tell("")
	}
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(d.pace.events):
		}
		last, err = d.tellSince(ctx, last, tell)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lastEvent is the newest event's number; 0 when there is none.
func (d *Driver) lastEvent(ctx context.Context) (int64, error) {
	newest, err := engine.All[*sdk.Event](ctx, d.conn, engine.Request{Op: "watch VMs", Path: "/events", Query: engine.Query("max", "1")}, "events", sdk.XMLEventReadMany)
	if err != nil || len(newest) == 0 {
		return 0, err
	}
	return eventNumber(newest[0]), nil
}

// eventsAtOnce is how many events one look asks for; when there are more, anything may have changed.
const eventsAtOnce = 200

// tellSince tells of the VMs of events after one, once each, and returns the newest one's number.
func (d *Driver) tellSince(ctx context.Context, last int64, tell func(vm string)) (int64, error) {
	events, err := engine.All[*sdk.Event](ctx, d.conn, engine.Request{
		Op: "watch VMs", Path: "/events", Query: engine.Query("from", strconv.FormatInt(last, 10), "max", strconv.Itoa(eventsAtOnce)),
	}, "events", sdk.XMLEventReadMany)
	if err != nil {
		return last, err
	}
	told, all := map[string]bool{}, len(events) >= eventsAtOnce
	for _, e := range events {
		last = max(last, eventNumber(e))
		id := ""
		if vm, ok := e.Vm(); ok {
			id = val(vm.Id())
		}
		switch {
		case goodID.MatchString(id):
			told[id] = true
		case val(e.Code()) == eventVMRemoved:
			all = true
		}
	}
	if all {
		tell("")
		return last, nil
	}
	for id := range told {
		tell(id)
	}
	return last, nil
}

// eventNumber is an event's place among all; engines call it index and id.
func eventNumber(e *sdk.Event) int64 {
	if n, ok := e.Index(); ok && n > 0 {
		return n
	}
	n, err := strconv.ParseInt(val(e.Id()), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
