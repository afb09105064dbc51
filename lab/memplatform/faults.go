package memplatform

import (
	"context"
	"sync/atomic"
)

// The operations in which a fault can be injected, by name. ReadDisk and WriteDisk are requests of movers on the
// exports; the others are methods of the driver and of what it returns.
const (
	OpCheck          = "Check"
	OpVMs            = "VMs"
	OpVM             = "VM"
	OpDatastores     = "Datastores"
	OpNetworks       = "Networks"
	OpWatch          = "Watch"  // before it listens
	OpFreeze         = "Freeze" // before anything is made
	OpRefreeze       = "Refreeze"
	OpFreezeExport   = "Freeze.export" // after checkpoint and job were made, before the exports are
	OpRelease        = "Release"
	OpCheckpoints    = "Checkpoints"
	OpKeepCheckpoint = "KeepCheckpoint"
	OpCheckRestore   = "CheckRestore"
	OpBeginRestore   = "BeginRestore"
	OpBeginVolume    = "BeginRestore.volume" // before each volume
	OpFinish         = "Finish"
	OpAbandon        = "Abandon"
	OpStart          = "Start"
	OpStop           = "Stop"
	OpCleanUp        = "CleanUp"
	OpLeftovers      = "Leftovers"
	OpReadDisk       = "ReadDisk"
	OpWriteDisk      = "WriteDisk"
)

// Fault is something that goes wrong in one operation.
type Fault struct {
	Err   error           // what the operation answers; nil: nothing, it only blocks
	Block <-chan struct{} // the operation waits until this is closed or its context ends
	Skip  int             // how many calls go well first
	Times int             // how many calls go wrong; 0 is all

	calls, fired atomic.Int64
}

// Fired returns how many calls have met the fault.
func (f *Fault) Fired() int { return int(f.fired.Load()) }

// Inject adds a fault to an operation. It stays until Heal.
func (p *Platform) Inject(op string, f *Fault) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[op] = append(p.faults[op], f)
	return f
}

// Heal takes all faults away. Calls that are blocked stay so.
func (p *Platform) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.faults)
}

// meet lets an operation meet its faults. The caller does not hold mu.
func (p *Platform) meet(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	faults := p.faults[op]
	p.mu.Unlock()
	for _, f := range faults {
		n := int(f.calls.Add(1))
		if n <= f.Skip || f.Times > 0 && n > f.Skip+f.Times {
			continue
		}
		f.fired.Add(1)
		if f.Block != nil {
			select {
			case <-f.Block:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if f.Err != nil {
			return f.Err
		}
	}
	return nil
}
