package erasure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"
)

// What a shard's file is made of; FORMAT.md has it in full.
const (
	headerBytes   = 512
	trailerBytes  = 64
	hashBytes     = 32
	formatVersion = 1
	headerMagic   = "CAIRNSHD"
	trailerMagic  = "CAIRNEND"
	maxName       = 255
	nameAt        = 64
	keyContext    = "cairn 2026-11-22 erasure shard unit key"
)

// id is a set's or a write's id.
type id [16]byte

// shardHeader is what stands at the beginning of a shard's file. Everything but the name is bound into the hash of
// every unit, so shards of two writes, or two shards of one, are never taken for each other.
type shardHeader struct {
	Set     id
	Write   id
	Group   uint32
	K, N    uint8
	Shard   uint8
	Chunk   uint32
	Unit    uint32
	Created string // the object's name when it was written
}

func (h shardHeader) encode() []byte {
	p := make([]byte, headerBytes)
	copy(p, headerMagic)
	le := binary.LittleEndian
	le.PutUint16(p[8:], formatVersion)
	le.PutUint16(p[10:], headerBytes)
	p[12], p[13], p[14] = h.K, h.N, h.Shard
	le.PutUint32(p[16:], h.Group)
	le.PutUint32(p[20:], h.Chunk)
	le.PutUint32(p[24:], h.Unit)
	copy(p[32:], h.Set[:])
	copy(p[48:], h.Write[:])
	p[15] = byte(len(h.Created))
	copy(p[nameAt:], h.Created)
	sum := sumHeader(p)
	copy(p[headerBytes-hashBytes:], sum[:])
	return p
}

func sumHeader(p []byte) [hashBytes]byte { return blake3.Sum256(p[:headerBytes-hashBytes]) }

// decodeHeader reads a header and believes nothing that is not possible.
func decodeHeader(p []byte) (h shardHeader, err error) {
	if len(p) < headerBytes {
		return h, fmt.Errorf("a header of %d bytes", len(p))
	}
	p = p[:headerBytes]
	le := binary.LittleEndian
	if string(p[:8]) != headerMagic {
		return h, errors.New("not a shard")
	}
	if sum := sumHeader(p); !bytes.Equal(sum[:], p[headerBytes-hashBytes:]) {
		return h, errors.New("its header is damaged")
	}
	if v := le.Uint16(p[8:]); v != formatVersion || le.Uint16(p[10:]) != headerBytes {
		return h, fmt.Errorf("shard format %d is not known", v)
	}
	h = shardHeader{K: p[12], N: p[13], Shard: p[14], Group: le.Uint32(p[16:]), Chunk: le.Uint32(p[20:]), Unit: le.Uint32(p[24:])}
	copy(h.Set[:], p[32:])
	copy(h.Write[:], p[48:])
	h.Created = string(p[nameAt : nameAt+int(p[15])])
	if h.K == 0 || h.K > h.N || h.N > maxMembers || h.Shard >= h.N || h.Chunk != chunkBytes || h.Unit != unitBytes || len(h.Created) == 0 {
		return h, errors.New("its header has impossible values")
	}
	if !bytes.Equal(h.encode(), p) {
		return h, errors.New("its header has bytes where there should be none")
	}
	return h, nil
}

// sealer hashes the units of one shard. It is used by one goroutine at a time.
type sealer struct{ h *blake3.Hasher }

func (h shardHeader) sealer() *sealer {
	h.Created = "" // a rename keeps the content
	var key [32]byte
	blake3.DeriveKey(keyContext, h.encode()[:nameAt], key[:])
	keyed, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only if the key has not 32 bytes
	}
	return &sealer{keyed}
}

// sum appends the hash of unit u to out.
func (s *sealer) sum(out []byte, u int64, data []byte) []byte {
	s.h.Reset()
	_, _ = s.h.Write(data)
	_, _ = s.h.Write(binary.LittleEndian.AppendUint64(nil, uint64(u)))
	return s.h.Sum(out)
}

// trailerUnit is the number under which the trailer is hashed; no shard has as many units.
const trailerUnit = 1<<63 - 1

func (s *sealer) trailer(size int64) []byte {
	p := make([]byte, trailerBytes-hashBytes, trailerBytes)
	copy(p, trailerMagic)
	binary.LittleEndian.PutUint64(p[8:], uint64(size))
	return s.sum(p, trailerUnit, p)
}
