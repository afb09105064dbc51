package store

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/manifest"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// Vectors that no program computes twice the same, since compressors change and age draws random numbers. They are
// opened instead.
const (
	vectorZstd = "28b52ffd60000fed0400840861206672616d65206f662074657874207468617420697320636f6d707265737365643a204011e4b99069442100e1c4a990796451403124191009040100010409101924314051647990a9c4e10021446990b9e4114071a4d9104984c1004184c91059a4f14091e43990e944a10061c42990f964d140b124991089048100810489109924b140d164f9040011801f921f00564046df215786c14fa5c8"
	vectorS2   = "80208c61206672616d65206f662074657874207468617420697320636f6d707265737365643a2011241900b802f0634011e4b99069442100e1c4a990796451403124191009040100010409101924314051647990a9c4e10021446990b9e4114071a4d9104984c1004184c91059a4f14091e43990e944a10061c42990f964d140b124991089048100810489109924b140d164f991381900c802ee040819008c0271cc19000803"
	vectorAge  = "6167652d656e6372797074696f6e2e6f72672f76310a2d3e20583235353139204f7566346f383469562b46706565576b344b73734c766363396d71456a2b593238454934354459784343300a446a6241414f6c61333437626268596650793356323373347a44637871346c306d576c65656658395442590a2d2d2d20383176723744646a725835533532562b596c3331654f4c47614b694f715a3556345230722b4f46356530770adc324bf2e39065bab0c85b38b7226e73e58f05f4c14e65a5d96b121163ded278d0ce48299048d79868af076e0959694b7249a537df07c3299de4f06e72d55ddb4559f00459a27426b9458924d68d7e86cf9e50011b1813eed865a931d3054bb5beee16c6e72c216895a988569a4422fbca0f8f6e94a059d5259c24790a4a77c5b0fff59a918c39ec35cb32779f028b3503f7605d34beb6dbe497d57bad0aaacd8c46a2db1c6eeaafff8bbbf40bf8120a0125"
	vectorID   = "AGE-SECRET-KEY-1S8TF47QS0TH539ZJRMF8QE65X60QS42F4GSZQCHPJ3TVMWR8MXHQCN67QJ"
)

// vectorText is the plaintext of the compressed vectors.
func vectorText() []byte {
	p := make([]byte, 4096)
	for i := range p {
		p[i] = "a frame of text that is compressed: "[i%36]
	}
	for i := 1000; i < 1100; i++ {
		p[i] = byte(i * i)
	}
	return p
}

// packBuffer is a pack being written.
type packBuffer struct{ bytes.Buffer }

func (*packBuffer) Commit(context.Context) error { return nil }
func (*packBuffer) Abort() error                 { return nil }

// vectorSet has the inputs that section 14 names.
type vectorSet struct {
	keys       seal.KeySet
	repository seal.ID
	object     seal.ID
	salt       seal.Salt
	key        Key
	at         time.Time
}

func newVectorSet() *vectorSet {
	v := &vectorSet{at: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)}
	v.keys.ID = 1
	count(v.keys.IDs[:], 0)
	count(v.keys.Data[:], 0x20)
	count(v.keys.Seed[:], 0x80)
	count(v.repository[:], 0x40)
	count(v.object[:], 0x50)
	count(v.salt[:], 0x60)
	count(v.key.secret[:], 0xa0)
	return v
}

func (v *vectorSet) sign(domain string, body []byte) string {
	return hex.EncodeToString(ed25519.Sign(ed25519.NewKeyFromSeed(v.keys.Seed[:]), append([]byte(domain), body...)))
}

func (v *vectorSet) hex() string { return hex.EncodeToString(v.repository[:]) }

// moreVectors computes the vectors of keys, packs, manifests and small objects.
func moreVectors(t *testing.T, line func(name, value string)) {
	t.Helper()
	v := newVectorSet()
	line("key file of the key a0 .. bf", v.key.text())
	body := must(json.Marshal(configBody{Format: 1, Repository: v.hex(), Name: "a", ChunkBytes: 65536, Created: v.at}))
	line("config", string(must(json.Marshal(configFile{body, hex.EncodeToString(v.keys.Public()), v.sign(signConfig, body)}))))
	v.wrappings(t, line)
	paper := PaperKey{key: v.key}
	line("paper key a0 .. bf, its lines joined by dashes", strings.Join(paper.lines(), "-"))
	v.pack(t, line)
	for _, c := range []seal.Cipher{seal.AES256GCM, seal.XChaCha20} {
		box := must(seal.NewCipherBox(c, v.keys.Data, 1, 1, v.repository, v.object, v.salt))
		for codec, coded := range []string{hex.EncodeToString([]byte("abc")), vectorZstd, vectorS2} {
			plain := must(hex.DecodeString(coded))
			n := map[bool]int{true: 3, false: 4096}[codec == 0]
			line(fmt.Sprintf("frame %d of codec %d, cipher %d", codec, codec, c),
				hex.EncodeToString(box.Seal(nil, seal.Frame, uint64(codec), uint64(codec)<<32|uint64(n), plain)))
		}
		record := fmt.Sprintf(`{"format":1,"pieces":[],"point":{"id":"rp_%s","sequence":1,"images":[]}}`, strings.ToLower(ulid.ULID(v.object).String()))
		line(fmt.Sprintf("manifest, cipher %d", c), hex.EncodeToString(must(manifest.EncodeSalted(&v.keys, c, v.repository, v.object, v.salt, []byte(record)))))
	}
	line("epoch", string(must(json.Marshal(epochFile{1, 3, 123, "host", v.at}))))
	line("lease", string(must(json.Marshal(leaseFile{1, strings.ToLower(ulid.ULID(v.object).String()), 3, "vm", "mover", v.at, false}))))
	r := Repository{hasher: chunk.NewHasher(v.keys.IDs)}
	body = must(json.Marshal(prunedBody{Format: 1, Repository: v.hex(), Series: r.seriesKey("vm"), Ranges: [][2]uint64{{1, 3}, {5, 5}}, Time: v.at}))
	line("pruned, of the series vm", string(must(json.Marshal(prunedFile{body, v.sign(signPruned, body)}))))
}

