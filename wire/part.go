package wire

import (
	"encoding/binary"
	"fmt"
)

// CapabilityParts is what a cloud names in welcome that takes frames in parts.
const CapabilityParts = "parts"

// PartHeaderBytes is the size of a part's header: version, flags, reserved,
// offset and total (FORMAT.md).
const PartHeaderBytes = 1 + 1 + 2 + 4 + 4

const partVersion = 2

// A Part is a piece of a frame. The parts of one frame are messages in order of
// their offsets, and other frames and messages may go between them: on a slow
// link a new sample need not wait for a large block.
type Part struct {
	Offset, Total int // bytes of the frame
	Data          []byte
}

// AppendPart appends p as a binary message to dst. It panics where p is not
// within its frame.
func AppendPart(dst []byte, p Part) []byte {
	if p.Offset < 0 || len(p.Data) == 0 || p.Offset+len(p.Data) > p.Total {
		panic(fmt.Sprintf("BUG: part of %d bytes at %d of %d", len(p.Data), p.Offset, p.Total))
	}
	dst = append(dst, partVersion, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(p.Offset))
	dst = binary.BigEndian.AppendUint32(dst, uint32(p.Total))
	return append(dst, p.Data...)
}

// IsPart says whether a binary message is a part; else it is a whole frame.
func IsPart(data []byte) bool { return len(data) > 0 && data[0] == partVersion }

// ParsePart reads a part, whose Data aliases data.
func ParsePart(data []byte) (Part, error) {
	if len(data) <= PartHeaderBytes {
		return Part{}, fmt.Errorf("part has %d bytes: want more than %d", len(data), PartHeaderBytes)
	}
	if data[0] != partVersion || data[1] != 0 || data[2] != 0 || data[3] != 0 {
		return Part{}, fmt.Errorf("part begins with %x: want %02x000000", data[:4], partVersion)
	}
	offset, total := uint64(binary.BigEndian.Uint32(data[4:])), uint64(binary.BigEndian.Uint32(data[8:]))
	body := data[PartHeaderBytes:]
	if offset+uint64(len(body)) > total || total > 1<<30 {
		return Part{}, fmt.Errorf("part of %d bytes at %d is not within its frame of %d", len(body), offset, total)
	}
	return Part{int(offset), int(total), body}, nil
}

// An Assembly puts the parts of one frame together. The zero value waits for
// the first; it holds no more than what came.
type Assembly struct {
	frame []byte
	total int
}

// Add takes a part, and returns the frame when it is whole: until the next Add
// at the latest it is the caller's. An error means that the part is not the next one of
// the frame that was begun, or that this frame is larger than most.
func (a *Assembly) Add(data []byte, most int) (frame []byte, err error) {
	p, err := ParsePart(data)
	switch {
	case err != nil:
		return nil, err
	case p.Total > most:
		return nil, fmt.Errorf("frame in parts has %d bytes: at most %d are allowed", p.Total, most)
	case p.Offset != len(a.frame) || p.Offset > 0 && p.Total != a.total:
		return nil, fmt.Errorf("part at %d of %d: want the one at %d of the frame that was begun", p.Offset, p.Total, len(a.frame))
	}
	a.frame, a.total = append(a.frame, p.Data...), p.Total
	if len(a.frame) < a.total {
		return nil, nil
	}
	frame, a.frame = a.frame, nil
	return frame, nil
}
