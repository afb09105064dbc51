package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"runtime"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// String returns the cipher's name.
func (c Cipher) String() string {
	switch c {
	case AES256GCM:
		return "AES-256-GCM"
	case XChaCha20:
		return "XChaCha20-Poly1305"
	}
	return fmt.Sprintf("cipher %d", uint8(c))
}

// Known reports whether c is a cipher this program reads.
func (c Cipher) Known() bool { return c == AES256GCM || c == XChaCha20 }

// Preferred returns the faster cipher on this machine: AES-256-GCM where the CPU computes AES and carry-less products
// itself, and XChaCha20-Poly1305 elsewhere (AES in software is several times slower, and its tables leak by timing).
func Preferred() Cipher {
	var fast bool
	switch runtime.GOARCH {
	case "amd64", "386":
		fast = cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ
	case "arm64":
		fast = cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		fast = cpu.S390X.HasAES && cpu.S390X.HasAESGCM
	case "ppc64", "ppc64le":
		fast = true // AES instructions since POWER8, the oldest that Go runs on
	}
	if fast {
		return AES256GCM
	}
	return XChaCha20
}

func newAEAD(c Cipher, key []byte) (cipher.AEAD, error) {
	switch c {
	case AES256GCM:
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(block)
	case XChaCha20:
		return chacha20poly1305.NewX(key)
	}
	return nil, fmt.Errorf("unknown %v", c)
}
