package kvm

import (
	"context"
	"encoding/xml"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// diskPlan is how one disk of a running VM is frozen.
type diskPlan struct {
	disk       hypervisors.Disk
	since      string // checkpoint for an incremental read; empty reads all
	fullReason string
	track      bool
	trackNote  string // why it is not tracked although that was asked for
	scratch    string
}

// freezeRunning opens a pull backup, with a checkpoint made in the same call.
func (f *frozen) freezeRunning(ctx context.Context, req hypervisors.FreezeRequest, st *state) (err error) {
	plans := make([]diskPlan, len(st.disks))
	for i, disk := range st.disks {
		plans[i] = planDisk(disk, req, st.since)
		if plans[i].scratch, err = f.d.scratchPath(ctx, req.Tag, disk); err != nil {
			return err
		}
	}
	at, err := f.d.listenAt(req.Tag)
	if err != nil {
		return err
	}
	if err := f.oweBackup(ctx, req, plans, at); err != nil {
		return err
	}
	at, err = f.beginQuiesced(ctx, req, st, plans, at)
	if err != nil {
		return err
	}
	return f.openExports(ctx, at, plans)
}

func planDisk(disk hypervisors.Disk, req hypervisors.FreezeRequest, since *checkpointXML) diskPlan {
	p := diskPlan{disk: disk, track: req.Track}
	if disk.Format != hypervisors.QCOW2 && req.Track {
		p.track, p.trackNote = false, fmt.Sprintf("its format is %s, which keeps no record of changes", disk.Format)
	}
	if req.Since == "" {
		return p
	}
	if p.fullReason = whyFull(disk, req.Since, since); p.fullReason == "" {
		p.since = req.Since
	}
	return p
}

// whyFull says why a disk cannot be read incrementally; empty when it can, as far as the checkpoint tells.
func whyFull(disk hypervisors.Disk, name string, since *checkpointXML) string {
	if disk.Format != hypervisors.QCOW2 {
		return fmt.Sprintf("the disk's format is %s, which keeps no record of changes", disk.Format)
	}
	if since == nil {
		return "the checkpoint " + name + " of the last backup does not exist any more"
	}
	if !since.has(disk.ID) {
		return "the disk was not tracked at the last backup: it was added or converted later"
	}
	if size, ok := since.sizes()[disk.ID]; ok && size != disk.SizeBytes {
		return fmt.Sprintf("the disk was resized from %d to %d bytes since the last backup", size, disk.SizeBytes)
	}
	return ""
}

// scratchPath is where QEMU keeps the old content of blocks that the guest overwrites during the backup: beside
// the image, unless it does not lie in a directory.
func (d *Driver) scratchPath(ctx context.Context, tag string, disk hypervisors.Disk) (string, error) {
	name := marker + tag + "-" + disk.ID + ".scratch"
	if dir := d.cfg.Options[OptScratchDir]; dir != "" {
		return filepath.Join(dir, name), nil
	}
	if !strings.HasPrefix(disk.Path, "/dev/") {
		return filepath.Join(filepath.Dir(disk.Path), name), nil
	}
	pools, err := call(ctx, d.conn, "list datastores", d.cfg.URI, listPools)
	if err != nil {
		return "", err
	}
	var best pool
	for _, p := range pools {
		if p.Active && fileBased(p.Kind) && p.FreeBytes > best.FreeBytes {
			best = p
		}
	}
	if best.Path == "" {
		return "", fault.New(fault.Conflict, "place scratch file for", disk.ID, "the disk is a block device and no file-based storage pool is active").
			Explain("QEMU needs a file to keep old blocks in while the backup runs.", "Set the option "+OptScratchDir+" of this connection to a directory on the host that QEMU may write to.")
	}
	return filepath.Join(best.Path, name), nil
}

func (f *frozen) oweBackup(ctx context.Context, req hypervisors.FreezeRequest, plans []diskPlan, at nbdAddress) error {
	name := marker + req.Tag
	if at.network == "unix" {
		if err := f.owe(ctx, req, hypervisors.Owed{Kind: kindSocket, VM: req.VM, Name: at.path}); err != nil {
			return err
		}
	}
	track := false
	for _, p := range plans {
		track = track || p.track
		if err := f.owe(ctx, req, hypervisors.Owed{Kind: kindScratch, VM: req.VM, Name: p.scratch}); err != nil {
			return err
		}
	}
	if track {
		if err := f.owe(ctx, req, hypervisors.Owed{Kind: kindCheckpoint, VM: req.VM, Name: name}); err != nil {
			return err
		}
	}
	return f.owe(ctx, req, hypervisors.Owed{Kind: kindBackupJob, VM: req.VM, Name: name})
}

// beginQuiesced begins the backup while the guest holds still, and lets the guest go in every case.
func (f *frozen) beginQuiesced(ctx context.Context, req hypervisors.FreezeRequest, st *state, plans []diskPlan, at nbdAddress) (nbdAddress, error) {
	watched := req
	watched.Owe = func(ctx context.Context, o hypervisors.Owed) error { return f.owe(ctx, req, o) }
	q, err := f.d.freezeGuest(ctx, watched, st.vm)
	if err == nil {
		at, err = f.begin(ctx, req, plans, at)
		f.info.Time = time.Now().UTC()
	}
	if q.frozen {
		if e := f.d.thawGuest(ctx, st.vm.ID); e != nil {
			f.info.Warnings = append(f.info.Warnings, "The guest's file systems could not be thawed: "+e.Error()+". This is tried again when the backup ends.")
		}
	}
	if err != nil {
		return at, err
	}
	f.info.ConsistencyNote = q.note
	if q.frozen {
		f.info.Consistency = hypervisors.FilesystemConsistent
	}
	return at, nil
}

// begin starts the job. What libvirt refuses for the sake of a disk's change history is tried again without it.
func (f *frozen) begin(ctx context.Context, req hypervisors.FreezeRequest, plans []diskPlan, at nbdAddress) (nbdAddress, error) {
	tried := 1 // ports
	for attempt := 1; ; {
		err := f.beginOnce(ctx, req, plans, at)
		if err == nil {
			for _, p := range plans {
				if p.track {
					f.info.Checkpoint = marker + req.Tag
				}
			}
			return at, f.d.requireVerification(ctx, req.VM, at)
		}
		text := err.Error()
		switch {
		case ctx.Err() != nil:
			return at, err
		case at.network == "tcp" && portTaken(err):
			if tried == at.ports() {
				return at, at.noPort(err)
			}
			tried++
			at.next()
		case strings.Contains(text, "itmap") || strings.Contains(text, "heckpoint"):
			if attempt++; attempt > 4 {
				return at, err
			}
			if e := f.d.relax(ctx, req, plans, text); e != nil {
				return at, e
			}
		default:
			return at, err
		}
	}
}

// requireVerification fails when the host would give the disks to clients without a certificate.
func (d *Driver) requireVerification(ctx context.Context, vm string, at nbdAddress) error {
	if at.network != "tcp" {
		return nil
	}
	ok, err := onDomain(ctx, d.conn, "look at NBD server of", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
		return verifiesClients(monitor{dom})
	})
	if err == nil && !ok {
		err = fault.New(fault.Conflict, "export disks of", "VM "+vm, "backup_tls_x509_verify is off on the host").
			Explain("Anybody who can reach the host's NBD port could read the disks during the backup.",
				"Set backup_tls_x509_verify = 1 in /etc/libvirt/qemu.conf on the host and restart libvirtd (or virtqemud).")
	}
	return err
}

