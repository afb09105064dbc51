package ovirt

// The SDK's getters answer a value and whether it was there; its Must getters panic. These turn the former into plain
// values.

func val[T any](v T, _ bool) T { return v }

// idOf returns the id of an entity that may be absent.
func idOf[T interface{ Id() (string, bool) }](entity T, there bool) string {
	if !there {
		return ""
	}
	return val(entity.Id())
}

// items returns the entities of a collection that may be absent.
func items[E any](c interface{ Slice() []E }, there bool) []E {
	if !there {
		return nil
	}
	return c.Slice()
}

// sized keeps an engine's number of bytes within what can be one.
func sized(n int64, _ bool) int64 {
	if n < 0 || n > 1<<60 {
		return 0
	}
	return n
}
