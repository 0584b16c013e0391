// Package wire is touchline.v1: the block, the frame that carries blocks, and
// the control messages, as gateway and cloud exchange them over a WebSocket
// (docs/protocol.md is the same for readers without Go). Every decoder bounds
// what it allocates by what it was given, returns an error for anything
// malformed, and never panics. Nothing here starts a goroutine or keeps state
// between calls but the buffers of Encoder and Decoder.
package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"touchline"
)

// Subprotocol is the WebSocket subprotocol (RFC 6455, section 1.9).
const Subprotocol = "touchline.v1"

// UplinkPath is where the cloud takes uplinks.
const UplinkPath = "/v1/uplink"

// ArchivePath is where the cloud takes segments of another gateway's archive.
const ArchivePath = UplinkPath + "/archive"

// HeaderGateway is the request header of the upgrade that names the gateway,
// so that a load balancer can hash it. The cloud checks it against the
// credential.
const HeaderGateway = "X-Touchline-Gateway"

// Close codes of the WebSocket beyond those of RFC 6455. What a gateway does
// about each is in docs/protocol.md.
const (
	CloseProtocol     = 4400 // a frame or message that breaks the protocol
	CloseUnauthorized = 4401 // the credential is revoked, or counts no more
	CloseForbidden    = 4403 // not allowed here
	CloseTimeout      = 4408 // no hello in time
	CloseSuperseded   = 4409 // a newer session of the same gateway took over
	CloseTooLarge     = 4413 // a message larger than agreed
	CloseVersion      = 4426 // a version that is not spoken here
	CloseTooMany      = 4429 // more sessions than this gateway may have in this time
)

// Limits that both sides hold whatever was negotiated.
const (
	MinFrameBytes     = 256 << 10 // every cloud takes frames at least this large
	MaxBlockBytes     = 192 << 10 // encoded; so a block fits the smallest frame, header included
	MaxBlockSamples   = 65536     // samples of one block; bounds what a decoder allocates
	MaxRawBytes       = 4 << 20   // of a block's columns before compression; bounds a bomb
	MaxMessageBytes   = 256 << 10 // one control message
	MaxBlocksPerFrame = 1024
)

// A Block is an immutable run of samples: the unit that is stored, sent and
// acknowledged. Its samples have the numbers First to Last of Epoch, in the
// order in which Decode returns them.
type Block struct {
	Epoch touchline.Epoch
	First uint64 // number of the first sample
	Count uint32 // samples, at least 1
	CRC   uint32 // as Sum returns it
	Data  []byte // as Encoder.Encode returns it
}

// Last returns the number of the last sample.
func (b *Block) Last() uint64 { return b.First + uint64(b.Count) - 1 }

// Range returns First to Last.
func (b *Block) Range() touchline.Range { return touchline.Range{First: b.First, Last: b.Last()} }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum returns the CRC-32C (RFC 3720, appendix B.4) over epoch (16 bytes),
// First (8, big endian), Count (4, big endian) and Data: a flipped bit in the
// numbers is found as surely as one in the data.
func (b *Block) Sum() uint32 {
	var head [28]byte
	copy(head[:16], b.Epoch[:])
	binary.BigEndian.PutUint64(head[16:], b.First)
	binary.BigEndian.PutUint32(head[24:], b.Count)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, b.Data)
}

// Check says whether the block's numbers, size and CRC hold. It does not
// decode: a block that passes may still hold data that this version can't read.
func (b *Block) Check() error {
	if b.Count == 0 || b.Count > MaxBlockSamples {
		return fmt.Errorf("block %s/%d has a count of %d: want 1 to %d", b.Epoch, b.First, b.Count, MaxBlockSamples)
	}
	if b.First == 0 || b.First > touchline.MaxSeq || !b.Range().Valid() {
		return fmt.Errorf("block %s/%d+%d has numbers out of bounds", b.Epoch, b.First, b.Count)
	}
	if len(b.Data) > MaxBlockBytes {
		return fmt.Errorf("block %s/%d has %d bytes: at most %d are allowed", b.Epoch, b.First, len(b.Data), MaxBlockBytes)
	}
	if sum := b.Sum(); sum != b.CRC {
		return &CRCError{Epoch: b.Epoch, Range: b.Range(), Want: b.CRC, Got: sum}
	}
	return nil
}

// A CRCError says that a block was changed on its way or on its disk; its
// receiver asks for it again.
type CRCError struct {
	Epoch     touchline.Epoch
	Range     touchline.Range
	Want, Got uint32
}

func (e *CRCError) Error() string {
	return fmt.Sprintf("block %s/%d-%d is damaged: CRC %08x, want %08x", e.Epoch, e.Range.First, e.Range.Last, e.Got, e.Want)
}
