package erasure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/campaign/memory"
)

// step is one thing that happens.
type happening struct {
	what  string // session put delete rename replace scrub copy back
	slots []int  // session: who is there
	slot  int    // replace, copy, back; of who fails, -1: nobody
	fails string
}

func (h happening) String() string {
	switch {
	case h.what == "session":
		return fmt.Sprintf("session%v", h.slots)
	case h.slot < 0:
		return h.what
	case h.fails != "":
		return fmt.Sprintf("%s, %d fails (%s)", h.what, h.slot, h.fails)
	}
	return fmt.Sprint(h.what, " ", h.slot)
}

// happenings lists all there can be.
func happenings(l Layout) (out []happening) {
	for _, slots := range subsets(l) {
		out = append(out, happening{what: "session", slots: slots, slot: -1})
	}
	for _, what := range []string{"put", "delete", "rename"} {
		out = append(out, happening{what: what, slot: -1})
		for i := range l.Members() {
			for _, fails := range []string{"all", "data", "names"} {
				out = append(out, happening{what: what, slot: i, fails: fails})
			}
		}
	}
	for i := range l.Members() {
		out = append(out, happening{what: "replace", slot: i}, happening{what: "rebuild", slot: i})
	}
	return append(out, happening{what: "scrub", slot: -1}, happening{what: "copy", slot: 0}, happening{what: "back", slot: 0})
}

// subsets lists the members that can be there.
func subsets(l Layout) (out [][]int) {
	for bits := range 1 << l.Members() {
		var slots []int
		for i := range l.Members() {
			if bits>>i&1 == 1 {
				slots = append(slots, i)
			}
		}
		if len(slots) >= l.Data {
			out = append(out, slots)
		}
	}
	return out
}

// do lets one thing happen; possible: it could.
func (w *world) do(h happening) (possible bool, err error) {
	switch h.what {
	case "session":
		return w.session(h.slots)
	case "copy":
		err := w.leave()
		w.copies[h.slot], w.copied[h.slot] = &disk{Store: w.disks[h.slot].Clone(), lie: w.disks[h.slot].lie}, w.told[h.slot]
		return true, err
	case "back":
		if w.copies[h.slot] == nil {
			return false, nil
		}
		err := w.leave()
		w.disks[h.slot], w.told[h.slot], w.copies[h.slot], w.rolled = w.copies[h.slot], w.copied[h.slot], nil, true
		return true, err
	}
	if w.s == nil || h.fails != "" && !slices.Contains(w.here, h.slot) {
		return false, nil
	}
	if h.fails != "" {
		w.disks[h.slot].fails = h.fails
		defer func() { w.disks[h.slot].fails = "" }()
	}
	possible, err = w.change(h)
	if possible {
		// Who failed is not told before the owner leaves.
		told := slices.DeleteFunc(slices.Clone(w.here), func(i int) bool { return w.told[i] != w.changes || h.fails == "all" && i == h.slot })
		w.changes++
		w.tell(told)
	}
	return possible, err
}

func (w *world) session(slots []int) (possible bool, err error) {
	if err := w.leave(); err != nil {
		return true, err
	}
	s, err := w.open(slots, false)
	if err != nil {
		return false, transient(err)
	}
	release, err := s.Acquire(context.Background())
	if err != nil {
		return false, errors.Join(transient(err), s.Close())
	}
	w.changes++
	w.tell(slots)
	w.s, w.release, w.here = s, release, slots
	return true, nil
}

func (w *world) change(h happening) (possible bool, err error) {
	ctx := context.Background()
	switch h.what {
	case "put":
		name := fmt.Sprint("o/", w.serial)
		w.serial++
		if err := blob.Put(ctx, w.s, name, []byte(name)); err != nil {
			return true, transient(err)
		}
		w.live = append(w.live, name)
		w.identify(name)
	case "delete":
		if len(w.live) == 0 {
			return false, nil
		}
		name := w.live[0]
		w.live = w.live[1:]
		if err := w.s.Delete(ctx, name); err != nil {
			return true, transient(err)
		}
		w.gone = append(w.gone, name)
	case "rename":
		if len(w.live) == 0 || strings.HasPrefix(w.live[0], "r/") {
			return false, nil
		}
		from, to := w.live[0], "r/"+w.live[0]
		w.live = w.live[1:]
		if err := w.s.Rename(ctx, from, to); err != nil {
			return true, transient(err)
		}
		w.gone, w.live = append(w.gone, from), append(w.live, to)
	case "replace":
		return w.replace(h.slot)
	case "rebuild":
		if !slices.Contains(w.here, h.slot) {
			return false, nil
		}
		return true, unreadable(w.s.Rebuild(ctx, w.ids[h.slot], nil))
	case "scrub":
		_, err := w.s.Scrub(ctx, ScrubOptions{}, nil)
		return true, transient(err)
	}
	return true, nil
}

func (w *world) replace(slot int) (possible bool, err error) {
	w.fresh++
	d := &disk{Store: memory.New(fmt.Sprint("fresh", w.fresh)), lie: w.disks[slot].lie}
	id, err := w.s.Replace(context.Background(), w.ids[slot], Member{ID: fmt.Sprint("f", w.fresh), Store: d, Domain: w.ids[slot]})
	if fault.KindOf(err) == fault.Conflict && err != nil || fault.KindOf(err) == fault.Transient && err != nil {
		return false, nil // others lack what it has
	}
	w.disks[slot], w.ids[slot], w.rolled, w.copies[slot], w.told[slot] = d, id, true, nil, w.changes
	if !slices.Contains(w.here, slot) {
		w.here = append(slices.Clone(w.here), slot)
	}
	return true, err
}

// identify notes the write that an object is.
func (w *world) identify(name string) {
	for _, d := range w.disks {
		for _, file := range d.Names(objectFolder + "/") {
			if p, ok := parsePart(file); ok && p.name == name {
				w.writes[p.write] = name
			}
		}
	}
}

// transient lets errors pass that say that it may work later.
func transient(err error) error {
	if err == nil {
		return nil
	}
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) == fault.Transient && (meaning == "" || advice == "") && !errors.Is(err, errDisk) {
		return fmt.Errorf("not said what to do: %w", err)
	}
	if fault.KindOf(err) != fault.Transient {
		return err
	}
	return nil
}

// unreadable lets errors pass that an object has too few shards left, which replacing members can lead to.
func unreadable(err error) error {
	if fault.KindOf(err) == fault.Corrupt {
		return nil
	}
	return transient(err)
}
