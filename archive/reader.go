package archive

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"touchline"
	"touchline/wire"
)

// A Reader reads one archive and verifies as it goes: what it returns was
// signed, in this order, in this archive. That nothing is missing is known at
// the end only, so whoever takes in all or nothing reads twice (Verify first).
type Reader struct {
	r       io.Reader
	at      int64
	header  Header
	head    [sha512.Size]byte
	preface []byte // magic and header with its signature, as read
	segment []byte // the last segment, as read
	blocks  []wire.FrameBlock
	index   uint64
	summary Summary
	err     error // io.EOF after a good end
}

// NewReader reads the header. An *Error says what does not hold; another error
// is the reader's below.
func NewReader(r io.Reader) (*Reader, error) {
	a := &Reader{r: r}
	if err := a.readHeader(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Reader) readHeader() error {
	a.preface = make([]byte, len(magic)+4)
	if err := a.fill(a.preface); err != nil {
		return err
	}
	const version = len(magic) - 1
	if got := a.preface[:len(magic)]; string(got[:version]) != magic[:version] {
		return a.wrong("it does not begin as an archive of touchline does")
	} else if got[version] != magic[version] {
		return a.wrong("its version is %d and this touchline knows %d: use a newer one", got[version], magic[version])
	}
	size := binary.BigEndian.Uint32(a.preface[len(magic):])
	if size > MaxHeaderBytes {
		return a.wrong("its header has %d bytes: at most %d are allowed", size, MaxHeaderBytes)
	}
	rest := make([]byte, size+signatureBytes)
	if err := a.fill(rest); err != nil {
		return err
	}
	text, sig := rest[:size], rest[size:]
	if err := unmarshal(text, &a.header); err != nil {
		return a.wrong("header: %v", err)
	}
	if err := a.header.check(); err != nil {
		return a.wrong("header: %v", err)
	}
	if !a.header.Key.Verify(message(kindHeader, 0, a.head, text), sig) {
		return a.wrong("the header's signature does not hold: it was changed, or signed with another key")
	}
	a.head = sha512.Sum512(text)
	a.preface = append(a.preface, rest...)
	a.at += int64(len(a.preface))
	return nil
}

// Header returns the header, whose signature holds.
func (a *Reader) Header() Header { return a.header }

// Next returns the next segment; after the one of kind End it returns io.EOF,
// and then the archive is whole. Its slices are good until the next call. An
// error repeats.
func (a *Reader) Next() (Segment, error) {
	if a.err != nil {
		return Segment{}, a.err
	}
	seg, err := a.next()
	if err != nil {
		a.err = err
		return Segment{}, err
	}
	a.at += int64(len(a.segment))
	a.index++
	if seg.Kind != End {
		a.summary.add(&seg)
		return seg, nil
	}
	if !a.summary.equal(&seg.Summary) {
		a.err = a.wrong("it does not hold what its summary says")
		return Segment{}, a.err
	}
	if n, err := io.ReadFull(a.r, make([]byte, 1)); n > 0 {
		a.err = a.wrong("something follows after its end")
		return Segment{}, a.err
	} else if !errors.Is(err, io.EOF) {
		a.err = fmt.Errorf("read archive: %w", err)
		return Segment{}, a.err
	}
	a.err = io.EOF
	return seg, nil
}

func (a *Reader) next() (Segment, error) {
	a.segment = append(a.segment[:0], make([]byte, prefixBytes)...)
	if err := a.fill(a.segment); err != nil {
		return Segment{}, err
	}
	seg := Segment{Kind: Kind(a.segment[0]), Index: a.index}
	size := binary.BigEndian.Uint32(a.segment[1:])
	if seg.Kind != Blocks && seg.Kind != Lost && seg.Kind != End {
		return seg, a.wrong("segment %d has the unknown kind %d", seg.Index, seg.Kind)
	}
	if size > MaxSegmentBytes {
		return seg, a.wrong("segment %d has %d bytes: at most %d are allowed", seg.Index, size, MaxSegmentBytes)
	}
	if a.index >= maxSegments {
		return seg, a.wrong("it has more than %d segments", uint64(maxSegments))
	}
	whole := prefixBytes + int(size) + signatureBytes
	if cap(a.segment) < whole {
		a.segment = append(make([]byte, 0, whole), a.segment...)
	}
	a.segment = a.segment[:whole]
	if err := a.fill(a.segment[prefixBytes:]); err != nil {
		return seg, err
	}
	payload := a.segment[prefixBytes : prefixBytes+int(size)]
	if !a.header.Key.Verify(message(seg.Kind, seg.Index, a.head, payload), a.segment[prefixBytes+int(size):]) {
		return seg, a.wrong("the signature of segment %d does not hold: it was changed, or is not of this archive", seg.Index)
	}
	return seg, a.parse(&seg, payload)
}

// parse reads what was signed. A gateway that signs nonsense is refused here
// as well.
func (a *Reader) parse(seg *Segment, payload []byte) (err error) {
	switch seg.Kind {
	case Blocks:
		if a.blocks, err = wire.ParseFrame(a.blocks[:0], payload); err != nil {
			return a.wrong("segment %d: %v", seg.Index, err)
		}
		seg.Blocks = make([]wire.Block, len(a.blocks))
		for i := range a.blocks {
			seg.Blocks[i] = a.blocks[i].Block
			if err := seg.Blocks[i].Check(); err != nil {
				return a.wrong("segment %d: %v", seg.Index, err)
			}
		}
		if b := outOfOrder(seg.Blocks); b != nil {
			return a.wrong("segment %d: block %s/%d is out of order", seg.Index, b.Epoch, b.First)
		}
	case Lost:
		if err := unmarshal(payload, &seg.Lost); err != nil {
			return a.wrong("segment %d: %v", seg.Index, err)
		}
		if len(seg.Lost) == 0 || len(seg.Lost) > maxLostPerSegment {
			return a.wrong("segment %d has %d lost records: want 1 to %d", seg.Index, len(seg.Lost), maxLostPerSegment)
		}
		for i := range seg.Lost {
			if l := &seg.Lost[i]; l.ID == 0 || l.ID > touchline.MaxSeq || len(l.Ranges) == 0 {
				return a.wrong("segment %d: lost record %d is out of bounds", seg.Index, l.ID)
			}
		}
	case End:
		if err := unmarshal(payload, &seg.Summary); err != nil {
			return a.wrong("segment %d: %v", seg.Index, err)
		}
	}
	return nil
}

// outOfOrder returns the first block that does not stand behind all others of
// its epoch, nil if there is none.
func outOfOrder(blocks []wire.Block) *wire.Block {
	ended := make(map[touchline.Epoch]bool)
	for i := 1; i < len(blocks); i++ {
		before, b := &blocks[i-1], &blocks[i]
		if before.Epoch != b.Epoch {
			ended[before.Epoch] = true
		} else if b.First <= before.Last() {
			return b
		}
		if ended[b.Epoch] {
			return b
		}
	}
	return nil
}

// unmarshal takes one JSON value with no members that this version does not
// know: an archive of version 1 has none.
func unmarshal(text []byte, to any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return err
	}
	if dec.InputOffset() != int64(len(text)) {
		return errors.New("something follows after its JSON")
	}
	return nil
}

