//go:build race

package store

// raceEnabled makes campaigns of one goroutine short: the race detector slows them ten times and finds nothing there.
const raceEnabled = true
