package wire

import (
	"encoding/binary"
	"fmt"
)

// A frame is the payload of one binary message: a header, then the blocks,
// each with a header of its own. All numbers are big endian (FORMAT.md).
const (
	FrameHeaderBytes = 1 + 1 + 2                  // version, flags, count
	BlockHeaderBytes = 16 + 8 + 4 + 4 + 4 + 1 + 3 // epoch, first, count, CRC, length, lane, reserved
	frameVersion     = 1
)

// Lane says which of the two queues of the gateway a block came from.
type Lane uint8

const (
	Live    Lane = iota // new samples, sent as they come
	Backlog             // what was buffered while the uplink was away
)

// String returns the lane's name as docs and logs use it.
func (l Lane) String() string {
	switch l {
	case Live:
		return "live"
	case Backlog:
		return "backlog"
	}
	return fmt.Sprintf("lane %d", uint8(l))
}

// A FrameBlock is a block on its way.
type FrameBlock struct {
	Block
	Lane Lane
}

// FrameBytes returns the size of the frame that AppendFrame makes of blocks,
// so that a sender can hold the peer's largest frame.
func FrameBytes(blocks ...FrameBlock) int {
	n := FrameHeaderBytes + len(blocks)*BlockHeaderBytes
	for i := range blocks {
		n += len(blocks[i].Data)
	}
	return n
}

// AppendFrame appends one frame that carries blocks to dst. It sends a block
// as it is, damaged or not: the CRC is the sender's business when the block is
// made, and the receiver's when it arrives. It refuses a frame that ParseFrame
// would refuse, and then returns dst unchanged.
func AppendFrame(dst []byte, blocks []FrameBlock) ([]byte, error) {
	if len(blocks) == 0 || len(blocks) > MaxBlocksPerFrame {
		return dst, fmt.Errorf("append frame: %d blocks: want 1 to %d", len(blocks), MaxBlocksPerFrame)
	}
	for i := range blocks {
		if b := &blocks[i]; len(b.Data) > MaxBlockBytes {
			return dst, fmt.Errorf("append frame: block %s/%d has %d bytes: at most %d are allowed", b.Epoch, b.First, len(b.Data), MaxBlockBytes)
		} else if b.Lane > Backlog {
			return dst, fmt.Errorf("append frame: block %s/%d has the unknown %s", b.Epoch, b.First, b.Lane)
		}
	}
	dst = append(dst, frameVersion, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(blocks)))
	for i := range blocks {
		b := &blocks[i]
		dst = append(dst, b.Epoch[:]...)
		dst = binary.BigEndian.AppendUint64(dst, b.First)
		dst = binary.BigEndian.AppendUint32(dst, b.Count)
		dst = binary.BigEndian.AppendUint32(dst, b.CRC)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(b.Data)))
		dst = append(dst, byte(b.Lane), 0, 0, 0)
		dst = append(dst, b.Data...)
	}
	return dst, nil
}

// ParseFrame appends the blocks of one frame to dst. Their Data aliases data.
// An error means that the frame's structure is broken, so that none of its
// blocks can be trusted to begin where they seem to; dst is then returned
// unchanged. The blocks themselves are not checked: the receiver calls
// Block.Check on each, so that one damaged block asks for a resend of itself
// alone.
func ParseFrame(dst []FrameBlock, data []byte) ([]FrameBlock, error) {
	if len(data) < FrameHeaderBytes {
		return dst, fmt.Errorf("frame has %d bytes: want at least %d", len(data), FrameHeaderBytes)
	}
	if data[0] != frameVersion {
		return dst, fmt.Errorf("frame has version %d: want %d", data[0], frameVersion)
	}
	if data[1] != 0 {
		return dst, fmt.Errorf("frame has unknown flags 0x%02x", data[1])
	}
	count := int(binary.BigEndian.Uint16(data[2:]))
	rest := data[FrameHeaderBytes:]
	if count == 0 || count > MaxBlocksPerFrame {
		return dst, fmt.Errorf("frame has %d blocks: want 1 to %d", count, MaxBlocksPerFrame)
	}
	blocks := dst
	for i := range count {
		b, n, err := parseFrameBlock(rest)
		if err != nil {
			return dst, fmt.Errorf("frame: block %d of %d at byte %d: %w", i+1, count, len(data)-len(rest), err)
		}
		blocks = append(blocks, b)
		rest = rest[n:]
	}
	if len(rest) > 0 {
		return dst, fmt.Errorf("frame has %d bytes after its last block", len(rest))
	}
	return blocks, nil
}

// parseFrameBlock reads the block at the start of data and returns how many
// bytes it takes.
func parseFrameBlock(data []byte) (FrameBlock, int, error) {
	var b FrameBlock
	if len(data) < BlockHeaderBytes {
		return b, 0, fmt.Errorf("header is cut off: %d bytes are left, want %d", len(data), BlockHeaderBytes)
	}
	copy(b.Epoch[:], data)
	b.First = binary.BigEndian.Uint64(data[16:])
	b.Count = binary.BigEndian.Uint32(data[24:])
	b.CRC = binary.BigEndian.Uint32(data[28:])
	size := binary.BigEndian.Uint32(data[32:])
	b.Lane = Lane(data[36])
	if b.Lane > Backlog {
		return b, 0, fmt.Errorf("unknown %s", b.Lane)
	}
	if data[37] != 0 || data[38] != 0 || data[39] != 0 {
		return b, 0, fmt.Errorf("reserved bytes are %x: want zeros", data[37:40])
	}
	if size > MaxBlockBytes {
		return b, 0, fmt.Errorf("data of %d bytes: at most %d are allowed", size, MaxBlockBytes)
	}
	if left := len(data) - BlockHeaderBytes; int(size) > left {
		return b, 0, fmt.Errorf("data is cut off: %d bytes are left, want %d", left, size)
	}
	end := BlockHeaderBytes + int(size)
	b.Data = data[BlockHeaderBytes:end:end]
	return b, end, nil
}
