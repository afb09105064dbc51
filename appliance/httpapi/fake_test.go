package httpapi

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/erasure"
)

// fakeCore answers from memory, so that a test can have every state and every error. What the appliance really does
// is tested with the appliance.
type fakeCore struct {
	mu      sync.Mutex
	err     error // answered by every call when set
	panics  bool
	cutOff  bool // lists fail at their second page
	runs    map[string]RunInfo
	keys    map[string]Started
	started []any // requests
	calls   int
	stream  *Stream
	notes   []string    // of the audit log
	wake    chan string // ids of runs that somebody reads
}

func newFakeCore(s *Stream) *fakeCore {
	return &fakeCore{runs: map[string]RunInfo{}, keys: map[string]Started{}, stream: s, wake: make(chan string, 100)}
}

func (f *fakeCore) enter() (func(), error) {
	f.mu.Lock()
	f.calls++
	if f.panics {
		f.mu.Unlock()
		panic("planted panic")
	}
	return f.mu.Unlock, f.err
}

func (f *fakeCore) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeCore) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

var (
	someTime = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	someVM   = hypervisors.VM{
		ID: "0c5d", Name: "web", Title: "t", Description: "d", Host: "h", Power: hypervisors.PowerOn, Arch: "x86_64",
		Machine: "q35", Firmware: hypervisors.UEFI, SecureBoot: true, TPM: "2.0", CPUs: 2, MemoryBytes: 1 << 30, Agent: true,
		Disks: []hypervisors.Disk{
			{ID: "vda", Kind: hypervisors.KindDisk, Bus: "virtio", Format: hypervisors.QCOW2, SizeBytes: 10 << 30, UsedBytes: 1 << 30, Datastore: "default", Path: "/x", Serial: "s", BootOrder: 1},
			{ID: "vdb", Kind: hypervisors.KindLUN, SizeBytes: 1 << 30, Shareable: true, Unprotectable: "a direct LUN cannot be frozen"},
			{ID: "sda", Kind: hypervisors.KindCDROM, ReadOnly: true, Unprotectable: "a CD-ROM"},
		},
		NICs: []hypervisors.NIC{{ID: "net0", MAC: "52:54:00:00:00:01", Model: "virtio", Network: "network:default", BootOrder: 2}},
		Tags: []string{"a"}, Metadata: map[string]string{"k": "v"}, Notes: []string{"n"}, Unprotectable: "it is the engine's own VM",
	}
	someFailure = &catalog.Failure{Kind: "transient", What: "unreachable", Meaning: "m", Advice: "a"}
	someConn    = ConnectionInfo{
		Connection: catalog.Connection{
			ID: "conn_1", Name: "lab", Platform: hypervisors.KVM, Address: "qemu:///system", User: "u", Options: map[string]string{"o": "p"},
			SealedSecret: []byte("sealed-secret"), Status: catalog.HealthProblem, Product: "libvirt", Host: "h", Problems: []string{"p"},
			LastChecked: &someTime, LastError: someFailure, LastInventory: &someTime, CreatedAt: someTime,
		},
		VMs: 1,
		Capabilities: &hypervisors.Capabilities{
			Platform: hypervisors.KVM, Backup: true, Transports: []hypervisors.Transport{"nbd"}, Formats: []hypervisors.DiskFormat{hypervisors.Raw},
		},
	}
	someRepo = RepositoryInfo{
		Repository: catalog.Repository{
			ID: "repo_1", Name: "main", Kind: catalog.KindDirectory, Path: "/backup", KeyFile: "/keys/1", StoreID: "s", Status: catalog.HealthOK,
			LastChecked: &someTime, LastError: someFailure, CreatedAt: someTime,
		},
		Usage: &Usage{RestorePoints: 1, Packs: 2, LogicalBytes: 3, StoredBytes: 4, FreeBytes: 5},
		Set: &SetInfo{
			Layout: erasure.Layout{Data: 1, Parity: 1}, CanLose: 0, Objects: 3, Below: 2, Unreadable: 1, Groups: 1,
			Members: []MemberInfo{
				{MemberHealth: erasure.MemberHealth{ID: "m1", Place: "/a", Domain: "d", State: erasure.Online, FreeBytes: 5, TotalBytes: 6}},
				{MemberHealth: erasure.MemberHealth{ID: "m2", State: erasure.Missing, Reason: "away", FreeBytes: -1, Lacking: 2, Errors: 3}},
			},
		},
		Verification: VerificationInfo{
			Verification: catalog.Verification{
				EveryDays: 30, BytesPerSecond: 7, CycleStarted: &someTime, DoneBytes: 1, TotalBytes: 2, LastCompleted: &someTime,
			},
			DamagedPacks: 1, DamagedPoints: 2,
		},
	}
	somePoint = catalog.RestorePoint{
		ID: "rp_1", RepositoryID: "repo_1", ConnectionID: "conn_1", VMID: "vm_1", VMName: "web", Series: "kvm/conn_1/0c5d", TaskID: "task_1",
		Time: someTime, Published: someTime, Kind: catalog.Full, Consistency: hypervisors.CrashConsistent, ConsistencyNote: "no agent",
		Checkpoint: "cairn-1", SizeBytes: 10, BytesRead: 9, BytesNew: 8, BytesStored: 7, Verified: &someTime, VerifyError: someFailure,
		Disks:   []catalog.PointDisk{{ID: "vda", SizeBytes: 10, Format: hypervisors.Raw, Root: "ab", Mode: catalog.Full, Reason: "first", BytesRead: 9}},
		Skipped: []catalog.SkippedDisk{{ID: "vdb", Kind: hypervisors.KindLUN, Reason: "a LUN"}}, Warnings: []string{"w"},
	}
	someTask = catalog.Task{
		ID: "task_1", RunID: "run_1", Kind: catalog.KindBackup, VMID: "vm_1", VMName: "web", ConnectionID: "conn_1", RepositoryID: "repo_1",
		RestorePointID: "rp_1", State: catalog.Failed, Phase: "transfer", Warnings: []string{"w"}, Error: someFailure, CancelRequested: true,
		Attempt: 1, CreatedAt: someTime, StartedAt: &someTime, FinishedAt: &someTime,
		Progress: catalog.Progress{Disks: []catalog.DiskProgress{{
			Disk: "vda", Transport: "nbd", Mode: catalog.Full, Reason: "first", BytesTotal: 10, BytesScanned: 9, BytesRead: 8, BytesSkipped: 1,
			BytesNew: 7, BytesStored: 6, Rate: 5, ETASeconds: 4, Bottleneck: "store", Done: true,
			Choice: catalog.Choice{Reason: "it is near", Rejected: []catalog.RejectedWay{{Mover: "m1", Transport: "hotadd", Reason: "no"}}},
		}}},
		Result: &catalog.Result{RestorePointID: "rp_1", VMPlatformID: "x", VMName: "y", MoverID: "mover_1", Started: true, BytesRead: 1, BytesNew: 1, BytesStored: 1, BytesVerified: 1, BytesFreed: 1,
			Collected: &catalog.Collected{PacksFreed: 1, PacksLater: 2, NoRoom: true}, Swept: &catalog.Swept{Packs: 1, Complete: true},
			Healed: &catalog.Healed{Healed: 1}, Repaired: &catalog.Repaired{Member: "m1", Shards: 1}},
	}
	someRun = RunInfo{
		Run: catalog.Run{
			ID: "run_1", Kind: catalog.KindBackup, Trigger: catalog.TriggerManual, User: "admin", State: catalog.Failed, Error: someFailure,
			CreatedAt: someTime, StartedAt: &someTime, FinishedAt: &someTime,
		},
		Tasks: []catalog.Task{someTask},
	}
	someEvents = []catalog.Event{
		{Seq: 1, RunID: "run_1", TaskID: "task_1", Time: someTime, Level: catalog.LevelInfo, Message: "one", Fields: map[string]string{"k": "v"}},
		{Seq: 4, RunID: "run_1", Time: someTime, Level: catalog.LevelError, Message: "two", Meaning: "m", Advice: "a"},
		{Seq: 9, RunID: "run_1", Time: someTime, Level: catalog.LevelWarning, Message: "three"},
	}
)

