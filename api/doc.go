// Package api holds the contract of Cairn's REST interface: openapi.yaml.
//
// Server types and the Go client are generated from it (packages server and client); nothing here is written by
// hand except the document. Its invariant: what the appliance accepts and answers is in the document, and the
// generated files are those that `go generate ./api` makes of it.
package api

import _ "embed"

// Document is openapi.yaml, byte for byte.
//
//go:embed openapi.yaml
var Document []byte

// BasePath is where the operations of the document live on the server.
const BasePath = "/api/v1"

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config server/config.yaml openapi.yaml
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config client/config.yaml openapi.yaml
