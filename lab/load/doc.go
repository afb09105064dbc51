// Package load measures the manager's API with as much in the catalog as a large site has, over TLS and with a real
// cairnd in a process of its own: how long lists take, and whether it stays well while many follow the events and ask.
//
// It measures no backup: the platform is in memory and its disks are small. Its invariant: every figure is of whole
// requests as a client sees them, and an answer that is not what was asked for ends the measurement.
package load
