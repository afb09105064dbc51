package blob

import "context"

// Repairer is a Store that has redundancy of its own and can put an object right from it. A wrapper around a Store
// implements it by Repair on what it wraps.
type Repairer interface {
	// Repair looks at every part of an object, rebuilds the parts that are missing or not what was written, durably,
	// and proves them. repaired says whether it changed anything: if so, reading the object again is worth while, also
	// if there is an error, which is about the parts that could not be put right. False without an error: nothing that
	// can be reached is damaged, as far as the store can tell. Corrupt: more is damaged than can be rebuilt; what there
	// is stays as it is. Transient: parts that are away would be needed. NotFound if no part of the object is there.
	// It may be repeated, and run beside reads of the same object.
	Repair(ctx context.Context, name string) (repaired bool, err error)
}

// Repair asks s to repair an object, if it can.
func Repair(ctx context.Context, s Store, name string) (repaired bool, err error) {
	if r, ok := s.(Repairer); ok {
		return r.Repair(ctx, name)
	}
	return false, nil
}
