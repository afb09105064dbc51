package campaign

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store/campaign/blocklog"
	"github.com/cairn-backup/cairn/store/campaign/mounts"
	"github.com/cairn-backup/cairn/store/campaign/workload"
)

// cutDisk is big enough for the workload and small enough to be copied for each cut.
const cutDisk = 24 << 20

// serve mounts a new ext4 on a disk that remembers every write.
func serve(t *testing.T, fuse, disk string) (log *blocklog.Log, stop func() error) {
	t.Helper()
	image := disk + ".img"
	// No commits by the clock: only what is synced is durable.
	if err := mounts.Ext4(image, cutDisk, "-b", "1024", "-J", "size=4"); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	log = blocklog.New(fresh)
	if err := os.MkdirAll(fuse, 0o700); err != nil {
		t.Fatal(err)
	}
	stop, err = log.Serve(fuse)
	if err != nil {
		t.Fatal(err)
	}
	if err := mounts.Loop(blocklog.Disk(fuse), disk, "commit=300"); err != nil {
		t.Fatal(err)
	}
	return log, stop
}

// record lets a worker live on an ext4 over a disk that remembers every write.
func record(t *testing.T, dir string, seed uint64, more ...string) (*blocklog.Log, string) {
	t.Helper()
	fuse, disk := filepath.Join(dir, "fuse"), filepath.Join(dir, "disk")
	log, stop := serve(t, fuse, disk)
	key := filepath.Join(dir, "key")
	args := append([]string{
		"-dir", filepath.Join(disk, "repo"), "-index", filepath.Join(disk, "index"), "-key", key,
		"-acks", blocklog.Acks(fuse), "-seed", strconv.FormatUint(seed, 10),
	}, more...)
	if out, err := exec.CommandContext(t.Context(), worker(t), args...).CombinedOutput(); err != nil {
		t.Fatalf("worker: %v: %s", err, out)
	}
	if err := mounts.Unmount(disk); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return log, key
}

// cuts chooses positions: right after acknowledgements, where a broken promise shows, right before flushes, where
// most is at stake, and anywhere.
func cuts(log *blocklog.Log, n int, pick func(int) int) []int {
	acked, dirty := log.AckedAt(), log.Dirty()
	out := make([]int, n)
	for i := range out {
		switch i % 4 {
		case 0:
			out[i] = min(acked[pick(len(acked))]+pick(3), log.Len())
		case 1:
			out[i] = 1 + pick(log.Len())
		default:
			out[i] = dirty[pick(len(dirty))]
		}
	}
	slices.Sort(out)
	return out
}

// tally is what became of the images of a campaign.
type tally struct {
	mu                   sync.Mutex
	images, lossy, acked int
	bad                  []error
}

// powerCuts cuts the recording n times and judges each image.
func powerCuts(t *testing.T, dir string, log *blocklog.Log, key string, seed uint64, n int) *tally {
	t.Helper()
	rnd := random(seed, 4)
	replay := log.Replay()
	out := &tally{}
	var g errgroup.Group
	g.SetLimit(2)
	for i, at := range cuts(log, n, rnd.IntN) {
		loss := blocklog.Loss(min(rnd.IntN(5), 2)) // 3 of 5: some
		cut := replay.Cut(at, loss, rnd)
		g.Go(func() error {
			promised := workload.ParseAcks(cut.Acks)
			err := judgeImage(t, filepath.Join(dir, fmt.Sprintf("cut-%d", i)), cut.Image, key, promised, i%2 == 0)
			out.mu.Lock()
			defer out.mu.Unlock()
			out.images++
			out.acked += len(promised.Must)
			if cut.Lost > 0 {
				out.lossy++
			}
			if err != nil {
				out.bad = append(out.bad, fmt.Errorf("cut at %d of %d, loss %d, %d of %d writes lost or torn: %w", at, log.Len(), loss, cut.Lost, cut.Pending, err))
			}
			return nil
		})
	}
	_ = g.Wait()
	return out
}

// judgeImage mounts what the cut left, which replays the journal, and opens the repository in it, every second time
// with the index that lies beside it, which the cut has hit as well.
func judgeImage(t *testing.T, at string, image []byte, key string, want workload.Promises, withIndex bool) error {
	t.Helper()
	name := at + ".img"
	if err := os.WriteFile(name, image, 0o600); err != nil {
		return err
	}
	defer os.Remove(name)
	if err := mounts.Loop(name, at, ""); err != nil {
		return err
	}
	index := ""
	if withIndex {
		index = filepath.Join(at, "index")
	}
	err := workload.Judge(t.Context(), filepath.Join(at, "repo"), index, key, want, true)
	if umount := mounts.Unmount(at); umount != nil {
		t.Error(umount)
	}
	return err
}

func TestCampaignPowerCut(t *testing.T) {
	mounts.Need(t)
	seed := seeded.Seed(t)
	total, lossy, acked, lost, writes, flushes := 0, 0, 0, 0, 0, 0
	rounds, each := 2, count(20, 100, 200)
	if os.Getenv("CAIRN_SOAK") == "1" {
		rounds = 10
	}
	for round := range rounds {
		dir := mounts.Dir(t)
		log, key := record(t, dir, seed+uint64(round))
		w, f, _ := log.Stats()
		writes, flushes = writes+w, flushes+f
		out := powerCuts(t, dir, log, key, seed+uint64(round), each)
		for _, err := range out.bad {
			t.Errorf("seed %d: %v", seed+uint64(round), err)
		}
		total, lossy, acked, lost = total+out.images, lossy+out.lossy, acked+out.acked, lost+len(out.bad)
	}
	report(t, "power-cut", rounds*each, total, lost,
		fmt.Sprintf("lossy=%d acknowledged=%d writes=%d flushes=%d", lossy, acked, writes, flushes))
	if lossy < total/4 {
		t.Errorf("only %d of %d cuts lost anything", lossy, total)
	}
}

// TestCampaignPowerCutFindsBugs shows that the campaign can fail.
func TestCampaignPowerCutFindsBugs(t *testing.T) {
	mounts.Need(t)
	seed := seeded.Seed(t)
	planted, found := 0, 0
	for _, bug := range []string{"-lie-dirs", "-lie-files"} {
		planted++
		dir := mounts.Dir(t)
		log, key := record(t, dir, seed, bug)
		out := powerCuts(t, dir, log, key, seed, 30)
		if len(out.bad) == 0 {
			t.Errorf("%s was not found in %d images", bug, out.images)
			continue
		}
		found++
		t.Logf("%s: %d of %d images are bad, the first: %v", bug, len(out.bad), out.images, out.bad[0])
	}
	report(t, "power-cut-planted-bugs", planted, found, 0)
}

// TestRecordingEndsBesideCopiesOfTheMounts: a process with mounts of its own, as a container has them, keeps the disk busy.
func TestRecordingEndsBesideCopiesOfTheMounts(t *testing.T) {
	mounts.Need(t)
	dir := mounts.Dir(t)
	fuse, disk := filepath.Join(dir, "fuse"), filepath.Join(dir, "disk")
	log, stop := serve(t, fuse, disk)
	holder := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", "echo ready; read end; touch \"$0\"", filepath.Join(disk, "late"))
	release, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := said.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mounts.Unmount(disk), stop()); err != nil {
		t.Error(err)
	}
	ended := log.Len()
	if err := errors.Join(release.Close(), holder.Wait()); err != nil {
		t.Errorf("the holder could not go on writing: %v", err)
	}
	if log.Len() != ended {
		t.Errorf("%d entries at the end of the recording, %d later", ended, log.Len())
	}
}
