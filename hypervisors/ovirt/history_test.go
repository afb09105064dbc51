package ovirt

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/server"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
	"github.com/cairn-backup/cairn/lab/ovirtsim/imageio"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
	repository "github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// world is an engine and an appliance in this process, whose driver looks at the engine's states in quick succession.
type world struct {
	e    *ovirtsim.Engine
	d    *Driver // of somebody else at the engine
	a    *server.Appliance
	repo httpapi.RepositoryInfo
	log  locked.Buffer

	mu     sync.Mutex
	frozen map[string]map[string][32]byte // the newest freeze of each VM, by disk
	tally  map[string]int
}

func (w *world) freeze(vm string, disks map[string][]byte) {
	hashes := map[string][32]byte{}
	for id, p := range disks {
		hashes[id] = sha256.Sum256(p)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen[vm] = hashes
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tally[what]++
}

// historySite has VMs of all sorts of disks, to which only the test writes.
func historySite(vms int, r *rand.Rand) ovirtsim.Site {
	cl := ovirtsim.Cluster{Name: "Default", Hosts: []string{"host1", "host2"}}
	for i := range vms {
		v := ovirtsim.VM{Name: fmt.Sprintf("vm%d", i), Up: r.IntN(4) > 0, Agent: r.IntN(2) == 0, Idle: true}
		for range 1 + r.IntN(3) {
			d := ovirtsim.Disk{Bytes: int64(1+r.IntN(4)) << 20}
			switch r.IntN(6) {
			case 0:
				d.Format = "raw"
			case 1:
				d.NoTracking = true
			case 2:
				d.Storage = "san1"
			}
			v.Disks = append(v.Disks, d)
		}
		cl.VMs = append(cl.VMs, v)
	}
	return ovirtsim.Site{DataCenters: []ovirtsim.DataCenter{{
		Name: "Default", Networks: []string{"ovirtmgmt"}, Storage: []ovirtsim.StorageDomain{{Name: "data1"}, {Name: "san1", Storage: "iscsi"}}, Clusters: []ovirtsim.Cluster{cl},
	}}}
}

func newWorld(t *testing.T, vms int, r *rand.Rand) *world {
	t.Helper()
	w := &world{frozen: map[string]map[string][32]byte{}, tally: map[string]int{}}
	w.e = startEngine(t, ovirtsim.Config{Site: historySite(vms, r), Watch: ovirtsim.Watch{Frozen: w.freeze}, Pace: time.Millisecond, Seed: r.Uint64(), Log: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	w.d = openDriver(t, w.e, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	root := t.TempDir()
	a, err := server.Open(t.Context(), server.Options{
		Dir: filepath.Join(root, "data"), Log: slog.New(slog.NewTextHandler(&w.log, nil)),
		Drivers: map[hypervisors.Platform]server.OpenDriver{hypervisors.OVirt: func(ctx context.Context, at server.Target) (hypervisors.Driver, error) {
			d, err := Open(ctx, Config{URL: at.Address, User: at.User, Password: string(at.Secret), Options: at.Options, Log: at.Log})
			if err == nil {
				d.pace = w.d.pace
				d.conn.Retries = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}
			}
			return d, err
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(context.Background()); err != nil {
			t.Errorf("close the appliance: %v", err)
		}
	})
	w.a = a
	ca := filepath.Join(root, "ca.pem")
	if err := os.WriteFile(ca, w.e.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = a.AddConnection(t.Context(), httpapi.NewConnection{
		Name: "engine", Platform: hypervisors.OVirt, Address: w.e.URL(), User: "admin@internal", Password: "secret", Options: map[string]string{OptCAFile: ca},
	}); err != nil {
		t.Fatal(err)
	}
	if w.repo, err = a.AddRepository(t.Context(), httpapi.NewRepository{Name: "main", Path: filepath.Join(root, "repo")}); err != nil {
		t.Fatal(err)
	}
	return w
}

// history is what becomes of one VM.
type history struct {
	*world
	t        *testing.T
	r        *rand.Rand
	vm, name string
	id       string // in the catalog
	points   []string
	want     []map[string][32]byte // what each restore point must hold
	told     []string              // what happened, for a failure's message
}

// TestHistories lets random things happen to VMs between, before and during backups: writes, snapshots of others, disks that are made
// larger, added and removed, checkpoints that are lost, restarts of the engine, and its failures. Whatever a restore point says of
// how it was made, it holds what was frozen; a disk is read as a whole only with the reason; and in the end nothing is left.
func TestHistories(t *testing.T) {
	n := 12
	if os.Getenv("CAIRN_SOAK") == "1" {
		n = 200
	}
	seed := seeded.Seed(t)
	const worlds = 4
	var mu sync.Mutex
	total := map[string]int{}
	t.Run("worlds", func(t *testing.T) {
		for i := range worlds {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				w := newWorld(t, n/worlds, r)
				list, err := w.a.ListVMs(t.Context(), catalog.VMFilter{}, catalog.Page{Limit: 1000})
				if err != nil || len(list.Items) != n/worlds {
					t.Fatalf("%d VMs, %v", len(list.Items), err)
				}
				for _, vm := range list.Items {
					h := &history{world: w, t: t, r: r, vm: vm.PlatformID, name: vm.Name, id: vm.ID}
					h.live()
					if t.Failed() {
						log := w.log.String()
						t.Fatalf("VM %s:\n%s\n%s", vm.Name, strings.Join(h.told, "\n"), log[max(0, len(log)-6000):])
					}
				}
				mu.Lock()
				defer mu.Unlock()
				for k, v := range w.tally {
					total[k] += v
				}
			})
		}
	})
	t.Logf("%d histories", n)
	for _, what := range slices.Sorted(maps.Keys(total)) {
		t.Logf("%6d %s", total[what], what)
	}
	for _, must := range []string{"backup", "disk read incremental", "disk read full", "failure struck"} {
		if total[must] == 0 {
			t.Errorf("never: %s", must)
		}
	}
}

func (h *history) tell(format string, args ...any) {
	h.told = append(h.told, fmt.Sprintf(format, args...))
}

// ok ends the test on an error.
func (h *history) ok(what string, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("VM %s: %s: %v\n%s", h.name, what, err, strings.Join(h.told, "\n"))
	}
}

func (h *history) live() {
	h.backup()
	for range 4 + h.r.IntN(4) {
		for range 1 + h.r.IntN(3) {
			h.event()
		}
		h.backup()
	}
	h.compare()
}

// event is one thing that happens to the VM.
func (h *history) event() {
	events := []func() string{h.writes, h.writes, h.writes, h.snapshot, h.merge, h.resize, h.addDisk, h.removeDisk, h.power, h.loseCheckpoint, h.crash, h.tracking, h.restore}
	if what := events[h.r.IntN(len(events))](); what != "" {
		h.tell("%s", what)
		h.count(what)
	}
}

// disks are the ids of the VM's disks, with their sizes.
func (h *history) disks() (ids []string, sizes []int64) {
	h.t.Helper()
	x, _, err := h.d.find(h.t.Context(), h.vm)
	h.ok("look at VM", err)
	for _, a := range items(x.DiskAttachments()) {
		if disk, ok := a.Disk(); ok {
			ids, sizes = append(ids, val(disk.Id())), append(sizes, sized(disk.ProvisionedSize()))
		}
	}
	return ids, sizes
}

// open opens the VM's disks as its guest; nil if it does not run.
func (h *history) open() (disks []*storage.Image) {
	h.t.Helper()
	if !h.up() {
		return nil
	}
	ids, _ := h.disks()
	for _, id := range ids {
		d, err := h.e.OpenDisk(h.t.Context(), id)
		h.ok("open disk", err)
		disks = append(disks, d)
	}
	return disks
}

// somewhere writes at a random place of one of the disks.
func somewhere(r *rand.Rand, disks []*storage.Image) error {
	d := disks[r.IntN(len(disks))]
	p := make([]byte, min(d.Size(), int64(512<<r.IntN(9))))
	if r.IntN(4) > 0 { // else zeros
		for i := range p {
			p[i] = byte(r.Uint32())
		}
	}
	_, err := d.WriteAt(p, r.Int64N(d.Size()-int64(len(p))+1)/512*512)
	return err
}

func shut(disks []*storage.Image) (err error) {
	for _, d := range disks {
		err = errors.Join(err, d.Close())
	}
	return err
}

func (h *history) writes() string {
	disks := h.open()
	if disks == nil {
		return ""
	}
	for range 1 + h.r.IntN(5) {
		h.ok("write", somewhere(h.r, disks))
	}
	h.ok("close disks", shut(disks))
	return "writes"
}

// meanwhile writes while something else happens, until what it returns is called.
func (h *history) meanwhile() (stop func()) {
	disks := h.open()
	if disks == nil {
		return func() {}
	}
	r := rand.New(rand.NewPCG(h.r.Uint64(), 0))
	end, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-end:
				done <- shut(disks)
				return
			case <-time.After(5 * time.Millisecond):
				err = somewhere(r, disks)
			}
		}
		done <- errors.Join(err, shut(disks))
	}()
	return func() { close(end); h.ok("write during a backup", <-done) }
}

