package sensors

import (
	"fmt"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// frames follows the packets of a connection as their bytes go by (MQTT 5,
// section 2.1). mochi makes room for a whole packet as soon as it has read the
// length, so what bounds that memory must know of the length no later.
// A malformed length is mochi's to refuse, and ends the connection.
type frames struct {
	state frameState
	shift uint // of the length's next byte
	body  int  // of the packet that is under way, without its header
	rest  int  // of body, still to come
}

type frameState uint8

const (
	atStart frameState = iota
	inLength
	inBody
)

// read takes the next bytes.
func (f *frames) read(p []byte) {
	for len(p) > 0 {
		switch f.state {
		case atStart:
			f.state, f.shift, f.body = inLength, 0, 0
			p = p[1:]
		case inLength:
			f.body |= int(p[0]&0x7f) << f.shift
			f.shift = min(f.shift+7, 28)
			if p[0]&0x80 == 0 {
				f.state, f.rest = inBody, f.body
			}
			p = p[1:]
		case inBody:
			n := min(f.rest, len(p))
			f.rest -= n
			p = p[n:]
		}
		if f.state == inBody && f.rest == 0 {
			f.state = atStart
		}
	}
}

// whole says whether the last packet has all its bytes.
func (f *frames) whole() bool { return f.state == atStart }

// size is that of the packet under way, and 0 where there is none or its
// length is not known yet.
func (f *frames) size() int {
	if f.state != inBody {
		return 0
	}
	return f.body
}

// follow is called with what was read from the socket, before mochi sees it:
// a packet that is not whole gets a deadline, and a large one must have a
// place first.
func (c *mqttConn) follow(p []byte) error {
	c.frames.read(p)
	if c.frames.whole() {
		c.packetDeadline = time.Time{}
		return nil // its place is kept until mochi is through with it
	}
	if size := c.frames.size(); size > largePacketBytes && !c.placed {
		if size > c.m.opts.PayloadBytes+packetOverhead {
			return nil // mochi refuses it before it makes room
		}
		if err := c.takePlace(); err != nil {
			return err
		}
	}
	if c.packetDeadline.IsZero() {
		c.packetDeadline = time.Now().Add(c.m.packetTimeout)
	}
	return nil
}

// takePlace waits for a place among the large packets. That wait is not the
// sensor's silence.
func (c *mqttConn) takePlace() error {
	began := time.Now()
	timeout := time.NewTimer(c.m.packetTimeout)
	defer timeout.Stop()
	select {
	case c.m.large <- struct{}{}:
		c.placed = true
		c.postpone(time.Since(began))
		return nil
	case <-c.m.ctx.Done():
		return c.goodbye()
	case <-c.claim.lost: // the newer connection must not wait for this
		return errTakenOver
	case <-timeout.C:
	}
	err := fmt.Errorf("too many large packets at a time: %d above %d bytes are under way", cap(c.m.large), largePacketBytes)
	if c.client == nil {
		c.close(CauseLimit, err)
		return err
	}
	return c.violate(CauseLimit, packets.ErrQuotaExceeded, err)
}

// freePlace is called when mochi asks for more, or has ended: then it is
// through with the packets that it has whole.
func (c *mqttConn) freePlace() {
	if c.placed {
		c.placed = false
		<-c.m.large
	}
}

// postpone moves the deadlines by what this side took for itself.
func (c *mqttConn) postpone(by time.Duration) {
	if !c.deadline.IsZero() {
		c.deadline = c.deadline.Add(by)
	}
	if !c.packetDeadline.IsZero() {
		c.packetDeadline = c.packetDeadline.Add(by)
	}
}

// readDeadline is the earlier one of the keepalive's and the packet's.
func (c *mqttConn) readDeadline() time.Time {
	if !c.packetDeadline.IsZero() && (c.deadline.IsZero() || c.packetDeadline.Before(c.deadline)) {
		return c.packetDeadline
	}
	return c.deadline
}
