package erasure

import "testing"

// An older copy of a member does not bring back what was deleted after it was made, nor while it failed.
func TestOlderCopyBringsNothingBack(t *testing.T) {
	both := happening{what: "session", slots: []int{0, 1}, slot: -1}
	put, remove := happening{what: "put", slot: -1}, happening{what: "delete", slot: -1}
	rename := happening{what: "rename", slot: -1}
	fails := happening{what: "delete", slot: 0, fails: "names"}
	clone, back := happening{what: "copy"}, happening{what: "back"}
	for name, path := range map[string][]happening{
		"deleted since":              {both, put, clone, both, remove, back},
		"deleted since, then others": {both, put, put, clone, both, remove, put, back},
		"renamed, then deleted":      {both, put, clone, both, rename, remove, back},
		"deleted while it failed":    {both, put, fails, clone, both, back},
		"used since it is back":      {both, put, clone, both, remove, back, both, put},
	} {
		w := newWorld(t, Layout{1, 1}, nil)
		if possible, err := w.replay(path); err != nil || !possible {
			t.Errorf("%s: %v, %v", name, possible, err)
			continue
		}
		if _, err := w.judge(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := w.leave(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
