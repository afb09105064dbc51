package nbd

// Numbers of the protocol, as in its specification.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOldStyle   = 0x00420281861253
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	handshakeFixedNewstyle = 1 << 0
	handshakeNoZeroes      = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10

	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErrBit      = 1 << 31
	repErrUnsup    = repErrBit | 1
	repErrPolicy   = repErrBit | 2
	repErrInvalid  = repErrBit | 3
	repErrTLSReqd  = repErrBit | 5
	repErrUnknown  = repErrBit | 6
	repErrShutdown = repErrBit | 7
	repErrTooBig   = repErrBit | 9

	infoExport      = 0
	infoDescription = 2
	infoBlockSize   = 3

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	chunkFlagDone    = 1 << 0
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkErrBit      = 1 << 15
	chunkError       = chunkErrBit | 1
	chunkErrorOffset = chunkErrBit | 2
)

// Transmission flags of an export.
const (
	flagHasFlags       = 1 << 0
	flagReadOnly       = 1 << 1
	flagSendFlush      = 1 << 2
	flagSendFUA        = 1 << 3
	flagSendWriteZero  = 1 << 6
	flagSendDF         = 1 << 7
	flagCanMultiConn   = 1 << 8
	flagSendFastZeroes = 1 << 11
)

// Flags is a set of command flags.
type Flags uint16

// The command flags that callers may set.
const (
	// FUA: the reply comes after the data is durable.
	FUA Flags = 1 << 0
	// NoHole: zeros are to be allocated.
	NoHole Flags = 1 << 1
	// FastZero: fail with ENOTSUP at once where zeroing is no faster than writing.
	FastZero Flags = 1 << 4
)

// BaseAllocation is the metadata context that tells data from holes and zeros.
const BaseAllocation = "base:allocation"

// Bits of an Extent's Flags. StateHole and StateZero belong to base:allocation, StateDirty to contexts named
// "qemu:dirty-bitmap:…".
const (
	StateHole  uint32 = 1 << 0
	StateZero  uint32 = 1 << 1
	StateDirty uint32 = 1 << 0
)

// Extent is the length of a byte range and its flags in one metadata context. Where it starts follows from those
// before it.
type Extent struct {
	Length int64
	Flags  uint32
}

// Limits that hold whatever the other side says.
const (
	maxString        = 4096      // of any name or message, as the specification has it
	maxOptionPayload = 64 << 10  // of one option or option reply
	maxOptionReplies = 256       // to one option
	maxPayload       = 32 << 20  // of one READ or WRITE
	maxStatusLength  = 1<<32 - 1 // of one request without payload
	maxExtents       = 1 << 20   // in one BLOCK_STATUS reply
	maxGaps          = 1024      // pieces of a read that arrived out of order
	maxErrorChunks   = 64        // for one request
)
