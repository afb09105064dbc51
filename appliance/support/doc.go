// Package support makes support bundles: one archive with what helps to find out what is wrong with an appliance.
//
// It gathers nothing itself and knows no catalog; package server hands it the parts. Its invariant: whatever the parts are, no secret
// that it was told of is in an archive, in clear, quoted, escaped, in hexadecimal or in base64, and nothing that looks like a secret is.
// Secrets shorter than four bytes are found only by where they stand.
package support
