package ovirt

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// book records what was owed.
type book struct {
	mu    sync.Mutex
	items []hypervisors.Owed
}

func (b *book) owe(_ context.Context, o hypervisors.Owed) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.items = append(b.items, o)
	return nil
}

// sim is an engine with a driver and what was owed.
type sim struct {
	*testing.T
	e    *ovirtsim.Engine
	d    *Driver
	book book
}

func newSim(t *testing.T, agent bool, change ...func(*ovirtsim.Config)) *sim {
	t.Helper()
	cfg := ovirtsim.Config{Site: testSite(agent)}
	for _, f := range change {
		f(&cfg)
	}
	e := startEngine(t, cfg)
	d := openDriver(t, e)
	d.conn.Retries = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}
	return &sim{T: t, e: e, d: d}
}

func (s *sim) request(tag string) hypervisors.FreezeRequest {
	return hypervisors.FreezeRequest{VM: webID, Tag: tag, Owe: s.book.owe}
}

func (s *sim) freeze(req hypervisors.FreezeRequest) hypervisors.Frozen {
	s.Helper()
	f, err := s.d.Freeze(s.Context(), req)
	if err != nil {
		meaning, advice := fault.Explanation(err)
		s.Fatalf("freeze %s: %v (%v; %s %s)", req.Tag, err, fault.KindOf(err), meaning, advice)
	}
	return f
}

func (s *sim) release(f hypervisors.Frozen) {
	s.Helper()
	if err := f.Release(context.WithoutCancel(s.Context())); err != nil {
		s.Errorf("release: %v", err)
	}
}

// clean looks that nothing is left on the engine.
func (s *sim) clean(when string) {
	s.Helper()
	left, err := s.d.Leftovers(context.WithoutCancel(s.Context()))
	if err != nil || len(left) > 0 {
		s.Errorf("%s there is left: %+v, %v", when, left, err)
	}
}

// struck looks that a fault has happened.
func (s *sim) struck(f *ovirtsim.Injected, what ovirtsim.Behaviour) {
	s.Helper()
	if f.Fired() == 0 {
		s.Errorf("%s did not happen: the test proves nothing", what)
	}
}

// read compares what is offered with the disks.
func (s *sim) same(f hypervisors.Frozen, want map[string][]byte) {
	s.Helper()
	for _, disk := range f.Info().Disks {
		if got := readAll(s.T, disk.Export); !slices.Equal(got, want[disk.Disk.ID]) {
			s.Errorf("disk %s reads otherwise than it was", disk.Disk.ID)
		}
	}
}

func (s *sim) contents() map[string][]byte {
	s.Helper()
	vm, err := s.d.VM(s.Context(), webID)
	if err != nil {
		s.Fatal(err)
	}
	out := map[string][]byte{}
	for _, disk := range vm.Disks {
		out[disk.ID] = contentOf(s.T, s.e, disk.ID)
	}
	return out
}

// TestFaultsBeforeFreezing injects what keeps a freeze from being made: an error of a kind and with words, and nothing left.
func TestFaultsBeforeFreezing(t *testing.T) {
	for _, tt := range []struct {
		b     ovirtsim.Behaviour
		on    string
		track bool
		want  fault.Kind
	}{
		{ovirtsim.SnapshotFails, "web", false, fault.Transient},
		{ovirtsim.BackupFails, "web", true, fault.Transient},
		{ovirtsim.TransferCancelled, "", false, fault.Transient},
		{ovirtsim.TransferCancelled, "", true, fault.Transient},
		{ovirtsim.InternalError, "POST /vms/*/snapshots", false, fault.Transient},
		{ovirtsim.InternalError, "POST /vms/*/backups", true, fault.Transient},
		{ovirtsim.Unavailable, "POST /imagetransfers", false, fault.Transient},
		{ovirtsim.EngineRestarts, "POST /vms/*/snapshots", false, fault.Transient},
	} {
		t.Run(string(tt.b)+" "+tt.on, func(t *testing.T) {
			t.Parallel()
			s := newSim(t, false)
			f := s.e.Inject(tt.b, ovirtsim.Fault{On: tt.on})
			req := s.request("doomed")
			req.Track = tt.track
			_, err := s.d.Freeze(t.Context(), req)
			meaning, advice := fault.Explanation(err)
			if err == nil || fault.KindOf(err) != tt.want || meaning == "" || advice == "" {
				t.Errorf("%v (%v; %q %q), want %v with words", err, fault.KindOf(err), meaning, advice, tt.want)
			}
			s.struck(f, tt.b)
			s.e.Heal()
			s.clean("after the failure")
			want := s.contents()
			g := s.freeze(s.request("next"))
			s.same(g, want)
			s.release(g)
			s.clean("after the next backup")
		})
	}
}

