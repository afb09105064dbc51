//go:build linux

package blockdev_test

import "unsafe"

// uintptrOf says where a slice begins, for tests that align their own buffers.
func uintptrOf(p []byte) uintptr { return uintptr(unsafe.Pointer(&p[0])) }