func (h *history) status() string {
	x, err := h.d.read(h.t.Context(), h.vm)
	h.ok("look at VM", err)
	return string(val(x.Status()))
}

func (h *history) up() bool { return h.status() == "up" }

// other does something at the engine as somebody else does. What the engine refuses has not happened.
func (h *history) other(method, path, body string) bool {
	h.t.Helper()
	_, err := h.d.conn.Do(h.t.Context(), engine.Request{Op: "meddle", Subject: h.name, Method: method, Path: path, Body: []byte(body)})
	if fault.KindOf(err) == fault.Conflict || fault.KindOf(err) == fault.Invalid {
		return false
	}
	h.ok(method+" "+path, err)
	h.ok("wait", h.d.pace.poll(h.t.Context(), time.Minute, "the engine has done "+method+" "+path, func() (bool, error) {
		return !slices.ContainsFunc(h.e.Leftovers(), func(l string) bool { return strings.Contains(l, "locked") }), nil
	}))
	return true
}

const theirs = "theirs"

func (h *history) snapshot() string {
	if !h.other("POST", "/vms/"+h.vm+"/snapshots", "<snapshot><description>"+theirs+"</description><persist_memorystate>false</persist_memorystate></snapshot>") {
		return ""
	}
	return "snapshot of others"
}