// TestFaultsSurvived injects what a freeze copes with.
func TestFaultsSurvived(t *testing.T) {
	for _, tt := range []struct {
		b     ovirtsim.Behaviour
		fault ovirtsim.Fault
		track bool
	}{
		{ovirtsim.ReplyLost, ovirtsim.Fault{On: "POST /vms/*/snapshots", Times: 1}, false},
		{ovirtsim.ReplyLost, ovirtsim.Fault{On: "POST /vms/*/backups", Times: 1}, true},
		{ovirtsim.ReplyLost, ovirtsim.Fault{On: "POST /imagetransfers", Times: 2}, false},
		{ovirtsim.ReplyLost, ovirtsim.Fault{On: "POST /imagetransfers", Times: 2}, true},
		{ovirtsim.ReplyLost, ovirtsim.Fault{On: "DELETE /vms/*/snapshots/*", Times: 1}, false},
		{ovirtsim.SessionExpires, ovirtsim.Fault{On: "POST /vms/*/snapshots", Times: 1}, false},
		{ovirtsim.SessionExpires, ovirtsim.Fault{On: "POST /imagetransfers", Times: 1}, true},
		{ovirtsim.Unavailable, ovirtsim.Fault{On: "GET /imagetransfers/*", Times: 3}, false},
		{ovirtsim.TransferPaused, ovirtsim.Fault{Times: 1}, false},
		{ovirtsim.TransferEnds, ovirtsim.Fault{}, false},
		{ovirtsim.TransferEnds, ovirtsim.Fault{}, true},
		{ovirtsim.TransferPurged, ovirtsim.Fault{}, false},
		{ovirtsim.BackupPurged, ovirtsim.Fault{}, true},
		{ovirtsim.JobsPurged, ovirtsim.Fault{}, false},
		{ovirtsim.SnapshotRemoveBusy, ovirtsim.Fault{Times: 2}, false},
	} {
		t.Run(string(tt.b)+" "+tt.fault.On, func(t *testing.T) {
			t.Parallel()
			s := newSim(t, false)
			f := s.e.Inject(tt.b, tt.fault)
			want := s.contents()
			req := s.request("survivor")
			req.Track = tt.track
			g := s.freeze(req)
			s.same(g, want)
			s.release(g)
			s.struck(f, tt.b)
			s.e.Heal()
			if err := s.d.KeepCheckpoint(t.Context(), webID, ""); err != nil {
				t.Error(err)
			}
			s.clean("after the backup")
		})
	}
}

// TestSnapshotRemovalFails looks that a snapshot which is ok again does not count as removed, and is tried again.
func TestSnapshotRemovalFails(t *testing.T) {
	s := newSim(t, false)
	f := s.freeze(s.request("sticky"))
	fails := s.e.Inject(ovirtsim.SnapshotRemoveFails, ovirtsim.Fault{On: "web", Times: 1})
	err := f.Release(t.Context())
	meaning, advice := fault.Explanation(err)
	if err == nil || fault.KindOf(err) != fault.Transient || !strings.Contains(meaning, "merge") || advice == "" {
		t.Errorf("a removal that failed: %v (%s %s), want Transient", err, meaning, advice)
	}
	s.struck(fails, ovirtsim.SnapshotRemoveFails)
	if left, err := s.d.Leftovers(t.Context()); err != nil || len(left) != 1 || left[0].Kind != kindSnapshot {
		t.Errorf("leftovers %+v, %v; want the snapshot", left, err)
	}
	s.release(f)
	s.clean("after the second release")
}

