package tree

import "testing"

func TestHeight(t *testing.T) {
	const c = 64 << 10
	tests := []struct {
		size int64
		want uint8
	}{
		{0, 0}, {1, 1}, {c, 1}, {256 * c, 1}, {256*c + 1, 2}, {65536 * c, 2}, {65536*c + 1, 3}, {256 * 65536 * c, 3}, {1 << 62, 6},
	}
	for _, tt := range tests {
		if got := Height(tt.size, c); got != tt.want {
			t.Errorf("Height(%d) = %d, want %d", tt.size, got, tt.want)
		}
	}
}