func (f *frozen) beginOnce(ctx context.Context, req hypervisors.FreezeRequest, plans []diskPlan, at nbdAddress) error {
	job := backupXML{Mode: "pull", Server: backupServer{Transport: "unix", Socket: at.path}}
	if at.network == "tcp" {
		job.Server = backupServer{Transport: "tcp", Name: at.host, Port: at.port, TLS: "yes"}
	}
	cp := checkpointXML{Name: marker + req.Tag}
	sizes := map[string]int64{}
	for _, p := range plans {
		bd := backupDisk{
			Name: p.disk.ID, Backup: "yes", Type: "file", Mode: "full", Export: p.disk.ID, Scratch: &backupScratch{File: p.scratch},
		}
		if p.since != "" {
			bd.Mode, bd.Incremental, bd.Bitmap = "incremental", p.since, bitmapName(p.disk.ID)
		}
		job.Disks = append(job.Disks, bd)
		if p.track {
			cp.Disks = append(cp.Disks, checkpointDisk{Name: p.disk.ID, Checkpoint: "bitmap"})
			sizes[p.disk.ID] = p.disk.SizeBytes
		}
	}
	cp.Description = describeSizes(sizes)
	jobDoc, err := xml.Marshal(job)
	if err != nil {
		return err
	}
	var cpDoc []byte
	if len(cp.Disks) > 0 {
		if cpDoc, err = xml.Marshal(cp); err != nil {
			return err
		}
	}
	_, err = making(ctx, f.d, req.Tag, "begin backup of", "VM "+req.VM, func(lv *libvirt.Connect) (none, error) {
		dom, err := lv.LookupDomainByUUIDString(req.VM)
		if err != nil {
			return none{}, err
		}
		defer dom.Free()
		return none{}, dom.BackupBegin(string(jobDoc), string(cpDoc), 0)
	})
	return err
}

