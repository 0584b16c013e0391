package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MessagesType is the media type of a body that carries messages as a WebSocket
// would, for networks that let no WebSocket through.
const MessagesType = "application/vnd.touchline.messages"

// Opcodes of messages in such a body: those of RFC 6455, section 5.2, that
// mean something here.
const (
	OpText   = 1
	OpBinary = 2
	OpClose  = 8 // payload: a close code in two bytes, big endian, and a reason
)

// MessageHeaderBytes is what a message has before its payload: an opcode, and
// the payload's length in four bytes, big endian.
const MessageHeaderBytes = 1 + 4

// AppendMessage appends one message to a body.
func AppendMessage(dst []byte, op byte, payload []byte) []byte {
	dst = append(dst, op)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// AppendClose appends the message that ends a session.
func AppendClose(dst []byte, code int, reason string) []byte {
	payload := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reason)), uint16(code))
	return AppendMessage(dst, OpClose, append(payload, reason...))
}

// ReadMessage reads the next message of a body, of at most maxBytes. At the
// body's end it returns io.EOF, and io.ErrUnexpectedEOF where the body ends
// within a message.
func ReadMessage(r io.Reader, maxBytes int) (op byte, payload []byte, err error) {
	var head [MessageHeaderBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	op = head[0]
	if op != OpText && op != OpBinary && op != OpClose {
		return 0, nil, fmt.Errorf("message has the unknown opcode %d", op)
	}
	size := binary.BigEndian.Uint32(head[1:])
	if uint64(size) > uint64(maxBytes) {
		return 0, nil, fmt.Errorf("message has %d bytes: at most %d are allowed", size, maxBytes)
	}
	payload = make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return op, payload, nil
}

// ParseClose reads the payload of an OpClose.
func ParseClose(payload []byte) (code int, reason string, err error) {
	if len(payload) < 2 {
		return 0, "", fmt.Errorf("close message has %d bytes: want at least 2", len(payload))
	}
	return int(binary.BigEndian.Uint16(payload)), string(payload[2:]), nil
}
