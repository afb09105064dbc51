// Package seeded gives random tests their seeds.
//
// It is for tests. Its invariant: what a run printed repeats it, and without being asked for anything else a test does the same each time.
package seeded

import (
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Seed is CAIRN_SEED where that is set, a new one each time where CAIRN_SOAK=1 asks for many, and otherwise always the same for a test
// of this name. It is printed.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed, how := byName(t.Name()), "always"
	if os.Getenv("CAIRN_SOAK") == "1" {
		seed, how = rand.Uint64(), "new" //nolint:gosec // a test's
	}
	if text := os.Getenv("CAIRN_SEED"); text != "" {
		given, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("CAIRN_SEED: %v", err)
		}
		seed, how = given, "given"
	}
	t.Logf("seed %d (%s); CAIRN_SEED=%d repeats it", seed, how, seed)
	return seed
}

func byName(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return h.Sum64()
}
