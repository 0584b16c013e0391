// Package archive is the export file of a gateway: its blocks and its records
// of loss, signed, for the venue whose line never returns. Everything read
// through it was signed by the key that the archive names; a reader that was
// not told by an operator that this key is that gateway's must not trust it.
// Writing and reading need memory for one segment. FORMAT.md is the layout.
package archive

import (
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"touchline"
	"touchline/identity"
	"touchline/wire"
)

// Suffix is what names of archives end in.
const Suffix = ".touchline"

// MediaType is an archive's, and an excerpt's, over HTTP.
const MediaType = "application/vnd.touchline.archive"

// magic begins each archive: not text, and a version.
const magic = "\x89TOUCHLINE\r\n\x1a\n\x01"

// Limits of an archive. A reader holds one header and one segment.
const (
	MaxHeaderBytes = 4 << 10 // JSON: an id of 128 bytes, a key, a name, a time
	// MaxSegmentBytes is a wire frame of 1,024 block heads (40 KiB) and data of
	// segmentTarget, over which it goes by less than one block (192 KiB); or
	// 256 lost records of 36 KiB at most, which are cut to it; or a summary.
	MaxSegmentBytes = 1 << 20
	// segmentTarget of block data makes the signature (64 bytes, and two passes
	// of SHA-512) disappear beside the data.
	segmentTarget = 512 << 10
	// maxSegments of MaxSegmentBytes are 4 PiB.
	maxSegments = 1 << 32
	// maxEpochs bounds the list of contents: 4,096 × 170 bytes of JSON are 700
	// KiB. What is not listed is in the archive all the same.
	maxEpochs = 4096

	prefixBytes = 1 + 4 // kind, length
)

// A Header says whose archive it is.
type Header struct {
	ID       ID                 `json:"id"`
	Gateway  string             `json:"gateway"`
	Key      identity.PublicKey `json:"key"`      // signed all of it
	Created  time.Time          `json:"created"`  // by the gateway's clock
	Software string             `json:"software"` // "touchline/0.1.0"
}

func (h *Header) check() error {
	if h.ID == (ID{}) {
		return errors.New("it has no id")
	}
	if err := touchline.CheckGateway(h.Gateway); err != nil {
		return err
	}
	if len(h.Software) > touchline.MaxNameBytes {
		return fmt.Errorf("software has %d bytes: at most %d are allowed", len(h.Software), touchline.MaxNameBytes)
	}
	return nil
}

// An ID is drawn at random for each archive, so that none of its segments
// passes for one of another.
type ID [16]byte

// String returns 32 lower-case hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) != 2*len(id) {
		return fmt.Errorf("archive id %.40q: want %d hexadecimal digits", text, 2*len(id))
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return fmt.Errorf("archive id %.40q: %w", text, err)
	}
	return nil
}

// A Kind says what a segment holds.
type Kind byte

// The kinds, as they are in the file.
const (
	kindHeader Kind = iota
	Blocks          // one wire frame
	Lost            // lost records, a JSON list
	End             // the Summary, as JSON: the last segment
)

// A Segment is a part of an archive that has a signature of its own, and so
// can be taken in alone.
type Segment struct {
	Kind    Kind
	Index   uint64       // 0, 1, 2 …
	Blocks  []wire.Block // of kind Blocks: checked, not decoded
	Lost    []wire.Lost  // of kind Lost
	Summary Summary      // of kind End
}

// A Summary says what an archive holds; a reader compares.
type Summary struct {
	Segments uint64     `json:"segments"` // before this one
	Blocks   uint64     `json:"blocks"`
	Samples  uint64     `json:"samples"`
	Bytes    uint64     `json:"bytes"` // of the blocks' data
	Lost     uint64     `json:"lost_records"`
	Epochs   []Contents `json:"epochs"`            // in order of the blocks
	More     uint64     `json:"not_listed_blocks"` // of epochs beyond those listed
}

// Contents is what an archive holds of one epoch.
type Contents struct {
	Epoch   touchline.Epoch `json:"epoch"`
	First   uint64          `json:"first"` // lowest number
	Last    uint64          `json:"last"`  // highest; what is missing in between follows from Samples
	Blocks  uint64          `json:"blocks"`
	Samples uint64          `json:"samples"`
}

// add counts one segment.
func (s *Summary) add(seg *Segment) {
	s.Segments++
	s.Lost += uint64(len(seg.Lost))
	for i := range seg.Blocks {
		s.addBlock(&seg.Blocks[i])
	}
}

func (s *Summary) addBlock(b *wire.Block) {
	s.Blocks++
	s.Samples += uint64(b.Count)
	s.Bytes += uint64(len(b.Data))
	n := len(s.Epochs)
	if n > 0 && s.Epochs[n-1].Epoch == b.Epoch && s.More == 0 {
		c := &s.Epochs[n-1]
		c.First, c.Last = min(c.First, b.First), max(c.Last, b.Last())
		c.Blocks++
		c.Samples += uint64(b.Count)
		return
	}
	if n == maxEpochs {
		s.More++
		return
	}
	s.Epochs = append(s.Epochs, Contents{Epoch: b.Epoch, First: b.First, Last: b.Last(), Blocks: 1, Samples: uint64(b.Count)})
}

// equal says whether what was counted is what the archive says of itself.
func (s *Summary) equal(o *Summary) bool {
	if s.Segments != o.Segments || s.Blocks != o.Blocks || s.Samples != o.Samples || s.Bytes != o.Bytes ||
		s.Lost != o.Lost || s.More != o.More || len(s.Epochs) != len(o.Epochs) {
		return false
	}
	for i := range s.Epochs {
		if s.Epochs[i] != o.Epochs[i] {
			return false
		}
	}
	return true
}

// An Error says that something is no archive, or not the archive that was
// signed: it was cut, changed, or put together from parts.
type Error struct {
	Offset int64 // where the part begins that does not hold
	Reason string
}

func (e *Error) Error() string {
	return fmt.Sprintf("archive does not hold at byte %d: %s", e.Offset, e.Reason)
}

// message is what is signed of a part: which part of which archive it is, and
// what it says. Its hash stands for the payload, so that a segment is not
// copied for its signature.
func message(kind Kind, index uint64, header [sha512.Size]byte, payload []byte) []byte {
	const domain = "touchline archive 1\x00" // no other signature of this key begins so
	sum := sha512.Sum512(payload)
	m := make([]byte, 0, len(domain)+1+8+2*sha512.Size)
	m = append(m, domain...)
	m = append(m, byte(kind))
	m = binary.BigEndian.AppendUint64(m, index)
	m = append(m, header[:]...)
	return append(m, sum[:]...)
}

const signatureBytes = ed25519.SignatureSize
