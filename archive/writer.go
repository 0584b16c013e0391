package archive

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"touchline/identity"
	"touchline/wire"
)

// A Writer writes one archive. What it wrote is one only after End: a reader
// refuses what was cut off before. Its methods must not be called at once, and
// after an error only their error repeats.
type Writer struct {
	w       io.Writer
	key     ed25519.PrivateKey
	head    [sha512.Size]byte // of the header: ties segments to it
	buf     []byte
	blocks  []wire.FrameBlock
	pending int // bytes of data in blocks
	index   uint64
	summary Summary
	err     error
}

// NewWriter writes the header. The key signs; ID, Key and Created of h are
// filled in.
func NewWriter(w io.Writer, key ed25519.PrivateKey, h Header) (*Writer, error) {
	rand.Read(h.ID[:]) // documented never to fail
	h.Key, h.Created = identity.Public(key), time.Now().UTC()
	return newWriter(w, key, h)
}

func newWriter(w io.Writer, key ed25519.PrivateKey, h Header) (*Writer, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	a := &Writer{w: w, key: key}
	sig := ed25519.Sign(key, message(kindHeader, 0, a.head, text))
	a.head = sha512.Sum512(text)
	out := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(out[len(magic):], uint32(len(text)))
	out = append(append(out, text...), sig...)
	if _, err := w.Write(out); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	return a, nil
}

// Blocks adds blocks, as they were handed out: epoch by epoch and in order of
// their numbers. One that does not hold is refused: nobody could tell later
// whether the archive was damaged or the block before. Their data is
// the Writer's from then on.
func (a *Writer) Blocks(blocks []wire.Block) error {
	for i := range blocks {
		if a.err != nil {
			break
		}
		if err := blocks[i].Check(); err != nil {
			a.err = fmt.Errorf("write archive: %w", err)
			break
		}
		a.blocks = append(a.blocks, wire.FrameBlock{Block: blocks[i], Lane: wire.Backlog})
		a.pending += len(blocks[i].Data)
		if a.pending >= segmentTarget || len(a.blocks) == wire.MaxBlocksPerFrame {
			a.flush()
		}
	}
	return a.err
}

// flush writes the blocks that wait as one segment.
func (a *Writer) flush() {
	if a.err != nil || len(a.blocks) == 0 {
		return
	}
	var err error
	if a.buf, err = wire.AppendFrame(a.begin(Blocks), a.blocks); err != nil {
		a.err = fmt.Errorf("write archive: %w", err)
		return
	}
	seg := Segment{Kind: Blocks, Blocks: make([]wire.Block, len(a.blocks))}
	for i := range a.blocks {
		seg.Blocks[i] = a.blocks[i].Block
	}
	a.end(&seg)
	clear(a.blocks)
	a.blocks, a.pending = a.blocks[:0], 0
}

// Lost adds records of loss, each of which fits a control message.
func (a *Writer) Lost(lost []wire.Lost) error {
	a.flush()
	for len(lost) > 0 && a.err == nil {
		n, size := 0, 0
		for n < len(lost) && n < maxLostPerSegment {
			text, err := json.Marshal(&lost[n])
			if err != nil {
				a.err = fmt.Errorf("write archive: %w", err)
				return a.err
			}
			if size += len(text) + 1; n > 0 && size > segmentTarget {
				break
			}
			n++
		}
		a.json(&Segment{Kind: Lost, Lost: lost[:n]}, lost[:n])
		lost = lost[n:]
	}
	return a.err
}

// maxLostPerSegment is what the cloud confirms in one go.
const maxLostPerSegment = 1024

// End writes the summary and returns it. The writer below is the caller's to
// sync and close.
func (a *Writer) End() (Summary, error) {
	a.flush()
	a.json(&Segment{Kind: End}, &a.summary)
	if a.err != nil {
		return Summary{}, a.err
	}
	a.err = errors.New("write archive: it has ended")
	return a.summary, nil
}

func (a *Writer) json(seg *Segment, payload any) {
	if a.err != nil {
		return
	}
	text, err := json.Marshal(payload)
	if err != nil {
		a.err = fmt.Errorf("write archive: %w", err)
		return
	}
	a.buf = append(a.begin(seg.Kind), text...)
	a.end(seg)
}

// begin starts a segment in the buffer, whose payload is appended next.
func (a *Writer) begin(kind Kind) []byte {
	return append(a.buf[:0], byte(kind), 0, 0, 0, 0)
}

// end signs and writes the segment in the buffer.
func (a *Writer) end(seg *Segment) {
	payload := a.buf[prefixBytes:]
	if len(payload) > MaxSegmentBytes || a.index >= maxSegments {
		a.err = fmt.Errorf("write archive: segment %d has %d bytes: at most %d are allowed, in %d segments",
			a.index, len(payload), MaxSegmentBytes, uint64(maxSegments))
		return
	}
	binary.BigEndian.PutUint32(a.buf[1:], uint32(len(payload)))
	a.buf = append(a.buf, ed25519.Sign(a.key, message(seg.Kind, a.index, a.head, payload))...)
	if _, err := a.w.Write(a.buf); err != nil {
		a.err = fmt.Errorf("write archive: %w", err)
		return
	}
	a.index++
	if seg.Kind != End {
		a.summary.add(seg)
	}
}
