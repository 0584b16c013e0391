package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The few MQTT 3.1.1 packets that the harness needs, written by hand, so that
// the load costs a small part of what it measures. The sections are those of
// the OASIS standard.

// Types of packets, as the upper half of the first byte (section 2.2.1).
const (
	typeConnect   = 1
	typeConnack   = 2
	typePublish   = 3
	typePuback    = 4
	typeSubscribe = 8
	typeSuback    = 9
)

// maxPacketBytes bounds what a packet may announce; those of the bench have
// some 130 bytes.
const maxPacketBytes = 64 << 10

// appendLength appends a remaining length (section 2.2.3): seven bits a byte,
// the lowest first.
func appendLength(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// appendConnect appends a CONNECT without a keep-alive, since the harness
// always has something to say (section 3.1).
func appendConnect(b []byte, clientID string, clean bool) []byte {
	flags := byte(0)
	if clean {
		flags = 0x02
	}
	b = append(b, typeConnect<<4)
	b = appendLength(b, 10+2+len(clientID))
	b = appendString(b, "MQTT")
	b = append(b, 4, flags, 0, 0) // level 4 is 3.1.1; keep-alive 0 is none
	return appendString(b, clientID)
}

// appendPublish appends a PUBLISH at QoS 1 (section 3.3).
func appendPublish(b []byte, topic string, id uint16, payload []byte) []byte {
	b = append(b, typePublish<<4|1<<1)
	b = appendLength(b, 2+len(topic)+2+len(payload))
	b = appendString(b, topic)
	b = binary.BigEndian.AppendUint16(b, id)
	return append(b, payload...)
}

// appendPuback appends a PUBACK (section 3.4).
func appendPuback(b []byte, id uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, typePuback<<4, 2), id)
}

// appendSubscribe appends a SUBSCRIBE to one filter at QoS 1 (section 3.8).
func appendSubscribe(b []byte, id uint16, filter string) []byte {
	b = append(b, typeSubscribe<<4|1<<1)
	b = appendLength(b, 2+2+len(filter)+1)
	b = binary.BigEndian.AppendUint16(b, id)
	b = appendString(b, filter)
	return append(b, 1)
}

// errShort says that b ends before the packet does.
var errShort = errors.New("packet is not complete")

// cutPacket splits the first packet off b. The parts share b's memory.
func cutPacket(b []byte) (kind byte, body, rest []byte, err error) {
	length, used := 0, 1
	for ; ; used++ {
		if used >= len(b) {
			return 0, nil, b, errShort
		}
		if used > 4 {
			return 0, nil, b, errors.New("remaining length has more than four bytes")
		}
		length |= int(b[used]&0x7f) << (7 * (used - 1))
		if b[used] < 0x80 {
			used++
			break
		}
	}
	if length > maxPacketBytes {
		return 0, nil, b, fmt.Errorf("packet has %d bytes: at most %d were expected", length, maxPacketBytes)
	}
	if len(b) < used+length {
		return 0, nil, b, errShort
	}
	return b[0] >> 4, b[used : used+length], b[used+length:], nil
}

// packetID reads the identifier that begins the body of an acknowledgement.
func packetID(body []byte) (uint16, error) {
	if len(body) < 2 {
		return 0, fmt.Errorf("acknowledgement has %d bytes: want 2", len(body))
	}
	return binary.BigEndian.Uint16(body), nil
}

// cutPublish takes the body of a PUBLISH at QoS 1 apart.
func cutPublish(body []byte) (id uint16, payload []byte, err error) {
	if len(body) < 2 {
		return 0, nil, errors.New("publish has no topic")
	}
	topicBytes := int(binary.BigEndian.Uint16(body))
	if len(body) < 2+topicBytes+2 {
		return 0, nil, errors.New("publish ends before its identifier does")
	}
	return binary.BigEndian.Uint16(body[2+topicBytes:]), body[2+topicBytes+2:], nil
}