// one answers a fixed thing when the id is its own.
func one[T any](f *fakeCore, id, own string, v T) (T, error) {
	leave, err := f.enter()
	defer leave()
	if err == nil && id != own {
		err = fault.New(fault.NotFound, "look up", id, "there is none")
	}
	if err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}

func list[T any](f *fakeCore, p catalog.Page, v T) (catalog.List[T], error) {
	leave, err := f.enter()
	defer leave()
	if err == nil && p.Cursor != "" && p.Cursor != "more" {
		err = fault.New(fault.Invalid, "read page", "", "the cursor is not one of this list")
	}
	if err == nil && p.Cursor == "more" && f.cutOff {
		err = fault.New(fault.Transient, "read page", "", "the database is away")
	}
	if err != nil {
		return catalog.List[T]{}, err
	}
	if p.Cursor == "more" {
		return catalog.List[T]{}, nil
	}
	return catalog.List[T]{Items: []T{v}, Next: "more"}, nil
}

func (f *fakeCore) Ready(context.Context) error {
	leave, err := f.enter()
	defer leave()
	return err
}

func (f *fakeCore) ListConnections(_ context.Context, p catalog.Page) (catalog.List[ConnectionInfo], error) {
	return list(f, p, someConn)
}

func (f *fakeCore) GetConnection(_ context.Context, id string) (ConnectionInfo, error) {
	return one(f, id, "conn_1", someConn)
}

