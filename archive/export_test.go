package archive

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
)

// NewWriterOf makes an archive whose header is given, so that it is the same
// each time.
var NewWriterOf = newWriter

// SignSegment returns an excerpt with any payload, signed as it must be.
func SignSegment(key ed25519.PrivateKey, h Header, kind byte, payload []byte) []byte {
	var out bytes.Buffer
	a, err := newWriter(&out, key, h)
	if err != nil {
		panic(err)
	}
	out.Write(make([]byte, 8))
	out.WriteByte(kind)
	out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(payload))))
	out.Write(payload)
	out.Write(ed25519.Sign(key, message(Kind(kind), 0, a.head, payload)))
	return out.Bytes()
}
