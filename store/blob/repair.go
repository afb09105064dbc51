package blob

import "context"

// Repairer is a Store that has redundancy of its own and can put an object right from it. A wrapper around a Store
// implements it by Repair on what it wraps.
type Repairer interface {
	// Repair looks at every part of an object, rebuilds the parts that are missing or not what was written, durably,
	// and proves them. repaired says whether it changed anything: if so, reading the object again is worth while. It
	// is false without an error if every part is good, and also if there is nothing to rebuild the object from.
	// NotFound if no part of the object is there. It may be repeated, and run beside reads of the same object.
	Repair(ctx context.Context, name string) (repaired bool, err error)
}

// Repair asks s to repair an object, if it can.
func Repair(ctx context.Context, s Store, name string) (repaired bool, err error) {
	if r, ok := s.(Repairer); ok {
		return r.Repair(ctx, name)
	}
	return false, nil
}