// TestCanceledWhileTheEngineWorks cancels a freeze whose snapshot the engine does not finish, and lets it finish later.
func TestCanceledWhileTheEngineWorks(t *testing.T) {
	s := newSim(t, false)
	hangs := s.e.Inject(ovirtsim.SnapshotHangs, ovirtsim.Fault{On: "web"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.d.Freeze(ctx, s.request("late"))
		done <- err
	}()
	for hangs.Fired() == 0 {
		select {
		case err := <-done:
			t.Fatalf("the freeze has ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	s.e.Heal()
	if err := <-done; fault.KindOf(err) != fault.Canceled {
		t.Errorf("a canceled freeze: %v", err)
	}
	for _, o := range slices.Backward(s.book.items) {
		if err := s.d.CleanUp(context.WithoutCancel(ctx), o); err != nil {
			t.Errorf("clean up %s: %v", o.Name, err)
		}
	}
	s.clean("after the clean-up")
}

func TestQuiescing(t *testing.T) {
	for _, track := range []bool{false, true} {
		s := newSim(t, true)
		fails := s.e.Inject(ovirtsim.FreezeFails, ovirtsim.Fault{On: "web"})
		req := s.request("try")
		req.Track = track
		f := s.freeze(req)
		if i := f.Info(); i.Consistency != hypervisors.CrashConsistent || i.ConsistencyNote == "" {
			t.Errorf("track %v: %q, %q; want crash consistent and why", track, i.Consistency, i.ConsistencyNote)
		}
		s.release(f)
		s.struck(fails, ovirtsim.FreezeFails)
		req = s.request("require")
		req.Track, req.Quiesce = track, hypervisors.QuiesceRequire
		if f, err := s.d.Freeze(t.Context(), req); err == nil || fault.KindOf(err) == fault.Internal {
			t.Errorf("track %v: %v, %v; want a refusal", track, f, err)
		}
		if err := s.d.KeepCheckpoint(t.Context(), webID, ""); err != nil {
			t.Error(err)
		}
		s.clean("after the refusal")
	}
}

func TestNoAgent(t *testing.T) {
	s := newSim(t, false)
	for _, vm := range []string{webID, archiveID} {
		req := s.request("without")
		req.VM = vm
		f := s.freeze(req)
		if i := f.Info(); i.Consistency != hypervisors.CrashConsistent || i.ConsistencyNote == "" {
			t.Errorf("%s: %q, %q; want crash consistent and why", i.VM.Name, i.Consistency, i.ConsistencyNote)
		}
		s.release(f)
	}
	req := s.request("require")
	req.Quiesce = hypervisors.QuiesceRequire
	if f, err := s.d.Freeze(t.Context(), req); fault.KindOf(err) != fault.Conflict {
		t.Errorf("%v, %v; want a Conflict", f, err)
	}
	s.clean("after the refusal")
}

// TestOldestCheckpointOnly works with an engine that removes checkpoints only from the oldest on.
func TestOldestCheckpointOnly(t *testing.T) {
	s := newSim(t, false, func(c *ovirtsim.Config) { c.Version = "4.4.10" })
	vm, err := s.d.VM(t.Context(), webID)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"one", "two", "three"} {
		if _, err := s.d.startBackup(t.Context(), backupSpec{vm: webID, name: "web", tag: tag, disks: idsOf(vm.Disks)}); err != nil {
			t.Fatal(err)
		}
		if err := s.d.endBackup(t.Context(), webID, marker+tag); err != nil {
			t.Fatal(err)
		}
	}
	names := func() (out []string) {
		all, err := s.d.Checkpoints(t.Context(), webID)
		if err != nil {
			t.Error(err)
		}
		for _, c := range all {
			out = append(out, c.Name)
		}
		return out
	}
	want := []string{"cairn-two", "cairn-three"}
	if err := s.d.KeepCheckpoint(t.Context(), webID, want[0]); err != nil || !slices.Equal(names(), want) {
		t.Errorf("keeping %s: %v, checkpoints %q, want %q", want[0], err, names(), want)
	}
	if err := s.d.CleanUp(t.Context(), hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: webID, Name: "cairn-three"}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("clean-up of a checkpoint that cannot be removed yet: %v, want a Conflict, so that it stays owed", err)
	}
	if err := s.d.KeepCheckpoint(t.Context(), webID, ""); err != nil || len(names()) > 0 {
		t.Errorf("removing all: %v, %q are left", err, names())
	}
	s.clean("at the end")
}

// tracked freezes with a checkpoint and returns its name.
func (s *sim) tracked(tag, since string) (hypervisors.Frozen, string) {
	s.Helper()
	req := s.request(tag)
	req.Track, req.Since = true, since
	f := s.freeze(req)
	if f.Info().Checkpoint == "" {
		s.Fatalf("%s made no checkpoint", tag)
	}
	return f, f.Info().Checkpoint
}

// TestFullInsteadOfIncremental looks that a disk that the engine gives as a whole is known as such, and read as a whole.
func TestFullInsteadOfIncremental(t *testing.T) {
	for _, b := range []ovirtsim.Behaviour{ovirtsim.CheckpointLost, ovirtsim.CheckpointInvalid} {
		t.Run(string(b), func(t *testing.T) {
			s := newSim(t, false)
			f, first := s.tracked("one", "")
			disks := f.Info().Disks
			s.release(f)
			if err := s.e.Write(t.Context(), webID, 2); err != nil {
				t.Fatal(err)
			}
			on := "web"
			if b == ovirtsim.CheckpointLost {
				on = disks[0].Disk.ID
			}
			lost := s.e.Inject(b, ovirtsim.Fault{On: on})
			want := s.contents()
			f, _ = s.tracked("two", first)
			s.struck(lost, b)
			for i, d := range f.Info().Disks {
				full := b == ovirtsim.CheckpointInvalid || i == 0
				if (d.FullReason != "") != full || (d.Export.DirtyContext == "") != full {
					t.Errorf("disk %d: reason %q, changes by %q; full is %v", i, d.FullReason, d.Export.DirtyContext, full)
				}
			}
			s.same(f, want)
			s.release(f)
			if err := s.d.KeepCheckpoint(t.Context(), webID, ""); err != nil {
				t.Error(err)
			}
			s.clean("at the end")
		})
	}
}

// TestOldEngines backs up by snapshots, and says why it is no incremental.
func TestOldEngines(t *testing.T) {
	for _, version := range []string{"4.3.10", "4.4.5", "4.4.10"} {
		s := newSim(t, false, func(c *ovirtsim.Config) { c.Version = version })
		want := s.contents()
		req := s.request("old")
		req.Track, req.Since = true, "cairn-before"
		f := s.freeze(req)
		for _, d := range f.Info().Disks {
			if !strings.Contains(d.FullReason, "older than 4.5") || d.Export.DirtyContext != "" {
				t.Errorf("%s: reason %q, changes by %q", version, d.FullReason, d.Export.DirtyContext)
			}
		}
		if f.Info().Checkpoint != "" {
			t.Errorf("%s: checkpoint %q", version, f.Info().Checkpoint)
		}
		s.same(f, want)
		s.release(f)
		s.clean("after a backup of " + version)
		h, err := s.d.Check(t.Context())
		if err != nil || !slices.ContainsFunc(h.Problems, func(p string) bool { return strings.Contains(p, "Incremental backups need 4.5") }) {
			t.Errorf("%s: %v, problems %q", version, err, h.Problems)
		}
	}
}

// TestNothingOfOthersIsTouched puts things of other people beside ours and looks that they are there at the end.
func TestNothingOfOthersIsTouched(t *testing.T) {
	s := newSim(t, false)
	make := func(description string) string {
		t.Helper()
		doc, err := snapshotDocument(description, nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.d.conn.Post(t.Context(), "make snapshot", "web", "/vms/"+webID+"/snapshots", doc, "")
		if err != nil {
			t.Fatal(err)
		}
		_ = out
		if _, err := s.d.settledSnapshot(t.Context(), webID, description); err != nil {
			t.Fatal(err)
		}
		return description
	}
	theirs := []string{make("before the update"), make("mycairn-x"), make("Cairn-y")}
	f := s.freeze(s.request("mine"))
	for _, name := range theirs {
		err := s.d.CleanUp(t.Context(), hypervisors.Owed{Kind: kindSnapshot, VM: webID, Name: name})
		if fault.KindOf(err) != fault.Invalid {
			t.Errorf("clean-up of %q: %v, want a refusal", name, err)
		}
	}
	for _, bad := range []hypervisors.Owed{
		{Kind: kindSnapshot, VM: "../x", Name: "cairn-t"}, {Kind: "unheard", VM: webID, Name: "cairn-t"}, {Kind: kindSnapshot, VM: webID, Name: "cairn-"},
		{Kind: kindSnapshot, VM: webID, Name: "cairn-a b"}, {Kind: hypervisors.OwedCheckpoint, VM: webID, Name: "another-tool"},
	} {
		if err := s.d.CleanUp(t.Context(), bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("clean-up of %+v: %v, want a refusal", bad, err)
		}
	}
	s.release(f)
	for _, name := range theirs {
		if found, err := s.d.findSnapshot(t.Context(), webID, name); err != nil || found == nil {
			t.Errorf("the snapshot %q is gone: %v", name, err)
		}
	}
	s.clean("at the end")
}

// TestKeeper looks that transfers are kept alive while nobody reads, and are not after Close.
func TestKeeper(t *testing.T) {
	s := newSim(t, false)
	k := newKeeper(s.d)
	k.every = time.Millisecond
	f := s.freeze(s.request("kept")).(*frozen)
	extended := s.e.Inject(ovirtsim.Unavailable, ovirtsim.Fault{On: "POST /imagetransfers/*/extend"})
	for _, id := range f.keeper.all() {
		k.add(id)
	}
	k.start()
	for extended.Fired() < 4 {
		if t.Context().Err() != nil {
			t.Fatal("no transfer is extended")
		}
		<-time.After(time.Millisecond)
	}
	s.e.Heal()
	k.stop()
	k.stop() // may be repeated
	before := extended.Fired()
	s.release(f)
	if extended.Fired() != before {
		t.Error("transfers are extended after stop")
	}
	s.clean("at the end")
}

// TestPlugAfterRefreeze takes a freeze up as another process does, plugs a disk into the mover, and reads it over the network
// beside that and afterwards.
func TestPlugAfterRefreeze(t *testing.T) {
	s := newSim(t, false)
	want := s.contents()
	f := s.freeze(s.request("again"))
	other := openDriver(t, s.e)
	g, err := other.Refreeze(t.Context(), hypervisors.Standing{Tag: "again", Info: f.Info(), Owed: s.book.items})
	if err != nil {
		t.Fatal(err)
	}
	before := g.Info().Disks[0].Export
	a, err := other.Attach(t.Context(), hypervisors.AttachRequest{Mover: moverID, Tag: "again", Export: before, Serial: hypervisors.NewSerial(), Owe: s.book.owe})
	if err != nil {
		t.Fatal(err)
	}
	if now := g.Info().Disks[0].Export; now.Imageio.TransferURL == before.Imageio.TransferURL {
		t.Error("the export has not moved: the test would prove nothing")
	}
	s.same(g, want)
	if err := a.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	s.same(g, want)
	s.release(g)
	s.clean("at the end")
}

// TestAttachFaults injects what goes wrong while a disk is plugged into a mover.
func TestAttachFaults(t *testing.T) {
	for _, tt := range []struct {
		b  ovirtsim.Behaviour
		f  ovirtsim.Fault
		ok bool
	}{
		{ovirtsim.AttachLocked, ovirtsim.Fault{Times: 2}, true},
		{ovirtsim.DetachSlow, ovirtsim.Fault{}, true},
		{ovirtsim.Unavailable, ovirtsim.Fault{On: "GET /vms/*/diskattachments/*", Times: 2}, true},
		{ovirtsim.InternalError, ovirtsim.Fault{On: "POST /vms/*/diskattachments", Times: 1}, false},
	} {
		t.Run(string(tt.b)+" "+tt.f.On, func(t *testing.T) {
			s := newSim(t, false)
			want := s.contents()
			f := s.freeze(s.request("plugged"))
			struck := s.e.Inject(tt.b, tt.f)
			a, err := s.d.Attach(t.Context(), hypervisors.AttachRequest{
				Mover: moverID, Tag: "plugged", Export: f.Info().Disks[0].Export, Serial: hypervisors.NewSerial(), Owe: s.book.owe,
			})
			if (err == nil) != tt.ok {
				t.Fatalf("attach: %v", err)
			}
			if err == nil {
				if err := a.Detach(t.Context()); err != nil {
					t.Error(err)
				}
			} else if fault.KindOf(err) != fault.Transient {
				t.Errorf("%v (%v), want Transient", err, fault.KindOf(err))
			}
			s.struck(struck, tt.b)
			s.e.Heal()
			s.same(f, want) // the network remains
			s.release(f)
			s.clean("at the end")
		})
	}
}

func readAll(t *testing.T, x hypervisors.Export) []byte {
	t.Helper()
	x.DirtyContext = ""
	d, err := openSource(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Errorf("read %s: %v", x.Name, err)
	}
	if err := errors.Join(d.Confirm(t.Context()), d.Close()); err != nil {
		t.Error(err)
	}
	return p
}

// TestSecretsStayOut captures everything that the driver logs and looks for what must not be in it.
func TestSecretsStayOut(t *testing.T) {
	var log locked.Buffer
	e := startEngine(t, ovirtsim.Config{Site: testSite(true)})
	d := openDriver(t, e, func(c *Config) {
		c.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	e.Inject(ovirtsim.Unavailable, ovirtsim.Fault{On: "GET /vms/*", Times: 1})
	e.Inject(ovirtsim.InternalError, ovirtsim.Fault{On: "POST /vms/*/snapshots", Times: 1})
	_, err := d.Freeze(t.Context(), hypervisors.FreezeRequest{VM: webID, Tag: "failing", Owe: (&book{}).owe})
	if err == nil {
		t.Fatal("the freeze did not fail: the test would prove nothing")
	}
	f, err := d.Freeze(t.Context(), hypervisors.FreezeRequest{VM: webID, Tag: "secrets", Owe: (&book{}).owe})
	if err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewJSONHandler(&log, nil)).Info("frozen", "export", f.Info().Disks[0].Export)
	var docs bytes.Buffer
	for _, doc := range f.Info().Documents {
		docs.Write(doc.Data)
	}
	if !strings.Contains(docs.String(), "initial-secret") {
		t.Error("the documents lack the password of the first boot: the test would prove nothing")
	}
	if err := f.Release(t.Context()); err != nil {
		t.Error(err)
	}
	token, err := d.conn.Login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, secret := range map[string]string{
		"the password of the connection": d.cfg.Password, "the token": token, "the password of the first boot": "initial-secret", "a ticket": "/images/",
	} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%s is in the log", what)
		}
	}
	if !strings.Contains(log.String(), "repeated") {
		t.Error("nothing was logged: the test would prove nothing")
	}
}
