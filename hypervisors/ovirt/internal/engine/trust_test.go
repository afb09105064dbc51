package engine

import (
	"bytes"
	"encoding/pem"
	"slices"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
)

// FuzzCerts reads the CA that an engine serves.
func FuzzCerts(f *testing.F) {
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bytes.Repeat([]byte{0x30, 0x82, 1, 2}, 70)})
	boundary.Add(f, block, boundary.Binary(block[:64]))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		certs, err := parseCerts(p)
		if err != nil && len(certs) > 0 || slices.Contains(certs, nil) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
	})
}