// merge removes a snapshot of others.
func (h *history) merge() string {
	s, err := h.d.findSnapshot(h.t.Context(), h.vm, theirs)
	h.ok("find snapshot", err)
	if s == nil || !h.other("DELETE", snapshotPath(h.vm, val(s.Id())), "") {
		return ""
	}
	return "merge of others"
}

func (h *history) resize() string {
	ids, sizes := h.disks()
	i := h.r.IntN(len(ids))
	size := sizes[i] + 512*int64(1+h.r.IntN(4000))
	if !h.other("PUT", "/vms/"+h.vm+"/diskattachments/"+ids[i], fmt.Sprintf(`<disk_attachment><disk id="%s"><provisioned_size>%d</provisioned_size></disk></disk_attachment>`, ids[i], size)) {
		return ""
	}
	return "disk made larger"
}

func (h *history) addDisk() string {
	at, err := h.d.look(h.t.Context())
	h.ok("look at storage", err)
	var where string
	for id, s := range at.stores {
		if s.Name == "data1" {
			where = id
		}
	}
	body := fmt.Sprintf(`<disk_attachment><active>true</active><bootable>false</bootable><interface>virtio_scsi</interface><disk><alias>added%d</alias><format>cow</format><sparse>true</sparse>`+
		`<provisioned_size>%d</provisioned_size><backup>incremental</backup><storage_domains><storage_domain id="%s"/></storage_domains></disk></disk_attachment>`,
		h.r.Uint32(), int64(1+h.r.IntN(2))<<20, where)
	if !h.other("POST", "/vms/"+h.vm+"/diskattachments", body) {
		return ""
	}
	return "disk added"
}

