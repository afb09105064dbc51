// Package client is the typed Go client of Cairn's REST interface, generated from api/openapi.yaml.
//
// It is not where requests are retried, printed or waited for; callers do that. Its invariant: nothing in it is
// written by hand but this comment.
package client
