// Package identity says who is asking: the one-time set-up token, users with passwords, API tokens, and the
// appliance's own certificate.
//
// It decides nothing about what a user may do (there is one role yet, the administrator) and keeps no state but the
// files it names and what its Store keeps. Its invariant: no secret is stored, logged or returned a second time; what
// is kept of tokens and passwords cannot be turned back into them.
package identity