// bitmapName names the exported bitmap of a disk, and so its NBD context "qemu:dirty-bitmap:<name>".
func bitmapName(disk string) string { return "backup-" + disk }

// relax changes the plans after libvirt refused them over a bitmap: it asks QEMU which disks' bitmaps are usable.
func (d *Driver) relax(ctx context.Context, req hypervisors.FreezeRequest, plans []diskPlan, why string) error {
	nodes, err := onDomain(ctx, d.conn, "look at bitmaps of", req.VM, func(_ *libvirt.Connect, dom *libvirt.Domain) ([]blockNodeFormat, error) {
		var nodes []blockNodeFormat
		err := qmpRun(monitor{dom}, "query-named-block-nodes", map[string]any{"flat": true}, &nodes)
		return nodes, err
	})
	if err != nil {
		return err
	}
	changed := false
	for i := range plans {
		p := &plans[i]
		node, found := nodeOf(nodes, p.disk)
		if p.since != "" {
			b, ok := node.bitmap(p.since)
			if !ok || b.Inconsistent {
				p.fullReason, p.since, changed = brokenReason(ok), "", true
			}
		}
		if p.track && found && node.Image.Specific.Data.Compat == "0.10" {
			p.track, p.trackNote, changed = false, "its image is of the old qcow2 version 0.10, which keeps no record of changes", true
		}
	}
	if changed {
		return nil
	}
	// QEMU sees nothing wrong; give up the history first, then the tracking.
	for i := range plans {
		if p := &plans[i]; p.since != "" {
			p.fullReason, p.since, changed = "libvirt refuses to read the changes since the last backup: "+why, "", true
		}
	}
	if changed {
		return nil
	}
	for i := range plans {
		if p := &plans[i]; p.track {
			p.track, p.trackNote, changed = false, "libvirt refuses a checkpoint: "+why, true
		}
	}
	if !changed {
		return fault.New(fault.Conflict, "begin backup of", "VM "+req.VM, "%s", why)
	}
	return nil
}

func brokenReason(there bool) string {
	if there {
		return "the record of changes is broken: the VM was not stopped cleanly since the last backup"
	}
	return "the record of changes is missing from the disk's image: it was replaced, or the VM was not stopped cleanly"
}

// blockNodeFormat is a blockNode with what qcow2 says of itself.
type blockNodeFormat struct {
	blockNode
	Image struct {
		Specific struct {
			Data struct {
				Compat string `json:"compat"`
			} `json:"data"`
		} `json:"format-specific"`
	} `json:"image"`
}

// nodeOf finds the format node of a disk by its image.
func nodeOf(nodes []blockNodeFormat, disk hypervisors.Disk) (blockNodeFormat, bool) {
	for _, n := range nodes {
		if n.File == disk.Path && n.Driver == string(disk.Format) {
			return n, true
		}
	}
	return blockNodeFormat{}, false
}

// openExports makes the job's exports reachable for movers and describes the disks.
func (f *frozen) openExports(ctx context.Context, at nbdAddress, plans []diskPlan) error {
	var notTracked []string
	for _, p := range plans {
		f.info.Disks = append(f.info.Disks, hypervisors.FrozenDiskInfo{Disk: p.disk, FullReason: p.fullReason})
		if p.trackNote != "" {
			notTracked = append(notTracked, fmt.Sprintf("The disk %s will be read whole by the next backup, too: %s.", p.disk.ID, p.trackNote))
		}
	}
	f.info.Warnings = append(f.info.Warnings, notTracked...)
	base, fwd, err := f.d.exportBase(ctx, f.tag, at)
	if err != nil {
		return err
	}
	f.fwd = fwd
	for i, p := range plans {
		e := base
		e.Name, e.SizeBytes = p.disk.ID, p.disk.SizeBytes
		if p.since != "" {
			e.DirtyContext = "qemu:dirty-bitmap:" + bitmapName(p.disk.ID)
		}
		f.info.Disks[i].Export = e
	}
	return nil
}
