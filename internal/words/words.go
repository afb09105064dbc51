// Package words puts numbers into sentences for people. It translates nothing. Its invariant: one is never many.
package words

import "fmt"

// Count writes a number with what is counted: one if it is exactly one ("object is damaged"), else many ("objects are
// damaged").
func Count[N int | int64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
