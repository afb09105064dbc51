package ovirtsim

import (
	"iter"
	"slices"
)

// table is a collection of entities in the order in which they were made.
type table[T any] struct {
	byID map[string]T
	ids  []string
}

func (t *table[T]) add(id string, v T) {
	if t.byID == nil {
		t.byID = map[string]T{}
	}
	if _, there := t.byID[id]; !there {
		t.ids = append(t.ids, id)
	}
	t.byID[id] = v
}

func (t *table[T]) get(id string) (T, bool) {
	v, ok := t.byID[id]
	return v, ok
}

func (t *table[T]) remove(id string) {
	if _, there := t.byID[id]; there {
		delete(t.byID, id)
		t.ids = slices.DeleteFunc(t.ids, func(s string) bool { return s == id })
	}
}

func (t *table[T]) len() int { return len(t.ids) }

// all yields a copy's worth: entities may be added and removed meanwhile.
func (t *table[T]) all() iter.Seq2[string, T] {
	ids := slices.Clone(t.ids)
	return func(yield func(string, T) bool) {
		for _, id := range ids {
			if v, ok := t.byID[id]; ok && !yield(id, v) {
				return
			}
		}
	}
}

// find returns the first entity that is wanted.
func (t *table[T]) find(wanted func(T) bool) (T, bool) {
	for _, v := range t.all() {
		if wanted(v) {
			return v, true
		}
	}
	var none T
	return none, false
}
