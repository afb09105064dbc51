package seal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	p, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestKnownAnswers uses vectors published by others: test case 16 of McGrew and Viega, "The Galois/Counter Mode of
// Operation", and appendix A.3.1 of draft-irtf-cfrg-xchacha-03.
func TestKnownAnswers(t *testing.T) {
	tests := []struct {
		c                             Cipher
		key, nonce, aad, text, sealed string
	}{
		{
			AES256GCM, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
			"feedfacedeadbeeffeedfacedeadbeefabaddad2",
			"d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
			"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
				"76fc6ece0f4e1768cddf8853bb2d551b",
		},
		{
			XChaCha20, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", "404142434445464748494a4b4c4d4e4f5051525354555657",
			"50515253c0c1c2c3c4c5c6c7",
			hex.EncodeToString([]byte("Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.")),
			"bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b4522" +
				"f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c68b13b52e" +
				"c0875924c1c7987947deafd8780acf49",
		},
	}
	for _, tt := range tests {
		aead, err := newAEAD(tt.c, unhex(t, tt.key))
		if err != nil {
			t.Fatal(err)
		}
		got := aead.Seal(nil, unhex(t, tt.nonce), unhex(t, tt.text), unhex(t, tt.aad))
		if want := unhex(t, tt.sealed); !bytes.Equal(got, want) {
			t.Errorf("%v seals to %x, want %x", tt.c, got, want)
		}
	}
}

func TestCiphersDoNotOpenEachOther(t *testing.T) {
	ciphers := []Cipher{AES256GCM, XChaCha20}
	for _, c := range ciphers {
		for _, d := range ciphers {
			x, err := NewCipherBox(c, [32]byte{1}, 1, 1, ID{1}, ID{2}, Salt{3})
			if err != nil {
				t.Fatal(err)
			}
			y, err := NewCipherBox(d, [32]byte{1}, 1, 1, ID{1}, ID{2}, Salt{3})
			if err != nil {
				t.Fatal(err)
			}
			got, err := y.Open(nil, Frame, 1, 2, x.Seal(nil, Frame, 1, 2, []byte("text")))
			if c == d && (err != nil || string(got) != "text") {
				t.Errorf("%v: %q, %v", c, got, err)
			} else if c != d && !errors.Is(err, ErrForged) {
				t.Errorf("%v opened as %v: %q, %v", c, d, got, err)
			}
		}
	}
	if _, err := NewCipherBox(3, [32]byte{1}, 1, 1, ID{1}, ID{2}, Salt{3}); err == nil || Cipher(3).Known() || Cipher(0).Known() {
		t.Error("a cipher that is none is accepted")
	}
	if !Preferred().Known() {
		t.Errorf("Preferred = %v", Preferred())
	}
}