func (v *vectorSet) wrappings(t *testing.T, line func(name, value string)) {
	w := wrappingBody{Format: 1, Repository: v.hex(), ID: hex.EncodeToString(v.object[:]), KeySet: 1, Created: v.at}
	for _, kind := range []string{wrapByKeyFile, wrapByPaper} {
		w.Kind, w.Key, w.Salt = kind, v.key.Fingerprint(), hex.EncodeToString(v.salt[:])
		box := must(seal.NewBox(v.key.secret, 1, 1, v.repository, v.object, v.salt))
		w.Sealed = hex.EncodeToString(box.Seal(nil, seal.KeyWrap, 0, wrapDetail(kind), v.keys.Append(nil)))
		line("wrapping for the "+kind+" a0 .. bf", string(must(w.encode(&v.keys))))
	}
	id := must(age.ParseX25519Identity(vectorID))
	w.Kind, w.Key, w.Salt, w.Sealed = wrapByAge, id.Recipient().String(), "", vectorAge
	text := must(w.encode(&v.keys))
	line("age identity", vectorID)
	line("wrapping for its recipient", string(text))
	// It does open, to the keys it says.
	got := must(parseWrapping(text))
	keys, err := (&identity{identities: []age.Identity{id}}).unwrap(&got, v.repository)
	if err != nil || *keys != v.keys {
		t.Errorf("the age vector opens to %v, %v", keys, err)
	}
}

// pack writes a pack of one chunk whose first block is present, its last zero, and the others in another chunk.
func (v *vectorSet) pack(t *testing.T, line func(name, value string)) {
	coder := must(pack.NewCoder(pack.Off))
	defer coder.Close()
	var out packBuffer
	head := pack.Header{Kind: pack.Data, Repository: v.repository, ID: v.object, KeyID: 1, Salt: v.salt}
	w := must(pack.NewWriter(&out, head, v.keys.Data, 4, coder, pack.NewBufferPool(4096)))
	block, data := make([]byte, 4096), make([]byte, 4*4096)
	count(block, 0)
	copy(data, block)
	copy(data[4096:], block)
	copy(data[8192:], block)
	hasher := chunk.NewHasher(v.keys.IDs)
	prints := make([]chunk.Fingerprint, 4)
	hasher.Prints(data, prints)
	id := hasher.Chunk(data)
	other := hasher.Chunk(append(bytes.Clone(data[:12288]), block...))
	e := pack.Entry{Type: pack.Chunk, ID: id, Length: 4096, Present: 1, Zeros: 8, Refs: []pack.Ref{{Target: other, Block: 1}, {Target: other, Block: 0}}}
	must(w.AddFrame(block, []pack.Item{{Entry: e, Prints: prints}}))
	must(w.Finish(t.Context()))
	p := out.Bytes()
	n := len(p) - pack.TrailerBytes - 64 - seal.Overhead
	at := pack.HeaderBytes + 4096 + seal.Overhead
	box := must(seal.NewBox(v.keys.Data, 1, 1, v.repository, v.object, v.salt))
	dir := must(box.Open(nil, seal.Directory, 0, 1<<32|uint64(n-at-seal.Overhead), p[at:n]))
	line("directory of a pack", hex.EncodeToString(dir))
	line("the same, sealed", hex.EncodeToString(p[at:n]))
	line("its fingerprints, sealed", hex.EncodeToString(p[n:n+64+seal.Overhead]))
	line("its trailer", hex.EncodeToString(p[len(p)-pack.TrailerBytes:]))
}

// TestCompressedVectorsOpen decodes the vectors that are not computed anew.
func TestCompressedVectorsOpen(t *testing.T) {
	coder := must(pack.NewCoder(pack.Standard))
	defer coder.Close()
	for codec, coded := range map[pack.Codec]string{pack.Zstd: vectorZstd, pack.S2: vectorS2} {
		got, err := coder.Decode(nil, must(hex.DecodeString(coded)), codec, 4096)
		if err != nil || !bytes.Equal(got, vectorText()) {
			t.Errorf("codec %d: %v", codec, err)
		}
	}
	id := must(age.ParseX25519Identity(vectorID))
	r, err := age.Decrypt(bytes.NewReader(must(hex.DecodeString(vectorAge))), id)
	if err != nil {
		t.Fatal(err)
	}
	v := newVectorSet()
	if got := must(io.ReadAll(r)); !bytes.Equal(got, agePlain(v.repository, v.object, &v.keys)) {
		t.Errorf("age vector holds %x", got)
	}
}