func (f *fakeCore) TryConnection(_ context.Context, c NewConnection) (hypervisors.Health, error) {
	f.note(c)
	return one(f, "", "", hypervisors.Health{Product: "libvirt", Host: "h", VMs: 3, Problems: []string{"p"}})
}

func (f *fakeCore) AddConnection(_ context.Context, c NewConnection) (ConnectionInfo, error) {
	f.note(c)
	return one(f, "", "", someConn)
}

func (f *fakeCore) RemoveConnection(_ context.Context, id string) error {
	_, err := one(f, id, "conn_1", 0)
	return err
}

func (f *fakeCore) CheckConnection(_ context.Context, id string) (hypervisors.Health, error) {
	return one(f, id, "conn_1", hypervisors.Health{Product: "libvirt", Host: "h", VMs: 3})
}

func (f *fakeCore) RefreshConnection(_ context.Context, id string) (catalog.InventoryReport, error) {
	return one(f, id, "conn_1", catalog.InventoryReport{VMs: 4, Added: 3, Changed: 2, Gone: 1})
}

func (f *fakeCore) ListVMs(_ context.Context, filter catalog.VMFilter, p catalog.Page) (catalog.List[VMInfo], error) {
	f.note(filter)
	return list(f, p, f.vm())
}

func (f *fakeCore) vm() VMInfo {
	return VMInfo{
		VM: catalog.VM{
			ID: "vm_1", ConnectionID: "conn_1", PlatformID: "0c5d", Name: "web", Power: hypervisors.PowerOn, Description: someVM,
			LastSeen: someTime, GoneAt: &someTime,
		},
		LastPointID: "rp_1", LastPointAt: someTime,
	}
}

func (f *fakeCore) GetVM(_ context.Context, id string) (VMInfo, error) {
	return one(f, id, "vm_1", f.vm())
}

func (f *fakeCore) ListDatastores(_ context.Context, id string) ([]hypervisors.Datastore, error) {
	return one(f, id, "conn_1", []hypervisors.Datastore{{ID: "1", Name: "default", Kind: "dir", Path: "/x", CapacityBytes: 2, FreeBytes: 1, Active: true}})
}

func (f *fakeCore) ListNetworks(_ context.Context, id string) ([]hypervisors.Network, error) {
	return one(f, id, "conn_1", []hypervisors.Network(nil))
}

func (f *fakeCore) ListRepositories(_ context.Context, p catalog.Page) (catalog.List[RepositoryInfo], error) {
	return list(f, p, someRepo)
}

func (f *fakeCore) GetRepository(_ context.Context, id string) (RepositoryInfo, error) {
	return one(f, id, "repo_1", someRepo)
}

func (f *fakeCore) AddRepository(_ context.Context, r NewRepository) (RepositoryInfo, error) {
	f.note(r)
	return one(f, "", "", someRepo)
}

func (f *fakeCore) DetachRepository(_ context.Context, id string) (string, error) {
	repo, err := one(f, id, "repo_1", someRepo)
	return repo.Name, err
}

func (f *fakeCore) ListRestorePoints(_ context.Context, filter catalog.PointFilter, p catalog.Page) (catalog.List[catalog.RestorePoint], error) {
	f.note(filter)
	return list(f, p, somePoint)
}

func (f *fakeCore) GetRestorePoint(_ context.Context, id string) (PointInfo, error) {
	return one(f, id, "rp_1", PointInfo{RestorePoint: somePoint, Description: &someVM})
}

func (f *fakeCore) PruneRestorePoint(_ context.Context, id string) error {
	_, err := one(f, id, "rp_1", 0)
	return err
}

func (f *fakeCore) PlanRestore(_ context.Context, r RestoreRequest) (RestorePlan, error) {
	f.note(r)
	return one(f, r.RestorePointID, "rp_1", RestorePlan{
		Mode: r.Mode, ConnectionID: "conn_1", VMName: r.Name, Warnings: []string{"w"},
		Disks: []hypervisors.RestoreDisk{{ID: "vda", SizeBytes: 1, Datastore: "default", Format: hypervisors.Raw}},
	})
}

