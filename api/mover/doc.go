// Package mover is the protocol between the manager and its movers: messages and services generated from the .proto
// files here.
//
// It has no behaviour. The manager's side is appliance/fleet, the mover's side datamover/control. Its invariant: the
// generated files are those that `go generate ./api/mover` makes of the .proto files.
package mover

//go:generate ../../scripts/protoc.sh
