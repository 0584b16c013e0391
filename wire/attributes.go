package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"touchline"
)

// Attributes is what a block says of its samples besides them.
type Attributes struct {
	Clock *BlockClock // nil where the gateway did not say
}

// A BlockClock is the gateway's clock as it was when the block's stamped
// samples were stamped.
type BlockClock struct {
	touchline.Clock
	Uptime time.Duration // since power-on, when the block was committed; whole milliseconds travel
}

// Time returns when the block was committed, by its own clock.
func (c *BlockClock) Time() int64 { return c.Offset + int64(c.Uptime) }

// SameClock says whether two blocks were stamped by the same setting of the
// same clock, so that one block can hold the samples of both. The time of the
// commit is not compared: that of the later one is right for both.
func (a Attributes) SameClock(b Attributes) bool {
	if a.Clock == nil || b.Clock == nil {
		return a.Clock == b.Clock
	}
	return a.Clock.Clock == b.Clock.Clock
}

// The keys of attributes (FORMAT.md).
const (
	keyClock   = 1
	keyStamped = 2
)

// putAttributes writes the attributes of the block at hand, whose series are
// known.
func (e *Encoder) putAttributes(a Attributes) {
	stamped := e.stampedSeries()
	count := uint64(0)
	if a.Clock != nil {
		count++
	}
	if len(stamped) > 0 {
		count++
	}
	e.body = binary.AppendUvarint(e.body[:0], count)
	if a.Clock != nil {
		e.putAttribute(keyClock, appendClock(e.stream[:0], a.Clock))
	}
	if len(stamped) > 0 {
		e.putAttribute(keyStamped, stamped)
	}
}

func (e *Encoder) putAttribute(key uint64, value []byte) {
	e.body = binary.AppendUvarint(e.body, key)
	e.putStream(value)
}

func appendClock(dst []byte, c *BlockClock) []byte {
	dst = append(dst, c.Boot[:]...)
	dst = append(dst, byte(c.State))
	dst = binary.AppendUvarint(dst, uint64(max(c.Uptime, 0)/time.Millisecond))
	return binary.AppendVarint(dst, c.Offset)
}

// stampedSeries returns a bit for each series, the first the lowest of the
// first byte: whether the gateway stamped its samples. It is empty where there
// are none.
func (e *Encoder) stampedSeries() []byte {
	series := e.group.series
	e.stamped = e.stamped[:0]
	for i := range series {
		if !series[i].stamped {
			continue
		}
		for len(e.stamped) < (len(series)+7)/8 {
			e.stamped = append(e.stamped, 0)
		}
		e.stamped[i/8] |= 1 << (i % 8)
	}
	return e.stamped
}

// readAttributes reads what the block says of its samples. Keys that this
// version does not know are skipped. The bits of stamped series are checked
// when the series are known.
func (d *Decoder) readAttributes(body *cursor) error {
	d.attributes, d.stamped = Attributes{}, nil
	for n := body.count(len(body.data)); n > 0 && !body.bad; n-- {
		key := body.uvarint()
		value := body.bytes(body.count(len(body.data)))
		if body.bad {
			break
		}
		switch key {
		case keyClock:
			clock, err := parseClock(value)
			if err != nil || d.attributes.Clock != nil {
				return errors.Join(errors.New("attribute clock is malformed or there twice"), err)
			}
			d.attributes.Clock = clock
		case keyStamped:
			if len(value) == 0 || d.stamped != nil {
				return errors.New("attribute stamped is empty or there twice")
			}
			d.stamped = value
		}
	}
	return nil
}

func parseClock(value []byte) (*BlockClock, error) {
	in := cursor{data: value}
	var c BlockClock
	copy(c.Boot[:], in.bytes(len(c.Boot)))
	c.State = touchline.ClockState(in.byte())
	uptime := in.uvarint()
	c.Offset = unzigzag(in.uvarint())
	if in.bad || len(in.data) > 0 {
		return nil, fmt.Errorf("clock of %d bytes is cut off or too long", len(value))
	}
	if c.State > touchline.ClockSynchronised {
		return nil, fmt.Errorf("unknown %s", c.State)
	}
	if uptime > maxUptime {
		return nil, fmt.Errorf("clock is %d ms from power-on", uptime)
	}
	c.Uptime = time.Duration(uptime) * time.Millisecond
	return &c, nil
}

// maxUptime is in ms what a time.Duration holds: 292 years.
const maxUptime = uint64(1<<63-1) / uint64(time.Millisecond)

// checkStamped says whether the bits of stamped series fit the series.
func (d *Decoder) checkStamped() error {
	if d.stamped == nil {
		return nil
	}
	n := len(d.series)
	if len(d.stamped) != (n+7)/8 || n%8 != 0 && d.stamped[n/8]>>(n%8) != 0 {
		return fmt.Errorf("attribute stamped has %d bytes, or bits beyond the series, of which there are %d", len(d.stamped), n)
	}
	return nil
}

func (d *Decoder) isStamped(series int) bool {
	return d.stamped != nil && d.stamped[series/8]&(1<<(series%8)) != 0
}
