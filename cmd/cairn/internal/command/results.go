package command

import (
	"fmt"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
)

// results are what came out of a task besides its restore point and its bytes, in words.
func results(t client.Task) [][2]string {
	var out words
	x := t.Result
	if x.VMName != "" && x.VMName != t.VMName {
		name := "restored as"
		if t.Kind == client.RunDeploy {
			name = "VM"
		}
		out.say(name, x.VMName)
	}
	if x.Started {
		out.say("started", "yes")
	}
	out.size("verified", x.BytesVerified)
	switch t.Kind {
	case client.RunVerify:
		out.verified(t)
	case client.RunPrune:
		out.count("carried out for", x.VMsPruned, "VM")
		out.count("pruned", x.PointsPruned, "restore point")
		out.size("that had stored", x.BytesPruned)
		out.count("kept", x.PointsKept, "restore point")
		out.count("left for the next time", x.PointsLeft, "restore point")
	case client.RunReread:
		out.count("has", x.PointsThere, "restore point")
		out.count("found", x.PointsFound, "restore point")
		out.count("forgotten", x.PointsForgotten, "restore point")
		out.count("left for the next time", x.PointsLeft, "restore point")
	case client.RunCollect:
		out.collected(t)
	case client.RunHeal:
		if out.healed(x); len(out) == 0 && t.State == client.StateSucceeded {
			out.say("nothing", "to heal")
		}
	case client.RunScrub, client.RunRebuild:
		out.say("filled member", x.MemberID)
		out.size("read", t.Progress.BytesRead)
		out.count("looked at", x.ObjectsChecked, "object")
		out.count("not made whole", x.ObjectsDamaged, "object")
		if t.State == client.StateSucceeded || x.ShardsRepaired > 0 {
			out.say("wrote anew", plural(x.ShardsRepaired, "shard"))
		}
	}
	return out
}

// words are names and values; those that say nothing are left out.
type words [][2]string

func (w *words) say(name, value string) {
	if value != "" {
		*w = append(*w, [2]string{name, value})
	}
}

func (w *words) size(name string, n int64) {
	if n != 0 {
		w.say(name, output.Size(n))
	}
}

func (w *words) count(name string, n int, noun string) {
	if n != 0 {
		w.say(name, plural(n, noun))
	}
}

// verified is about a whole repository where packs were read.
func (w *words) verified(t client.Task) {
	x := t.Result
	w.count("read", x.PacksVerified, "pack")
	switch {
	case x.CycleComplete:
		w.say("cycle", "complete")
	case x.BytesLeft > 0:
		w.say("cycle", output.Size(x.BytesLeft)+" left")
	}
	w.count("proven", x.PointsProven, "restore point")
	w.count("damaged", x.PacksDamaged, "pack")
	w.count("not whole", x.PointsDamaged, "restore point")
}

func (w *words) collected(t client.Task) {
	x := t.Result
	if t.State == client.StateSucceeded || t.State == client.StateWarning {
		w.say("freed", output.Size(x.BytesFreed))
	}
	if x.PacksCompacted > 0 {
		w.say("compacted", fmt.Sprintf("%s of %s to %s", plural(x.PacksCompacted, "pack"), output.Size(x.BytesCompacted), output.Size(x.BytesRewritten)))
	}
	w.size("needed", x.BytesLive)
	w.size("not needed", x.BytesDead)
	w.count("left to the next collect", x.PacksLater, "pack")
	if x.NoRoom {
		w.say("no room", "to rewrite all that should be")
	}
}

func (w *words) healed(x client.TaskResult) {
	w.count("moved", x.ObjectsMoved, "object")
	if x.ObjectsHealed > 0 {
		w.say("fetched", plural(x.ObjectsHealed, "object")+" of "+output.Size(x.BytesHealed))
	}
	w.count("put back", x.RecordsRestored, "record")
	w.count("found nowhere", x.ObjectsMissing, "object")
	w.count("put aside", x.PacksQuarantined, "damaged pack")
	w.count("still in place", x.PacksKept, "damaged pack")
	w.count("not whole", x.PointsDamaged, "restore point")
}
