package seeded

import (
	"math"
	"strconv"
	"testing"
)

func TestSeed(t *testing.T) {
	t.Setenv("CAIRN_SOAK", "")
	t.Setenv("CAIRN_SEED", "")
	always := Seed(t)
	if Seed(t) != always {
		t.Error("a test has another seed the second time")
	}
	t.Run("other", func(t *testing.T) {
		if Seed(t) == always {
			t.Error("another test has the same seed")
		}
	})
	t.Setenv("CAIRN_SOAK", "1")
	if a, b := Seed(t), Seed(t); a == b {
		t.Error("asked for many, and the seed is the same")
	}
	t.Setenv("CAIRN_SEED", strconv.FormatUint(math.MaxUint64, 10))
	if Seed(t) != math.MaxUint64 {
		t.Error("a given seed is not taken")
	}
}
