// Package httpapi is the REST interface of the appliance on echo: it authenticates, checks requests against
// api/openapi.yaml, translates between its types and the catalog's, and renders errors as problems.
//
// It does no work of its own: everything asked of it goes to a Core, and who may ask is identity's business. Its
// invariant: no request reaches a handler before it carries a valid token (set-up, login, health and the document
// apart) and before its query and body are what the document says.
//
// What all operations have in common stands in the middleware, driven by the document: ETags and If-Match, Idempotency-Key,
// `fields`, limits by token, traces. Between the look at an ETag and the change that asked for it no other request of this
// process comes; another manager on the same database may.
//
// Concurrency: Stream is written by whoever publishes and read by any number of subscribers, under its own mutex,
// as are limiter and changes. Nothing else in the package is shared between requests and changes.
package httpapi