func (h *history) removeDisk() string {
	ids, _ := h.disks()
	if len(ids) < 2 {
		return ""
	}
	id := ids[1+h.r.IntN(len(ids)-1)]
	path := "/vms/" + h.vm + "/diskattachments/" + id
	if h.up() && !h.other("PUT", path, "<disk_attachment><active>false</active></disk_attachment>") {
		return ""
	}
	if _, err := h.d.conn.Do(h.t.Context(), engine.Request{Op: "meddle", Subject: h.name, Method: http.MethodDelete, Path: path, Query: engine.Query("detach_only", "false")}); err != nil {
		return "disk deactivated"
	}
	h.ok("wait", h.d.pace.poll(h.t.Context(), time.Minute, "disk "+id+" is gone", func() (bool, error) {
		now, _ := h.disks()
		return !slices.Contains(now, id), nil
	}))
	return "disk removed"
}

func (h *history) power() string {
	verb, want := "stop", "down"
	if !h.up() {
		verb, want = "start", "up"
	}
	if !h.other("POST", "/vms/"+h.vm+"/"+verb, "<action/>") {
		return ""
	}
	h.ok("wait", h.d.pace.poll(h.t.Context(), time.Minute, "the VM is "+want, func() (bool, error) { return h.status() == want, nil }))
	return "VM " + want
}

// loseCheckpoint removes a checkpoint, whoever made it.
func (h *history) loseCheckpoint() string {
	marks, err := h.d.marks(h.t.Context(), h.vm)
	h.ok("list checkpoints", err)
	if len(marks) == 0 || !h.other("DELETE", checkpointsPath(h.vm)+"/"+marks[h.r.IntN(len(marks))].id, "") {
		return ""
	}
	return "checkpoint removed by others"
}

// crash lets the hosts die under all VMs.
func (h *history) crash() string {
	h.ok("crash the hosts", h.e.CrashHosts(h.t.Context()))
	return "hosts crashed"
}

// tracking switches incremental backup of a disk on or off.
func (h *history) tracking() string {
	ids, _ := h.disks()
	id, mode := ids[h.r.IntN(len(ids))], []string{"none", "incremental", "incremental"}[h.r.IntN(3)]
	if !h.other("PUT", "/vms/"+h.vm+"/diskattachments/"+id, fmt.Sprintf(`<disk_attachment><disk id="%s"><backup>%s</backup></disk></disk_attachment>`, id, mode)) {
		return ""
	}
	return "incremental backup of a disk is " + mode
}

// restore gives the VM, if it is off, the disks of its newest restore point back.
func (h *history) restore() string {
	if h.up() || len(h.points) == 0 || h.r.IntN(2) == 0 {
		return ""
	}
	started, err := h.a.StartRestore(h.t.Context(), httpapi.Start{User: "ann"}, httpapi.RestoreRequest{RestorePointID: h.points[len(h.points)-1], Mode: hypervisors.RestoreInPlace})
	if err != nil {
		return "" // there are snapshots, or a disk is gone
	}
	run := h.ended(started)
	if run.State != catalog.Succeeded && run.State != catalog.Warning {
		h.tell("the restore ended as %s: %+v", run.State, run.Tasks[0].Error)
		return ""
	}
	held := map[[32]byte]bool{}
	ids, _ := h.disks()
	for _, id := range ids {
		held[sha256.Sum256(contentOf(h.t, h.e, id))] = true
	}
	for id, want := range h.want[len(h.want)-1] {
		if !held[want] {
			h.t.Errorf("VM %s: disk %s was not restored as it was", h.name, id)
		}
	}
	return "restore in place"
}

// ended waits for a run.
func (h *history) ended(s httpapi.Started) (run httpapi.RunInfo) {
	h.t.Helper()
	h.ok("wait for run", h.d.pace.poll(h.t.Context(), 5*time.Minute, "run "+s.RunID+" has ended", func() (_ bool, err error) {
		run, err = h.a.GetRun(h.t.Context(), s.RunID)
		return err == nil && run.State.Final(), err
	}))
	return run
}

