// Package boundary makes seeds for fuzz targets: an input with one number in it replaced by a value at which
// arithmetic goes wrong.
//
// It is for tests. Its invariant: every field of 1, 2, 4 or 8 bytes of a binary format, and every number of a text, is
// once each of the values. Random mutation does not find an overflow of a 64-bit sum in a million tries; these do at
// once, also in a plain `go test`, which runs the seeds.
package boundary

import (
	"bytes"
	"encoding/binary"
	"iter"
	"math"
	"regexp"
	"runtime"
	"testing"
)

// Values are what a length or an offset is set to.
var Values = []uint64{
	0, 1, math.MaxInt16, math.MaxUint16, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64,
}

// Binary yields base with each field set to each value, in both byte orders where they differ, each result in new
// memory. Fields of 1 byte begin anywhere, others at every second byte.
func Binary(base []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, width := range []int{1, 2, 4, 8} {
			for at := 0; at+width <= len(base); at += min(width, 2) {
				for _, field := range fields(width) {
					p := bytes.Clone(base)
					copy(p[at:], field)
					if !yield(p) {
						return
					}
				}
			}
		}
	}
}

// fields returns the values as they are written in a width; each once.
func fields(width int) (out [][]byte) {
	seen := map[string]bool{}
	for _, v := range Values {
		little, big := make([]byte, 8), make([]byte, 8)
		binary.LittleEndian.PutUint64(little, v)
		binary.BigEndian.PutUint64(big, v)
		for _, p := range [][]byte{little[:width], big[8-width:]} {
			if !seen[string(p)] {
				seen[string(p)] = true
				out = append(out, p)
			}
		}
	}
	return out
}

var number = regexp.MustCompile(`[0-9]+`)

// textValues are numbers as text, also such as no integer holds.
var textValues = []string{
	"0", "1", "-1", "32767", "65535", "2147483647", "2147483648", "4294967295", "9223372036854775807", "9223372036854775808",
	"18446744073709551615", "18446744073709551616", "-9223372036854775808", "1e400", "0.5", "",
}

// Text yields base with each run of digits set to each value, and cut off there.
func Text(base []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, at := range number.FindAllIndex(base, -1) {
			for _, v := range textValues {
				if !yield(append(append(bytes.Clone(base[:at[0]]), v...), base[at[1]:]...)) {
					return
				}
			}
			if !yield(bytes.Clone(base[:at[0]])) {
				return
			}
		}
	}
}

// Add gives a fuzz target of one []byte the base and all that seeds yield.
func Add(f *testing.F, base []byte, seeds iter.Seq[[]byte]) {
	f.Helper()
	f.Add(base)
	for p := range seeds {
		f.Add(p)
	}
}

// Slack is what a decoder may allocate whatever its input.
const Slack = 256 << 10

// Bounded fails the test if decode allocates more than factor bytes for each byte of input, and Slack.
func Bounded(t *testing.T, input, factor int, decode func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	decode()
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(input*factor+Slack); got > limit {
		t.Errorf("%d bytes were allocated for an input of %d, the limit is %d", got, input, limit)
	}
}
