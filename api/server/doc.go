// Package server holds the types and routes of Cairn's REST interface, generated from api/openapi.yaml.
//
// It is not the server: appliance/httpapi implements its StrictServerInterface. Its invariant: nothing in it is
// written by hand but this comment.
package server