// backup backs the VM up while it is written to and the engine fails. A backup that fails says why, and the next one succeeds.
func (h *history) backup() {
	stop := h.meanwhile()
	fired := h.fail()
	done := h.tryBackup()
	for _, f := range fired {
		if f.fired() > 0 {
			h.tell("struck: %s", f.what)
			h.count("failure struck")
			h.count("struck: " + f.what)
		}
		f.heal()
	}
	h.e.Heal()
	h.settle() // what the engine has refused to remove goes now
	if !done && !h.tryBackup() {
		h.t.Errorf("VM %s: nothing fails, but the backup does", h.name)
	}
	stop()
	h.settle()
}

// tryBackup says whether the backup succeeded. Without an injected failure it does, unless the VM has no disk that can be read.
func (h *history) tryBackup() bool {
	h.t.Helper()
	started, err := h.a.StartBackup(h.t.Context(), httpapi.Start{User: "ann"}, httpapi.BackupRequest{VMID: h.id, RepositoryID: h.repo.ID})
	h.ok("start backup", err)
	run := h.ended(started)
	task := run.Tasks[0]
	if run.State != catalog.Succeeded && run.State != catalog.Warning {
		h.count("backup failed")
		h.tell("the backup ended as %s: %+v", run.State, task.Error)
		if task.Error == nil || task.Error.What == "" || task.Error.Meaning == "" || task.Error.Advice == "" {
			h.t.Errorf("VM %s: a failed backup does not explain itself: %+v", h.name, task.Error)
		}
		return false
	}
	h.count("backup")
	point, err := h.a.GetRestorePoint(h.t.Context(), task.Result.RestorePointID)
	h.ok("look at restore point", err)
	h.mu.Lock()
	h.points, h.want = append(h.points, point.ID), append(h.want, h.frozen[h.vm])
	h.mu.Unlock()
	for _, d := range point.Disks {
		h.count("disk read " + d.Mode)
		h.tell("backup %d: disk %s %s %q, %d of %d bytes", len(h.points), d.ID, d.Mode, d.Reason, d.BytesRead, d.SizeBytes)
		if d.Mode == catalog.Full && d.Reason == "" {
			h.t.Errorf("VM %s: disk %s was read as a whole, and nobody says why", h.name, d.ID)
		}
	}
	return true
}

// settle waits until nothing of ours is left on the engine but the VM's checkpoint.
func (h *history) settle() {
	h.t.Helper()
	var left []string
	err := h.d.pace.poll(h.t.Context(), time.Minute, "nothing is left", func() (bool, error) {
		if err := h.a.RunMaintenance(h.t.Context(), fleet.Who{User: "ann"}, catalog.MaintainSweep); err != nil {
			return false, err
		}
		ours, err := h.d.Leftovers(h.t.Context())
		if err != nil && fault.KindOf(err) != fault.Transient {
			return false, err
		}
		left = nil
		marks := map[string]int{}
		for _, o := range ours {
			if o.Kind == hypervisors.OwedCheckpoint && marks[o.VM] == 0 {
				marks[o.VM]++
				continue
			}
			left = append(left, string(o.Kind)+" "+o.Name)
		}
		return len(left) == 0 && err == nil, nil
	})
	if err != nil {
		h.t.Errorf("VM %s: left on the engine: %v (%v)\n%s", h.name, left, err, h.log.String())
	}
}