func (f *fakeCore) StartBackup(_ context.Context, s Start, r BackupRequest) (Started, error) {
	return f.start(s, catalog.KindBackup, r, r.VMID == "vm_1")
}

func (f *fakeCore) StartRestore(_ context.Context, s Start, r RestoreRequest) (Started, error) {
	return f.start(s, catalog.KindRestore, r, r.RestorePointID == "rp_1")
}

func (f *fakeCore) PlanRestores(_ context.Context, r RestoresRequest) (RestoresPlan, error) {
	f.note(r)
	return one(f, "", "", RestoresPlan{Warnings: []string{"w"}, VMs: []RestoresPlanVM{
		{ID: "vm_1", Name: "web", ConnectionID: "conn_1", As: "web2", Point: somePoint, Disks: []hypervisors.RestoreDisk{{ID: "vda", SizeBytes: 1}}, Warnings: []string{"w"}},
		{ID: "vm_2", Name: "db", ConnectionID: "conn_1", As: "db2", Err: fault.New(fault.NotFound, "restore VM", "db", "it has no restore point")},
	}})
}

func (f *fakeCore) StartRestores(_ context.Context, s Start, r RestoresRequest) (Started, error) {
	return f.start(s, catalog.KindRestore, r, true)
}

func (f *fakeCore) StartVerify(_ context.Context, s Start, id string) (Started, error) {
	return f.start(s, catalog.KindVerify, id, id == "rp_1")
}

func (f *fakeCore) start(s Start, kind catalog.RunKind, request any, known bool) (Started, error) {
	leave, err := f.enter()
	defer leave()
	if err == nil && !known {
		err = fault.New(fault.NotFound, "start", string(kind), "there is no such thing")
	}
	if err != nil {
		return Started{}, err
	}
	key := s.User + "/" + s.Key
	if old, ok := f.keys[key]; ok && s.Key != "" {
		old.Replayed = true
		return old, nil
	}
	id := "run_" + strconv.Itoa(100+len(f.runs))
	f.runs[id] = RunInfo{Run: catalog.Run{ID: id, Kind: kind, State: catalog.Running, User: s.User, CreatedAt: someTime}}
	f.keys[key] = Started{RunID: id, Fingerprint: s.Fingerprint}
	f.started = append(f.started, request)
	return Started{RunID: id}, nil
}

// finish ends a run and publishes that.
func (f *fakeCore) finish(id string, state catalog.State) {
	f.mu.Lock()
	r := f.runs[id]
	r.State = state
	f.runs[id] = r
	f.mu.Unlock()
	f.stream.PublishRun(r)
}

func (f *fakeCore) note(v any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = append(f.started, v)
}

// last returns the last request that reached the core.
func (f *fakeCore) last() any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.started) == 0 {
		return nil
	}
	return f.started[len(f.started)-1]
}

func (f *fakeCore) ListRuns(_ context.Context, filter catalog.RunFilter, p catalog.Page) (catalog.List[RunInfo], error) {
	f.note(filter)
	return list(f, p, someRun)
}

func (f *fakeCore) GetRun(_ context.Context, id string) (RunInfo, error) {
	leave, err := f.enter()
	defer leave()
	if err != nil {
		return RunInfo{}, err
	}
	select {
	case f.wake <- id:
	default:
	}
	if r, ok := f.runs[id]; ok {
		return r, nil
	}
	if id != someRun.ID {
		return RunInfo{}, fault.New(fault.NotFound, "look up run", id, "there is none")
	}
	return someRun, nil
}

func (f *fakeCore) CancelRun(_ context.Context, id string) error {
	_, err := one(f, id, "run_1", 0)
	return err
}

func (f *fakeCore) ListRunEvents(_ context.Context, run string, after int64, limit int) ([]catalog.Event, error) {
	events, err := one(f, run, "run_1", someEvents)
	i := slices.IndexFunc(events, func(e catalog.Event) bool { return e.Seq > after })
	if err != nil || i < 0 {
		return nil, err
	}
	return events[i:min(len(events), i+limit)], nil
}

func (f *fakeCore) ListTasks(_ context.Context, filter catalog.TaskFilter, p catalog.Page) (catalog.List[catalog.Task], error) {
	f.note(filter)
	return list(f, p, someTask)
}

func (f *fakeCore) GetTask(_ context.Context, id string) (catalog.Task, error) {
	return one(f, id, "task_1", someTask)
}

func (f *fakeCore) CancelTask(_ context.Context, id string) error {
	_, err := one(f, id, "task_1", 0)
	return err
}
