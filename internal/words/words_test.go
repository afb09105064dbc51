package words

import "testing"

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 points are", 1: "1 point is", 2: "2 points are", 21: "21 points are"} {
		if got := Count(n, "point is", "points are"); got != want {
			t.Errorf("Count(%d) = %q, want %q", n, got, want)
		}
	}
}