// compare reads all restore points, past the appliance.
func (h *history) compare() {
	h.t.Helper()
	b, err := file.Open(h.repo.Path)
	h.ok("open repository", err)
	defer b.Close()
	key, err := repository.LoadKeyFile(h.repo.KeyFile)
	h.ok("read key", err)
	repo, err := repository.Open(h.t.Context(), b, key, repository.Options{ReadOnly: true})
	h.ok("open repository", err)
	defer repo.Close()
	for i, id := range h.points {
		p, err := repo.RestorePoint(h.t.Context(), id)
		h.ok("read restore point", err)
		if len(p.Images) != len(h.want[i]) {
			h.t.Errorf("VM %s: backup %d holds %d disks, %d were frozen", h.name, i+1, len(p.Images), len(h.want[i]))
		}
		for _, image := range p.Images {
			r, err := repo.OpenImage(h.t.Context(), image.Ref)
			h.ok("open image", err)
			sum := sha256.New()
			_, err = io.Copy(sum, io.NewSectionReader(r, 0, r.Size()))
			h.ok("read image", errors.Join(err, r.Close()))
			if want, there := h.want[i][image.Name]; !there || [32]byte(sum.Sum(nil)) != want {
				h.t.Errorf("VM %s: backup %d holds something else of disk %s than was frozen", h.name, i+1, image.Name)
			}
		}
	}
}

// striking is a failure that was injected.
type striking struct {
	what  string
	fired func() int
	heal  func()
}

// Requests that failures strike at.
var struckRequests = []string{
	"GET /vms/*", "GET /vms/*/snapshots", "POST /vms/*/snapshots", "GET /vms/*/snapshots/*", "DELETE /vms/*/snapshots/*",
	"POST /vms/*/backups", "GET /vms/*/backups", "GET /vms/*/backups/*", "GET /vms/*/backups/*/disks", "POST /vms/*/backups/*/finalize",
	"GET /vms/*/checkpoints", "DELETE /vms/*/checkpoints/*", "POST /imagetransfers", "GET /imagetransfers", "GET /imagetransfers/*", "POST /imagetransfers/*/finalize",
}

// fail injects a failure or two, or none.
func (h *history) fail() (out []striking) {
	for range h.r.IntN(3) {
		if h.r.IntN(4) == 0 {
			out = append(out, h.failImages())
			continue
		}
		requests := []ovirtsim.Behaviour{ovirtsim.SessionExpires, ovirtsim.Unavailable, ovirtsim.InternalError, ovirtsim.ReplyLost, ovirtsim.EngineRestarts}
		operations := []ovirtsim.Behaviour{
			ovirtsim.SnapshotFails, ovirtsim.FreezeFails, ovirtsim.SnapshotRemoveFails, ovirtsim.SnapshotRemoveBusy, ovirtsim.JobsLate, ovirtsim.JobsPurged,
			ovirtsim.CheckpointLost, ovirtsim.CheckpointInvalid, ovirtsim.BackupFails, ovirtsim.BackupPurged, ovirtsim.TransferPaused, ovirtsim.TransferCancelled,
			ovirtsim.TransferEnds, ovirtsim.TransferPurged,
		}
		f := ovirtsim.Fault{Skip: h.r.IntN(2), Times: 1 + h.r.IntN(2)}
		b := operations[h.r.IntN(len(operations))]
		if h.r.IntN(2) == 0 {
			b, f.On = requests[h.r.IntN(len(requests))], struckRequests[h.r.IntN(len(struckRequests))]
		}
		i := h.e.Inject(b, f)
		h.tell("injected: %s %+v", b, f)
		out = append(out, striking{string(b), i.Fired, func() {}})
	}
	return out
}

// failImages lets the daemon of the hosts fail.
func (h *history) failImages() striking {
	f := imageio.Fault{Skip: h.r.IntN(2), Times: 1 + h.r.IntN(2)}
	what := "imageio drops a connection"
	switch h.r.IntN(5) {
	case 0:
		f.Drop = true
	case 1:
		f.DropAfter, f.Method = 1+h.r.IntN(10000), http.MethodGet
	case 2:
		f.Status, what = http.StatusInternalServerError, "imageio answers 500"
	case 3:
		f.Forget, what = true, "imageio loses an answer"
	case 4:
		f.Crash, what = true, "imageio crashes"
	}
	i := h.e.Images().Inject(f)
	h.tell("injected: %s %+v", what, f)
	return striking{what, i.Fired, i.Remove}
}
