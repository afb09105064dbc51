// Package httpapi is the REST interface of the appliance on echo: it authenticates, checks requests against
// api/openapi.yaml, translates between its types and the catalog's, and renders errors as problems.
//
// It does no work of its own: everything asked of it goes to a Core, and who may ask is identity's business. Its
// invariant: no request reaches a handler before it carries a valid token (set-up, login, health and the document
// apart) and before its query and body are what the document says.
//
// Concurrency: Stream is written by whoever publishes and read by any number of subscribers, under its own mutex.
// Nothing else in the package is shared between requests and changes.
package httpapi
