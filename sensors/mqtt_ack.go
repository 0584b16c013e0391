package sensors

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// answer is what is due for one message after its commit.
type answer struct {
	live    *liveCopy // for local subscribers, or nil
	content uint32    // of a message of QoS 2
	id      uint16
	kind    ackKind
	reason  byte // MQTT 5; 0 is success
}

type ackKind uint8

const (
	noAck ackKind = iota // QoS 0
	puback
	pubrec
	pubrecAgain // for a repetition: the session knows the packet id already
)

func ackOf(qos byte) ackKind { return ackKind(qos) }

// liveCopy is a message as local subscribers get it.
type liveCopy struct {
	topic   string
	payload []byte // of the packet, which is nobody else's
	retain  bool
	props   packets.Properties
}

// acknowledgements are gathered in buffers of 4 KiB, which hold 1,024.
var ackBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// answer runs in a goroutine of its own while there is something to answer:
// neither a slow sensor nor a slow subscriber is the store's business. All
// acknowledgements of one turn leave in one write.
func (c *mqttConn) answer() {
	var taken []*batch[answer]
	for {
		taken = c.flow.take(taken[:0])
		if len(taken) == 0 {
			return
		}
		buf := ackBuffers.Get().(*[]byte)
		acks := (*buf)[:0]
		var failure error
		for _, b := range taken {
			acks = c.appendAcks(acks, b)
			if c.failed && failure == nil {
				failure = b.err
			}
			c.m.intake.account(TransportMQTT, &c.seen, &b.load, b.err) // before anybody is told
		}
		if len(acks) > 0 {
			c.writeAcks(acks)
		}
		if failure != nil {
			c.fail(failure)
		}
		*buf = acks[:0]
		ackBuffers.Put(buf)
		for _, b := range taken {
			c.passOn(b)
		}
		c.flow.release(taken)
		for _, b := range taken {
			c.m.batches.put(b)
		}
	}
}

// appendAcks appends what is due for b. A batch that failed is not
// acknowledged, nor is anything after it, and c.failed is set: the connection
// will be closed, and the sensor sends all that again.
func (c *mqttConn) appendAcks(acks []byte, b *batch[answer]) []byte {
	refused := b.err != nil && c.version == 5 && retryAfter(b.err) > 0 && tellable(b)
	if b.err != nil && !refused {
		c.failed = true
	}
	for i := range b.answers {
		a := &b.answers[i]
		if refused && a.reason == 0 && a.kind != pubrecAgain {
			a.reason = packets.ErrQuotaExceeded.Code
		}
		now, repeated := c, false
		if a.kind == pubrec && !turnedAway(a.reason) {
			now, repeated = c.session.stored(a.id, a.content, b.err == nil)
		}
		switch {
		case a.kind == noAck:
		case now != c: // the client has come back on another connection
			if repeated { // and waits there; otherwise it will ask
				now.answerHere(a, b.err != nil && !refused)
			}
		case !c.failed && a.kind == puback:
			acks = c.appendAck(acks, packets.Puback, a.id, a.reason)
		case !c.failed:
			acks = c.appendAck(acks, packets.Pubrec, a.id, a.reason)
		}
	}
	return acks
}

// turnedAway says whether the message was refused before it was the session's.
func turnedAway(reason byte) bool {
	return reason == packets.ErrTopicNameInvalid.Code || reason == packets.ErrNotAuthorized.Code
}

// answerHere answers a QoS 2 message that came by an older connection of the
// session, perhaps of MQTT 5, and was sent again here.
func (c *mqttConn) answerHere(a *answer, failed bool) {
	if failed || a.reason != 0 && c.version != 5 {
		c.fail(fmt.Errorf("the commit of packet id %d failed", a.id))
		return
	}
	c.writeAcks(c.appendAck(nil, packets.Pubrec, a.id, a.reason))
}

// fail closes the connection without acknowledging: the sensor must send again.
func (c *mqttConn) fail(err error) {
	if c.m.ctx.Err() == nil {
		c.m.trouble.warn("samples are not stored: connection closed, so that the sensor sends them again", c.attrs(slog.Any("error", err))...)
		if c.version == 5 {
			_ = c.m.server.DisconnectClient(c.client, packets.ErrImplementationSpecificError)
		}
	}
	_ = c.Conn.Close()
}

// writeAcks writes whole packets through the client's own lock, which is
// mochi's for all it writes. An error has closed the connection.
func (c *mqttConn) writeAcks(acks []byte) {
	c.client.Lock()
	defer c.client.Unlock()
	_, _ = c.Write(acks)
}

// appendAck appends a PUBACK, PUBREC or PUBCOMP (MQTT 5, sections 3.4 to 3.7).
// Success is the same four bytes in 3.1.1 and 5; 3.1.1 knows nothing else.
func (c *mqttConn) appendAck(dst []byte, kind byte, id uint16, reason byte) []byte {
	high, low := byte(id>>8), byte(id)
	if reason == 0 || c.version != 5 {
		return append(dst, kind<<4, 2, high, low)
	}
	text := ""
	switch reason {
	case packets.ErrTopicNameInvalid.Code:
		text = topicRule
	case packets.ErrNotAuthorized.Code:
		text = "a sensor publishes under its own id only, in topics and in payloads"
	case packets.ErrQuotaExceeded.Code:
		text = "the gateway's buffer is full: send again later"
	}
	props := &c.client.Properties.Props
	if text == "" || props.RequestProblemInfoFlag && props.RequestProblemInfo == 0 || props.MaximumPacketSize > 0 {
		return append(dst, kind<<4, 3, high, low, reason)
	}
	n := len(text) // below 120, so that each length takes one byte
	dst = append(dst, kind<<4, byte(3+1+3+n), high, low, reason, byte(3+n), packets.PropReasonString, 0, byte(n))
	return append(dst, text...)
}

// live returns the copy of a message that subscribers will get, or nil where
// nobody listens or it is too large. The whole packet counts, since its parts
// share the packet's memory.
func (c *mqttConn) live(pk *packets.Packet) *liveCopy {
	if !pk.FixedHeader.Retain && !c.m.hasSubscribers() {
		return nil
	}
	if n := pk.FixedHeader.Remaining; n > maxLiveBytes {
		c.m.intake.dropped.Add(1)
		c.m.trouble.warn("mqtt message stored, but neither passed on nor retained: too large",
			c.attrs(slog.String("topic", pk.TopicName), slog.Int("packet_bytes", n), slog.Int("max_bytes", maxLiveBytes))...)
		return nil
	}
	l := &liveCopy{topic: pk.TopicName, payload: pk.Payload, retain: pk.FixedHeader.Retain}
	if c.version == 5 {
		l.props = pk.Properties
		l.props.TopicAlias, l.props.TopicAliasFlag = 0, false
	}
	return l
}

// passOn gives local subscribers what is durable now.
func (c *mqttConn) passOn(b *batch[answer]) {
	if b.err != nil {
		return
	}
	for i := range b.answers {
		l := b.answers[i].live
		if l == nil {
			continue
		}
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: c.m.mayRetain(l.topic, l.payload, l.retain)},
			TopicName:   l.topic,
			Payload:     l.payload,
			Properties:  l.props,
		}
		if err := c.m.server.InjectPacket(c.client, pk); err != nil {
			c.m.trouble.warn("message not passed on to subscribers", c.attrs(slog.Any("error", err))...)
		}
	}
}
