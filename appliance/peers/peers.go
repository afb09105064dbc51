package peers

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The times unless others are set.
const (
	DefaultBeat  = 2 * time.Second
	DefaultLease = 30 * time.Second
	// refuseAfter is how long a repository that cannot be opened is tried before another manager is given it.
	refuseAfter = 20 * time.Second
)

// Queue is what runs the tasks. *jobs.Queue is one.
type Queue interface {
	Lead(bool)
	TakeOver(ctx context.Context, repositoryID string) error
	GiveUp(repositoryID string)
	CancelHere(taskID string)
}

// Options of Start.
type Options struct {
	Catalog *catalog.Catalog // which has joined
	Queue   Queue
	Log     *slog.Logger
	Beat    time.Duration // 0 is DefaultBeat
	Lease   time.Duration // 0 is DefaultLease

	// Open opens a repository and makes the catalog agree with it; it may be called again. Conflict says that another process
	// still has it.
	Open func(ctx context.Context, repositoryID string) error
	// Close closes a repository that is another manager's now.
	Close func(ctx context.Context, repositoryID string) error
	// Lost is called once, when this manager has lost the database or was taken for dead. It returns soon.
	Lost func(error)
}

// Peers is this manager's place among the others.
type Peers struct {
	o    Options
	quit context.CancelFunc
	done sync.WaitGroup
	lost sync.Once

	mu    sync.Mutex
	owned map[string]*repository // by id; "" stands for tasks on none, if this manager leads
}

// repository is one that this manager owns.
type repository struct {
	ready  bool
	taking bool      // somebody takes it over now
	made   bool      // since ask
	tried  time.Time // when that began to fail
}

// Start begins; Stop ends it.
func Start(o Options) *Peers {
	if o.Beat == 0 {
		o.Beat = DefaultBeat
	}
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	ctx, quit := context.WithCancel(context.Background())
	p := &Peers{o: o, quit: quit, owned: map[string]*repository{}}
	p.done.Go(func() { p.beat(ctx) })
	p.done.Go(func() { p.share(ctx) })
	return p
}

// Stop ends the signs of life and waits until nothing is being taken over. The others notice after the lease, or at once when
// the catalog was told with Leave.
func (p *Peers) Stop() {
	p.quit()
	p.done.Wait()
}

// Owns reports whether a repository is this manager's to work with.
func (p *Peers) Owns(repositoryID string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.owned[repositoryID] != nil
}

// Made notes a repository that this manager has just made or attached, and may work with already.
func (p *Peers) Made(ctx context.Context, repositoryID string) error {
	p.mu.Lock()
	p.owned[repositoryID] = &repository{taking: true, made: true}
	p.mu.Unlock()
	err := p.o.Queue.TakeOver(ctx, repositoryID)
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.owned[repositoryID]; r != nil {
		r.taking, r.ready = false, err == nil
	}
	return err
}

// beat shows that this manager is alive, until it is not believed any more or cannot be seen for too long.
func (p *Peers) beat(ctx context.Context) {
	tick := time.NewTicker(p.o.Beat)
	defer tick.Stop()
	patience := p.o.Lease * 2 / 3
	for seen := time.Now(); ; {
		began := time.Now() // what counts is when it was surely not yet seen
		beat, cancel := context.WithDeadline(ctx, seen.Add(patience))
		err := p.o.Catalog.Beat(beat)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			seen = began
		case errors.Is(err, catalog.ErrBuried):
			p.giveUp(err)
			return
		case time.Since(seen) >= patience:
			p.giveUp(fault.Wrap(fault.Transient, "show that this manager is alive", "", err).Explain(
				"The database cannot be reached for so long that other managers may have taken over what this one was at. It ends.",
				"Look at the link to the PostgreSQL server. cairnd can be started again as soon as it is there."))
			return
		default:
			p.o.Log.WarnContext(ctx, "database was not reached; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *Peers) giveUp(err error) {
	p.lost.Do(func() {
		p.quit()
		p.o.Lost(err)
	})
}

// share asks what falls to this manager, and sees to it.
func (p *Peers) share(ctx context.Context) {
	tick := time.NewTicker(p.o.Beat)
	defer tick.Stop()
	for {
		p.ask()
		if d, err := p.o.Catalog.Share(ctx, p.o.Lease); err == nil {
			p.apply(ctx, d)
		} else if ctx.Err() == nil {
			p.o.Log.WarnContext(ctx, "work was not shared; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ask is called before it is asked what falls to this manager: what it makes from now on may not be in the answer.
func (p *Peers) ask() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.owned {
		r.made = false
	}
}

func (p *Peers) apply(ctx context.Context, d catalog.Duties) {
	for _, m := range d.Buried {
		p.o.Log.WarnContext(ctx, "a manager was not seen for too long and is taken for dead", "manager", m.Name, "id", m.ID)
	}
	for _, id := range d.Cancelled {
		p.o.Queue.CancelHere(id)
	}
	p.o.Queue.Lead(d.Leads)
	owned := slices.Clone(d.Repositories)
	if d.Leads {
		owned = append(owned, "")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, r := range p.owned {
		if !slices.Contains(owned, id) && !r.made {
			p.hand(ctx, id)
		}
	}
	for _, id := range owned {
		r := p.owned[id]
		if r == nil {
			r = &repository{}
			p.owned[id] = r
		}
		again := slices.Contains(d.Orphans, id) || id == "" && d.Unsettled
		if r.taking || r.ready && !again {
			continue
		}
		r.taking = true
		p.done.Go(func() { p.take(ctx, id, r) })
	}
}

// hand closes a repository that is not this manager's any more. p.mu is held.
func (p *Peers) hand(ctx context.Context, id string) {
	delete(p.owned, id)
	p.o.Queue.GiveUp(id)
	if id == "" {
		return
	}
	p.done.Go(func() {
		if err := p.o.Close(context.WithoutCancel(ctx), id); err != nil {
			p.o.Log.WarnContext(ctx, "repository was not closed", "repository", id, "err", err)
		}
	})
}

// take takes a repository over: it is opened first, because what becomes of the tasks on it depends on what is in it.
func (p *Peers) take(ctx context.Context, id string, r *repository) {
	var err error
	if id != "" {
		err = p.open(ctx, id, r)
	}
	if err == nil {
		err = p.o.Queue.TakeOver(ctx, id)
	}
	if err != nil && ctx.Err() == nil {
		p.o.Log.WarnContext(ctx, "repository was not taken over; trying again", "repository", id, "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r.taking, r.ready = false, err == nil
}

// open opens a repository. One that cannot be opened here is given to another manager after a while, and its tasks are told
// so: they fail when they are begun, rather than waiting for ever. Only while another process has it nothing of it is touched.
func (p *Peers) open(ctx context.Context, id string, r *repository) error {
	err := p.o.Open(ctx, id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		r.tried = time.Time{}
		return nil
	}
	if r.tried.IsZero() {
		r.tried = time.Now()
	}
	if time.Since(r.tried) < refuseAfter {
		return err
	}
	r.tried = time.Time{}
	if refuseErr := p.o.Catalog.Refuse(ctx, id); refuseErr != nil {
		return errors.Join(err, refuseErr)
	}
	owner, ownerErr := p.o.Catalog.OwnerOf(ctx, id)
	if ownerErr != nil || owner.ID != p.o.Catalog.ManagerID() || fault.KindOf(err) == fault.Conflict {
		return errors.Join(err, ownerErr)
	}
	p.o.Log.WarnContext(ctx, "repository cannot be opened by any manager", "repository", id, "err", err)
	return nil
}
