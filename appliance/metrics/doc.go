// Package metrics is what the appliance tells Prometheus: it counts what passes by, asks the catalog for the rest when
// somebody reads, and renders both.
//
// It decides nothing and stores nothing: a counter begins at 0 with each process, as Prometheus expects, and every gauge
// is read when it is asked for. Its invariant: a series that cannot be told is absent, never 0, so that no alert is
// silenced by what failed to be read.
package metrics