// fill reads all of p.
func (a *Reader) fill(p []byte) error {
	n, err := io.ReadFull(a.r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return a.wrong("it is cut off %d bytes later", n)
	}
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	return nil
}

func (a *Reader) wrong(format string, args ...any) error {
	return &Error{Offset: a.at, Reason: fmt.Sprintf(format, args...)}
}

// Trust says whether a key is a gateway's, in the words of whoever knows: nil,
// or why not.
type Trust func(Header) error

// Verify reads a whole archive. Only where it returns no error is the archive
// what a gateway that trust knows has signed, all of it.
func Verify(r io.Reader, trust Trust) (Header, Summary, error) {
	a, err := NewReader(r)
	if err != nil {
		return Header{}, Summary{}, err
	}
	if err := trust(a.header); err != nil {
		return a.header, Summary{}, err
	}
	for {
		seg, err := a.Next()
		if err != nil {
			return a.header, Summary{}, err
		}
		if seg.Kind == End {
			return a.header, seg.Summary, nil
		}
	}
}

// MaxExcerptBytes bounds an excerpt.
const MaxExcerptBytes = len(magic) + 4 + MaxHeaderBytes + signatureBytes + 8 + prefixBytes + MaxSegmentBytes + signatureBytes

// Excerpt returns the segment that Next returned last in a form that proves
// itself to somebody who has not the rest (ReadExcerpt): the header, its index,
// and the segment. It belongs to the caller.
func (a *Reader) Excerpt() []byte {
	out := make([]byte, 0, len(a.preface)+8+len(a.segment))
	out = append(out, a.preface...)
	out = binary.BigEndian.AppendUint64(out, a.index-1)
	return append(out, a.segment...)
}

// ReadExcerpt reads what Excerpt returned. The segment's slices alias data.
func ReadExcerpt(data []byte) (Header, Segment, error) {
	r := bytes.NewReader(data)
	a, err := NewReader(r)
	if err != nil {
		return Header{}, Segment{}, err
	}
	var index [8]byte
	if err := a.fill(index[:]); err != nil {
		return Header{}, Segment{}, err
	}
	a.index = binary.BigEndian.Uint64(index[:])
	seg, err := a.next()
	if err != nil {
		return Header{}, Segment{}, err
	}
	if r.Len() > 0 {
		return Header{}, Segment{}, a.wrong("%d bytes follow after its segment", r.Len())
	}
	return a.header, seg, nil
}
